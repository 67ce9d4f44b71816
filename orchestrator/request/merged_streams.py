"""Several streams as one, in the order in which their items come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Producer = Callable[[Callable[[T], Awaitable[None]]], Awaitable[None]]
"""Awaits what it is given for each of its items, and returns after the last one."""


@dataclass(frozen=True, slots=True)
class _Ended:
    error: Exception | None = None


async def merged(producers: Sequence[Producer[T]], *, queued: int) -> AsyncGenerator[T]:
    """The items of all producers, run side by side; closing it cancels them.

    Args:
        producers: A stream each.
        queued: Items held for a slow reader; then the producers wait.

    Raises:
        Exception: that of the first producer that fails; the others are cancelled.
    """
    queue: asyncio.Queue[T | _Ended] = asyncio.Queue(queued)

    async def pump(produce: Producer[T]) -> None:
        try:
            await produce(queue.put)
        except Exception as error:  # of any kind, or the reader below would wait for ever
            await queue.put(_Ended(error))
        else:
            await queue.put(_Ended())

    tasks = [asyncio.create_task(pump(produce)) for produce in producers]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if not isinstance(item, _Ended):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                running -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
