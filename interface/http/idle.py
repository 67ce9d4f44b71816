"""Closes HTTP connections on which no request comes: aiohttp waits for ever for the first one, and for its headers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

SWEEP_S = 2.0


class IdleSweeper:
    """Knows which connections serve a request, and closes the others after ``idle_s`` seconds.

    Add `middleware` to the application and give `start` its runner.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._busy: dict[Any, int] = {}
        self._idle_since_s: dict[Any, float] = {}
        self._task: asyncio.Task[None] | None = None

    @web.middleware
    async def middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Mark the request's connection as busy."""
        connection = request.protocol
        self._busy[connection] = self._busy.get(connection, 0) + 1
        try:
            response: web.StreamResponse = await handler(request)
            return response
        finally:
            self._busy[connection] -= 1
            if not self._busy[connection]:
                del self._busy[connection]
                # Idle from now on, however often a sweep happened to fall between two short requests.
                self._idle_since_s.pop(connection, None)

    def start(self, runner: web.AppRunner) -> None:
        """Sweep until `stop`."""
        self._task = asyncio.create_task(self._run(runner))

    async def stop(self) -> None:
        """End the sweeping."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, runner: web.AppRunner) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self._idle_s))
            server = runner.server
            self.sweep(server.connections if server else [], time.monotonic())

    def sweep(self, connections: list[Any], now_s: float) -> None:
        """Close what has been idle for too long."""
        idle = {connection: self._idle_since_s.get(connection, now_s) for connection in connections}
        self._idle_since_s = {key: since_s for key, since_s in idle.items() if key not in self._busy}
        for connection, since_s in list(self._idle_since_s.items()):
            if now_s - since_s >= self._idle_s:
                connection.force_close()
                if connection.transport is not None:
                    connection.transport.abort()
                del self._idle_since_s[connection]
