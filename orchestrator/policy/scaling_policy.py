"""The seam for scaling policies: what they see, what they may do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.spec.config import Role
from orchestrator.policy.router import WorkerView


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start a worker; it serves after ``delay_s``, by default its pool's start-up time."""

    role: Role
    kind: str = ""
    delay_s: float | None = None


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Give a worker nothing new and stop it once empty; with ``migrate`` its requests are moved away."""

    worker_id: str
    migrate: bool = True


@dataclass(frozen=True, slots=True)
class ChangeRole:
    """Let a worker do another pool's work, with no restart. What it has, it finishes."""

    worker_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class MigrateRequest:
    """Move one decoding request, with its KV. Without a target the router chooses."""

    request: int
    target_id: str | None = None


ScalingAction = StartWorker | DrainWorker | ChangeRole | MigrateRequest


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as a policy sees it: the router's view and what else is known.

    ``state`` is one of ``starting``, ``ready``, ``draining``. ``since_s`` is when it came into that state.
    """

    view: WorkerView
    kind: str
    state: str
    since_s: float
    gpus: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that came since the last tick."""

    time_s: float
    tenant: str
    isl_tokens: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """One request that has not ended. ``generated_tokens`` are those made; ``answer_tokens`` those after the reasoning.

    ``phase`` is one of ``queued``, ``prefilling``, ``decoding``; a queued one may have been running before.
    """

    request: int
    tenant: str
    priority: int
    isl_tokens: int
    generated_tokens: int
    decode_id: str | None
    phase: str
    answer_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """One request that ended since the last tick."""

    request: int
    tenant: str
    isl_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    answer_tokens: int
    ttft_s: float
    e2e_s: float


class FleetView(Protocol):
    """What a scaling policy may look at. Counters run from the start of the run."""

    @property
    def arrived_requests(self) -> int:
        """Requests so far."""
        ...

    @property
    def arrived_tokens(self) -> int:
        """Prompt tokens so far."""
        ...

    @property
    def queued_requests(self) -> int:
        """Requests that wait in the gateway."""
        ...

    @property
    def queued_prompt_tokens(self) -> int:
        """Prompt tokens of those."""
        ...

    def workers(self) -> Sequence[WorkerStatus]:
        """Every worker that is starting, ready or draining, in order of start; none of those on standby."""
        ...

    def in_flight(self) -> Iterator[InFlight]:
        """Every request that has not ended, in order of arrival; lazy, since there may be thousands."""
        ...

    def arrived(self) -> Sequence[Arrival]:
        """Requests that came since the policy was last asked, in order."""
        ...

    def finished(self) -> Sequence[FinishedRequest]:
        """Requests that finished since the policy was last asked."""
        ...


class ScalingPolicy(Protocol):
    """Decides when the fleet changes."""

    interval_s: float

    def decide(self, now_s: float, fleet: FleetView) -> Sequence[ScalingAction]:
        """What to do, asked every ``interval_s`` seconds."""
        ...
