"""The choices of one request side by side, as one stream.

This is the one strategy there is for several traces of a question; another one (vote, best of n) is a file beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from baton.v1 import inference_pb2 as pb
from orchestrator.request.merged_streams import merged

QUEUED_EVENTS = 64
"""Events held for a slow reader; then the choices wait."""


class Branch(Protocol):
    """One trace."""

    prefilled: asyncio.Event

    def run(self) -> AsyncGenerator[pb.GenerateResponse]:
        """Its events; closing the iterator cancels it."""
        ...


def fan_out(branches: Sequence[Branch]) -> AsyncGenerator[pb.GenerateResponse]:
    """Run several choices. The first one prefills; the others then find the prompt in the prefix cache."""

    async def produce(branch: Branch, put: Callable[[pb.GenerateResponse], Awaitable[None]]) -> None:
        if branch is not branches[0]:
            await branches[0].prefilled.wait()
        async with contextlib.aclosing(branch.run()) as stream:
            async for message in stream:
                await put(message)

    return merged([partial(produce, branch) for branch in branches], queued=QUEUED_EVENTS)
