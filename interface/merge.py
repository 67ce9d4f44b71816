"""The streams of a call's prompts as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from baton.v1 import inference_pb2
from cluster.errors import EngineFailed
from interface.backend import Backend, closing

Event = tuple[int, inference_pb2.GenerateResponse]

QUEUED_EVENTS = 64
"""Events held for a slow reader; then the streams wait, and the gateway merges what comes meanwhile."""


def run_all(backend: Backend, requests: tuple[inference_pb2.GenerateRequest, ...]) -> AsyncIterator[Event]:
    """Run the requests at once; yields (index of the request, event). Closing it cancels all of them.

    Raises:
        ServingError: one of them failed; the others are cancelled.
    """
    return _one(backend, requests[0]) if len(requests) == 1 else _many(backend, requests)


async def _one(backend: Backend, request: inference_pb2.GenerateRequest) -> AsyncIterator[Event]:
    """Without a queue between: this is the path of nearly every request."""
    done = False
    async with closing(backend.generate(request)) as events:
        async for event in events:
            done = event.HasField("finished")
            yield 0, event
    if not done:
        raise EngineFailed("the stream ended without a result")


async def _many(backend: Backend, requests: tuple[inference_pb2.GenerateRequest, ...]) -> AsyncIterator[Event]:
    queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue(QUEUED_EVENTS)

    async def pump(index: int, request: inference_pb2.GenerateRequest) -> None:
        try:
            async with closing(_one(backend, request)) as events:
                async for _, event in events:
                    await queue.put((index, event))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(index, request)) for index, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
