"""HTTP/1.1 by hand over an asyncio protocol: bytes are kept with their arrival times and parsed when the reply is in.

The client shares the machine with what it measures. While a reply streams in, a message costs one append and a
check of seven bytes; a general HTTP client costs 30 to 60 µs there.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

_END = b"\r\n0\r\n\r\n"
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class RawReply:
    """A reply as it came. ``complete`` is False where the connection ended before it did."""

    pieces: list[bytes]
    times_s: list[float]
    complete: bool

    def status(self) -> int:
        """HTTP status; 0 where not even a status line came."""
        head = b"".join(self.pieces[:4])[:64].split(b" ", 2)
        return int(head[1]) if len(head) > 1 and head[0].startswith(b"HTTP/") and head[1].isdigit() else 0

    def body(self) -> Iterator[tuple[float, bytes]]:
        """The body in the parts the server wrote, each with the time its last byte came."""
        raw = b"".join(self.pieces)
        ends = list(accumulate(len(piece) for piece in self.pieces))
        head_end = raw.find(_HEAD_END)
        if head_end < 0:
            return
        at = head_end + len(_HEAD_END)
        if not _chunked(raw[:head_end]):
            if at < len(raw):
                yield self.times_s[-1], raw[at:]
            return
        while True:
            line_end = raw.find(b"\r\n", at)
            if line_end < 0:
                return
            try:
                size = int(raw[at:line_end].split(b";")[0], 16)
            except ValueError:
                return
            start = line_end + 2
            if size == 0 or start + size > len(raw):
                return
            yield self.times_s[bisect_left(ends, start + size)], raw[start : start + size]
            at = start + size + 2


def _chunked(head: bytes) -> bool:
    return b"transfer-encoding: chunked" in head.lower()


def _length(head: bytes) -> int | None:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.split(b"\r\n")[0]) if found else None


def events(reply: RawReply) -> Iterator[tuple[float, bytes]]:
    """Data of each server-sent event, with the time its last byte came."""
    rest = b""
    for at_s, part in reply.body():
        rest += part.replace(b"\r\n", b"\n") if b"\r" in part else part
        while True:
            event, found, after = rest.partition(b"\n\n")
            if not found:
                break
            rest = after
            data = b"".join(line[5:].lstrip() for line in event.split(b"\n") if line.startswith(b"data:"))
            if data:
                yield at_s, data


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[bool] | None = None
        self._reset()

    def _reset(self) -> None:
        self._pieces: list[bytes] = []
        self._times_s: list[float] = []
        self._tail = b""
        self._need: int | None = None
        self._got = 0
        self._head_seen = False
        self._is_chunked = False

    @property
    def usable(self) -> bool:
        """Whether another request can be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._times_s.append(time.perf_counter())
        self._pieces.append(data)
        self._got += len(data)
        if self._is_chunked:
            self._tail = (self._tail + data)[-len(_END) :]
            if self._tail == _END:
                self._finish(True)
        elif self._head_seen:
            if self._need is not None and self._got >= self._need:
                self._finish(True)
        else:
            self._look_for_head()

    def _look_for_head(self) -> None:
        raw = b"".join(self._pieces)
        end = raw.find(_HEAD_END)
        if end < 0:
            return
        self._head_seen = True
        head = raw[:end]
        self._is_chunked = _chunked(head)
        length = _length(head)
        if self._is_chunked:
            # The empty body's end has no chunk before it, so keep the head's last line end with it.
            self._tail = raw[end + 2 :][-len(_END) :]
            if self._tail == _END:
                self._finish(True)
        elif length is not None:
            self._need = end + len(_HEAD_END) + length
            if self._got >= self._need:
                self._finish(True)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._transport = None
        # Without a length the end of the connection is the end of the reply.
        self._finish(self._head_seen and not self._is_chunked and self._need is None and exc is None)

    def _finish(self, complete: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(complete)

    async def exchange(self, request: bytes) -> RawReply:
        """Send a request and wait for the whole reply.

        Raises:
            ConnectionError: the connection is gone.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        self._reset()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        complete = await self._done
        return RawReply(self._pieces, self._times_s, complete)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()
