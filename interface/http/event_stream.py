"""A reply of server-sent events: when it begins, what keeps it alive while nothing comes, and its end."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

from aiohttp import web

from cluster.errors import RequestAborted
from interface.http.write_batch import WriteBatch
from interface.slow_reader import reading_within

COMMENT = b": keep-alive\n\n"
"""Clients of server-sent events pass over lines that begin with a colon."""

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx would hold tokens back to fill a buffer.
    "X-Accel-Buffering": "no",
}


class EventStream:
    """Owns the response. Every dialect's stream is written through one of these, whole events at a time.

    It begins with the first event, so that an error until then has its HTTP status. A stream that was silent for
    ``keep_alive_s`` gets a comment, and begins with it if need be: proxies close a connection on which nothing came
    for a minute, and a model may think, or wait for a worker, for longer.
    """

    def __init__(
        self,
        request: web.Request,
        *,
        keep_alive_s: float | None,
        slow_reader_timeout_s: float,
        batch: WriteBatch,
    ) -> None:
        self.response = web.StreamResponse(headers=_HEADERS)
        self._request = request
        self._keep_alive_s = keep_alive_s
        self._slow_reader_timeout_s = slow_reader_timeout_s
        self._loop = asyncio.get_running_loop()
        self._beginning = asyncio.Lock()
        self._transport: asyncio.Transport | None = None
        """Once the stream has begun."""
        self._protocol = request.protocol
        self._chunked = True
        self._batch = batch
        self._soon: list[bytes] = []
        self._writing = False
        self._written_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EventStream:
        if self._keep_alive_s is not None:
            self._watch(self._keep_alive_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_keep_alive()

    @property
    def begun(self) -> bool:
        """Whether the status is sent: an error can now come as an event only."""
        return self.response.prepared

    async def write(self, events: bytes) -> None:
        """Write whole events, and wait while the transport holds too much for its reader.

        Raises:
            ConnectionResetError: the reader has disconnected.
            RequestAborted: it takes nothing; comments make no difference to that.
        """
        self.flush()
        self._writing = True
        try:
            if not self.response.prepared:
                await self._begin()
            async with reading_within(self._slow_reader_timeout_s):
                await self.response.write(events)
                if self._request.protocol.writing_paused:
                    await self._request.writer.drain()
        finally:
            self._writing = False
            self._written_s = self._loop.time()
        self._transport = self._request.transport

    @property
    def keeps_up(self) -> bool:
        """Whether the stream has begun and its reader takes what is written, so that `write_soon` may be called."""
        return self._transport is not None and not self._writing and not self._protocol.writing_paused

    def write_soon(self, events: bytes) -> None:
        """Write whole events with those of the other streams, without waiting, while the stream `keeps_up`."""
        if not self._soon:
            self._batch.add(self)
        self._soon.append(events)

    def flush(self) -> None:
        """Write what `write_soon` was given, as one chunk.

        The frame is HTTP's own: aiohttp's writer is a coroutine, with a drain and four writes for a chunk.
        """
        events, self._soon = b"".join(self._soon), []
        transport = self._transport
        if not events or transport is None or transport.is_closing():
            return  # written already, or the request's task is about to be cancelled
        data = b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events
        transport.write(data)
        self._request.writer.output_size += len(data)
        self._written_s = self._loop.time()

    async def end(self, last: bytes) -> None:
        """Write the last events and end the stream. A reader that takes nothing loses its connection."""
        self._end_keep_alive()
        try:
            await self.write(last)
            async with reading_within(self._slow_reader_timeout_s):
                await self.response.write_eof()
        except (ConnectionResetError, RequestAborted):
            # What the transport still holds for a reader who stopped is thrown away with the connection.
            if self._request.transport is not None:
                self._request.transport.abort()

    async def _begin(self) -> None:
        # Two begin at once where the first event comes while a comment is due; the headers must be before both.
        async with self._beginning:
            await self.response.prepare(self._request)
            self._chunked = "Transfer-Encoding" in self.response.headers

    def _end_keep_alive(self) -> None:
        for running in (self._timer, self._comment):
            if running is not None:
                running.cancel()

    def _watch(self, interval_s: float) -> None:
        """Have `_silent` called when the stream has been silent for so long, counted from the last event or comment."""
        self._timer = self._loop.call_at(self._written_s + interval_s, self._silent, interval_s)

    def _silent(self, interval_s: float) -> None:
        if self._loop.time() >= self._written_s + interval_s:
            self._written_s = self._loop.time()
            # A reader that does not read is found by the next event; comments would only fill the transport.
            if self.keeps_up:
                self.write_soon(COMMENT)
            elif not self._writing and not self._protocol.writing_paused:
                self._comment = self._loop.create_task(self._write_comment())
        self._watch(interval_s)

    async def _write_comment(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            await self._begin()
            # It goes to the transport at once and whole, so never into the midst of an event.
            await self.response.write(COMMENT)
