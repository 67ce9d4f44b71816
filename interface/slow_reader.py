"""A reader that stops reading does not hold its request, and the memory of it, for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from cluster.errors import RequestAborted


@contextlib.asynccontextmanager
async def reading_within(timeout_s: float) -> AsyncIterator[None]:
    """Bound a write, which ends when the transport has taken it; a transport holds some tens of KiB for a reader.

    Raises:
        RequestAborted: the reader took nothing for ``timeout_s`` seconds.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise not_read(timeout_s) from error


def not_read(timeout_s: float) -> RequestAborted:
    """What a request ends with whose reader took nothing for so long."""
    return RequestAborted(f"the reply was not read for {timeout_s:g} s")
