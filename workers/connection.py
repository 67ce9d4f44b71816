"""A gateway's stream as the worker holds it."""

from __future__ import annotations

import asyncio

from baton.internal.v1 import worker_pb2
from workers.leg_run import LegRun

SCORES_BYTES = 8 << 20
"""Log-probabilities of prompts after which a message is full; a prompt more may still be in it."""


class Connection:
    """Owns one gateway's running legs, and the outputs not yet sent to it.

    While the stream is busy, tokens of the same leg are merged into one entry, so that a slow reader costs memory for
    tokens, not for messages.
    """

    def __init__(self) -> None:
        self.legs: dict[str, LegRun] = {}
        self.numbers: dict[str, int] = {}
        """By which the gateway names its legs in steps."""
        self.report_load = False
        """The load is to be reported with the next message, not at its interval."""
        self._pending: list[worker_pb2.LegOutput] = []
        self._open_entry: dict[str, worker_pb2.LegOutput] = {}
        self._wake = asyncio.Event()

    def put(self, output: worker_pb2.LegOutput) -> None:
        """Send an output with the next message."""
        entry = self._open_entry.get(output.leg_id)
        if entry is None:
            self._pending.append(output)
            self._open_entry[output.leg_id] = output
        else:
            entry.MergeFrom(output)
        self._wake.set()

    def report(self) -> None:
        """Report the load at once."""
        self.report_load = True
        self._wake.set()

    async def take(self, timeout_s: float) -> list[worker_pb2.LegOutput]:
        """What is to be sent, as soon as there is something; nothing after ``timeout_s``."""
        if not self._pending and not self.report_load:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return []
        count = self._fitting()
        outputs, self._pending = self._pending[:count], self._pending[count:]
        self._open_entry.clear()
        if not self._pending:
            self._wake.clear()
        return outputs

    def _fitting(self) -> int:
        """How many outputs the next message takes."""
        size_bytes = 0
        for index, output in enumerate(self._pending):
            if output.HasField("prompt_scores"):
                size_bytes += output.ByteSize()
                if size_bytes > SCORES_BYTES:
                    return index + 1
        return len(self._pending)
