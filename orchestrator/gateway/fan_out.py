"""The choices of one request side by side, as one stream.

This is the one strategy there is for several traces of a question; another one (vote, best of n) is a file beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from baton.v1 import inference_pb2 as pb


class Branch(Protocol):
    """One trace."""

    prefilled: asyncio.Event

    def run(self) -> AsyncGenerator[pb.GenerateResponse]:
        """Its events; closing the iterator cancels it."""
        ...


async def fan_out(branches: Sequence[Branch]) -> AsyncGenerator[pb.GenerateResponse]:
    """Run several choices. The first one prefills; the others then find the prompt in the prefix cache."""
    outputs: asyncio.Queue[pb.GenerateResponse | BaseException | None] = asyncio.Queue(maxsize=64)

    async def pump(branch: Branch) -> None:
        try:
            if branch is not branches[0]:
                await branches[0].prefilled.wait()
            async with contextlib.aclosing(branch.run()) as stream:
                async for message in stream:
                    await outputs.put(message)
            await outputs.put(None)
        except Exception as error:  # of any kind, or the reader below would wait for ever
            await outputs.put(error)

    tasks = [asyncio.create_task(pump(branch)) for branch in branches]
    try:
        left = len(tasks)
        while left:
            item = await outputs.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
