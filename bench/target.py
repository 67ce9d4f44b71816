"""What a run sends its requests to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from bench.record import RequestRecord
from bench.workload import PlannedRequest


@dataclass(frozen=True, slots=True)
class RequestStyle:
    """What all requests of a run have in common."""

    model: str
    api: Literal["completions", "chat"] = "completions"
    prompt: Literal["ids", "text"] = "ids"
    seed: int = 0
    low_id: int = 32
    high_id: int = 96
    """Token ids are drawn from ``[low_id, high_id)``: ordinary tokens in every vocabulary we know."""
    temperature: float = 0.0
    ignore_eos: bool = True
    count_ids: bool = False
    """Ask for token ids in every message. Without, tokens are counted by the usage at the end, which costs less."""
    timeout_s: float = 600.0
    api_key: str = ""


class Target(Protocol):
    """An endpoint. `send` never raises for what a server or network does: the record says it."""

    async def model(self) -> str:
        """Name of the first model served. Raises `ServingError` where the endpoint does not answer."""

    async def send(self, request: PlannedRequest, style: RequestStyle, epoch_s: float) -> RequestRecord:
        """Send one request and record what came. ``epoch_s`` is the run's start on `time.perf_counter`."""

    async def close(self) -> None:
        """Close all connections."""
