"""The choices of one request side by side, as one stream.

One answer out of several traces is `orchestrator.gateway.scaled_request`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from baton.v1 import inference_pb2 as pb
from orchestrator.gateway.siblings import Sibling
from orchestrator.request.merged_streams import merged

QUEUED_EVENTS = 64
"""Events held for a slow reader; then the choices wait."""


class Branch(Protocol):
    """One trace."""

    sibling: Sibling

    def run(self) -> AsyncGenerator[pb.GenerateResponse]:
        """Its events; closing the iterator cancels it."""
        ...


def fan_out(branches: Sequence[Branch]) -> AsyncGenerator[pb.GenerateResponse]:
    """Run several choices. Each begins once the one before it has workers that it can go to, or brings the KV there."""

    async def produce(index: int, put: Callable[[pb.GenerateResponse], Awaitable[None]]) -> None:
        branch = branches[index]
        if index:
            await branches[index - 1].sibling.settled.wait()
        async with contextlib.aclosing(branch.run()) as stream:
            async for message in stream:
                await put(message)

    return merged([partial(produce, index) for index in range(len(branches))], queued=QUEUED_EVENTS)
