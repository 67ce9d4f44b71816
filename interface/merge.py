"""The streams of a call's prompts as one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from baton.v1 import inference_pb2
from cluster.errors import EngineFailed
from interface.backend import Backend, closing
from orchestrator.gateway.delta_sink import DeltaSink
from orchestrator.request.merged_streams import merged

Event = tuple[int, inference_pb2.GenerateResponse]

QUEUED_EVENTS = 64
"""Events held for a slow reader; then the streams wait, and the gateway merges what comes meanwhile."""


def run_all(
    backend: Backend, requests: tuple[inference_pb2.GenerateRequest, ...], sink: DeltaSink | None = None
) -> AsyncIterator[Event]:
    """Run the requests at once; yields (index of the request, event). Closing it cancels all of them.

    The ``sink`` is for the deltas of a request that is alone.

    Raises:
        ServingError: one of them failed; the others are cancelled.
    """
    return _one(backend, requests[0], sink) if len(requests) == 1 else _many(backend, requests)


async def _one(
    backend: Backend, request: inference_pb2.GenerateRequest, sink: DeltaSink | None = None
) -> AsyncIterator[Event]:
    """Without a queue between: this is the path of nearly every request."""
    done = False
    async with closing(backend.generate(request, sink)) as events:
        async for event in events:
            done = event.HasField("finished")
            yield 0, event
    if not done:
        raise EngineFailed("the stream ended without a result")


def _many(backend: Backend, requests: tuple[inference_pb2.GenerateRequest, ...]) -> AsyncIterator[Event]:
    async def produce(
        index: int, request: inference_pb2.GenerateRequest, put: Callable[[Event], Awaitable[None]]
    ) -> None:
        async with closing(_one(backend, request)) as events:
            async for _, event in events:
                await put((index, event))

    return merged([partial(produce, index, request) for index, request in enumerate(requests)], queued=QUEUED_EVENTS)
