"""What the servers need of the gateway. They translate; it tokenises, validates, schedules and detokenises."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from baton.v1 import cluster_pb2, inference_pb2
from orchestrator.gateway.delta_sink import DeltaSink

T = TypeVar("T")


class Backend(Protocol):
    """Runs requests. The gateway is the real one; tests have a scripted one."""

    def generate(
        self, request: inference_pb2.GenerateRequest, sink: DeltaSink | None = None
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """Run one request. Closing the iterator cancels it; ``finished`` is its last event.

        Given a ``sink``, it may send deltas there instead of yielding them; see `DeltaSink`.

        Raises:
            ServingError: before or during the stream.
        """
        ...

    async def tokenize(self, request: inference_pb2.GenerateRequest, *, special_tokens: bool) -> list[int]:
        """The ids of the request's prompt or chat; ``special_tokens`` adds the model's own to a prompt. No worker runs.

        Raises:
            ServingError: the request is bad.
        """
        ...

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of tokens; an empty name stands for the model served.

        Raises:
            ServingError: there is no such model, or no such token.
        """
        ...

    def token_texts(self, model: str, token_ids: Sequence[int]) -> list[str]:
        """Each token as the model's vocabulary writes it."""
        ...

    def models(self) -> list[inference_pb2.Model]:
        """The models served; cheap."""
        ...

    def status(self) -> cluster_pb2.Status:
        """How the cluster is; cheap."""
        ...


@asynccontextmanager
async def closing(stream: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T], None]:
    """Close ``stream`` on every way out, so that a request ends with its reader and not with a garbage collection."""
    try:
        yield stream
    finally:
        aclose = getattr(stream, "aclose", None)
        if aclose is not None:
            await aclose()
