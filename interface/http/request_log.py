"""An id for every HTTP request, in its reply and in the logs, and its line in the access log."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from interface.access_log import request_id_of, write_line
from interface.status import REQUEST_ID_KEY

CLIENT_CLOSED = 499
"""nginx's status for a caller that disconnected before its reply was complete."""

_ID = web.RequestKey("request_id", str)


def request_id(request: web.Request) -> str:
    """The id under which the request is logged, and which its reply carries."""
    return request[_ID]


def name_request(request: web.Request, own_id: str) -> None:
    """Give the request the id that its body names."""
    request[_ID] = own_id


class RequestLog:
    """Gives requests their ids, and writes the access log where it is on. Its middleware goes first."""

    def __init__(self, access_log: bool) -> None:
        self._access_log = access_log

    @web.middleware
    async def middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Take the caller's ``X-Request-Id`` or make one, and log how the request ended."""
        request[_ID] = request_id_of(request.headers.get(REQUEST_ID_KEY, ""))
        started_s = time.monotonic()
        status, sent_bytes = CLIENT_CLOSED, 0
        try:
            response: web.StreamResponse = await handler(request)
            status, sent_bytes = response.status, _body_bytes(response)
            return response
        except asyncio.CancelledError:
            raise
        except Exception:
            status = 500
            raise
        finally:
            if self._access_log:
                _write(request, status, sent_bytes, time.monotonic() - started_s)

    async def on_response_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Put the id into any reply (a signal of the application)."""
        # aiohttp refuses some requests before any middleware, such as those with an unknown Expect.
        if own_id := request.get(_ID):
            response.headers["X-Request-Id"] = own_id


def _write(request: web.Request, status: int, sent_bytes: int, duration_s: float) -> None:
    # The route's own path, not the caller's: that may hold anything.
    resource = request.match_info.route.resource
    write_line(
        method=request.method,
        path=resource.canonical if resource is not None else "unknown",
        status=status,
        sent_bytes=sent_bytes,
        duration_s=duration_s,
        peer=request.remote or "",
        request_id=request_id(request),
    )


def _body_bytes(response: web.StreamResponse) -> int:
    """Bytes of the body: a stream's are written by now (and counted with their framing), others are about to be."""
    if isinstance(response, web.Response) and isinstance(response.body, bytes):
        return len(response.body)
    return response.body_length
