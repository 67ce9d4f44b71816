"""Responses that run without their caller, and their events for callers that follow them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from interface.backend import Backend, closing
from interface.failure import report
from interface.http.responses.request import ResponsesCall
from interface.http.responses.stream import ResponseEvents
from interface.merge import run_all

KeepEvents = Callable[[ResponsesCall, dict[str, Any], bytes], None]
"""Stores a response that has ended, with its events."""


class BackgroundResponse:
    """One of them. Its events are recorded where it was asked for as a stream."""

    def __init__(self, call: ResponsesCall, keep: KeepEvents) -> None:
        self.call = call
        self.over = False
        self._keep = keep
        self._made: dict[str, Any] = {}
        self._writer = ResponseEvents(call, int(time.time()), keep=self._take_made)
        self._events: list[bytes] = []
        self._changed = asyncio.Event()
        self._record(self._writer.queue())

    def object(self) -> dict[str, Any]:
        """The response as it is now."""
        return self._writer.object()

    async def run(self, backend: Backend) -> None:
        """Run to the end; errors become the response's own, and a cancellation its end."""
        try:
            async with closing(run_all(backend, self.call.requests)) as events:
                async for prompt, event in events:
                    self._record(self._writer.take(prompt, event))
            self._end(self._writer.end())
        except asyncio.CancelledError:
            self.cancelled()
            raise
        except Exception as error:
            self._end(self._writer.fail(report(error, self.call.request_id)))

    def cancelled(self) -> None:
        """End it where it is, unless it has ended."""
        if not self.over:
            self._end(self._writer.cancel())

    async def follow(self, start: int) -> AsyncIterator[bytes]:
        """Events from a number on, as they come, up to the last."""
        while True:
            # Read before the events: what comes after it is waited for.
            over, changed = self.over, self._changed
            if start < len(self._events):
                yield b"".join(self._events[start:])
                start = len(self._events)
            elif over:
                return
            else:
                await changed.wait()

    def _end(self, last: bytes) -> None:
        self.over = True
        self._record(last)
        self._keep(self.call, self._made, b"".join(self._events))

    def _take_made(self, call: ResponsesCall, made: dict[str, Any]) -> None:
        self._made = made

    def _record(self, data: bytes) -> None:
        if self.call.stream:
            self._events += split_events(data)
        self._changed.set()
        self._changed = asyncio.Event()


class BackgroundResponses:
    """Owns those that run. Each is its tenant's alone, and is stored when it has ended."""

    def __init__(self, backend: Backend, keep: KeepEvents) -> None:
        self._backend = backend
        self._keep = keep
        self._running: dict[str, tuple[str, BackgroundResponse, asyncio.Task[None]]] = {}

    def start(self, tenant: str, call: ResponsesCall) -> BackgroundResponse:
        """Run a call; what is stored of it is stored in this caller's context."""
        made = BackgroundResponse(call, self._keep)
        task = asyncio.create_task(made.run(self._backend))
        self._running[call.response_id] = (tenant, made, task)
        task.add_done_callback(lambda _: self._ended(made))
        return made

    def _ended(self, made: BackgroundResponse) -> None:
        # A task that is cancelled before its first step does not even begin.
        made.cancelled()
        del self._running[made.call.response_id]

    def get(self, tenant: str, response_id: str) -> BackgroundResponse | None:
        """A tenant's response that runs."""
        owner, made, _ = self._running.get(response_id, ("", None, None))
        return made if owner == tenant else None

    async def cancel(self, response_id: str) -> None:
        """End one; it is stored when this returns."""
        _, _, task = self._running[response_id]
        task.cancel()
        await asyncio.wait([task])

    async def close(self) -> None:
        """End all."""
        tasks = [task for _, _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def split_events(data: bytes) -> list[bytes]:
    """The server-sent events of some bytes; an event's number is its place.

    Example:
        >>> split_events(b"event: a\\ndata: 1\\n\\nevent: b\\ndata: 2\\n\\n")
        [b'event: a\\ndata: 1\\n\\n', b'event: b\\ndata: 2\\n\\n']
    """
    return [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]
