"""The writes of one turn of the event loop, all together at its end."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Flushed(Protocol):
    """What has something to be written."""

    def flush(self) -> None:
        """Write it. Never raises for what its reader does."""
        ...


class WriteBatch:
    """Has streams write when a step's tokens have all been made text, one write for each stream.

    Written one by one between them, each write wakes a reader that has gone to sleep since the last one: on one machine
    that is half of a write's cost. The first token of a step waits for the others, some microseconds each.
    """

    def __init__(self) -> None:
        self._waiting: list[Flushed] = []

    def add(self, stream: Flushed) -> None:
        """Have the stream flushed once, at the end of this turn of the loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(stream)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            stream.flush()
