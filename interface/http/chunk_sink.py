"""Deltas straight to the connection: `orchestrator.gateway.delta_sink` for a stream of server-sent events."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from interface.http.event_stream import EventStream
from orchestrator.policy.phases import Phase

WriteText = Callable[[int, Phase, str], bytes]
"""The events that a piece of a choice's text comes to; empty where it is not to be sent."""


class ChunkSink:
    """Writes the deltas of one call.

    Args:
        stream: The reply.
        write: See `WriteText`.
    """

    def __init__(self, stream: EventStream, write: WriteText) -> None:
        self._stream = stream
        self._write = write

    @property
    def ready(self) -> bool:
        """Whether the stream has begun, and its reader keeps up."""
        return self._stream.keeps_up

    def take(self, choice: int, phase: Phase, text: str, token_ids: Sequence[int]) -> None:
        """Write a delta."""
        if chunk := self._write(choice, phase, text):
            self._stream.write_soon(chunk)
