"""Runs the calls of any dialect: whole or streamed, to its end or until the caller disconnects."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from aiohttp import web

from baton.v1 import inference_pb2
from cluster.errors import ServingError
from cluster.spec.config import GatewaySettings
from cluster.trace_context import take_trace
from interface.authentication import current_caller
from interface.backend import Backend, closing
from interface.deadline import fold_deadline
from interface.failure import report
from interface.http.body import read_json
from interface.http.event_stream import EventStream
from interface.http.request_log import name_request, request_id
from interface.http.write_batch import WriteBatch
from interface.merge import run_all
from interface.status import REQUEST_ID_KEY, http_headers, status_of
from orchestrator.gateway.delta_sink import DeltaSink

ErrorForm = Callable[[ServingError], dict[str, Any]]
"""The body of an error."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Requests = tuple[inference_pb2.GenerateRequest, ...]


class Call(Protocol):
    """What a dialect's reader has made of a body."""

    @property
    def request_id(self) -> str:
        """Its name in the logs."""
        ...

    @property
    def requests(self) -> Requests:
        """What the backend runs, at once."""
        ...

    @property
    def stream(self) -> bool:
        """Whether the reply is a stream of events."""
        ...

    @property
    def ignored(self) -> frozenset[str]:
        """Names of fields that were let through without effect."""
        ...


class StreamWriter(Protocol):
    """Writes a stream's events, as server-sent events."""

    def sink(self, stream: EventStream) -> DeltaSink | None:
        """What takes plain deltas straight to the stream; none where each event is to come to `take`."""
        ...

    def take(self, prompt: int, event: inference_pb2.GenerateResponse) -> bytes:
        """What one event of a request of the call comes to; empty where nothing is to be sent."""
        ...

    def end(self) -> bytes:
        """What closes the stream."""
        ...

    def fail(self, error: ServingError) -> bytes:
        """What closes it after an error that came too late for a status."""
        ...


class ReplyWriter(Protocol):
    """Collects the events of a call for its reply."""

    def add(self, prompt: int, event: inference_pb2.GenerateResponse) -> None:
        """Take one event of a request of the call."""
        ...

    def object(self) -> dict[str, Any] | bytes:
        """The reply: an object, or its JSON where that was written on the way."""
        ...


C = TypeVar("C", bound=Call)


@dataclass(frozen=True, slots=True)
class Dialect(Generic[C]):
    """How one dialect answers its calls. Writers are made with the call and the second at which it came."""

    stream: Callable[[C, int], StreamWriter]
    reply: Callable[[C, int], ReplyWriter]
    error: ErrorForm


class CallRunner:
    """Runs calls on the backend. A caller that disconnects cancels its handler, and with it the backend's streams."""

    def __init__(self, backend: Backend, settings: GatewaySettings, count_ignored: Callable[[str], object]) -> None:
        self._backend = backend
        self._settings = settings
        self._count_ignored = count_ignored
        self._batch = WriteBatch()

    async def body(self, request: web.Request) -> Any:
        """The body as JSON.

        Raises:
            InvalidRequest: it is none, or came too slowly.
            RequestTooLarge: it is over the limit.
        """
        return await read_json(request, self._settings.max_request_bytes, self._settings.body_timeout_s)

    async def run(self, request: web.Request, call: C, dialect: Dialect[C]) -> web.StreamResponse:
        """Run a call and answer it; errors are answered, too."""
        try:
            self.admit(request, call)
            created_unix_s = int(time.time())
            if call.stream:
                async with self._event_stream(request) as stream:
                    await self._stream(stream, call, dialect.stream(call, created_unix_s))
                return stream.response
            reply = dialect.reply(call, created_unix_s)
            async with closing(run_all(self._backend, call.requests)) as events:
                async for prompt, event in events:
                    reply.add(prompt, event)
            return json_response(reply.object())
        except Exception as error:
            return failed(error, call.request_id, dialect.error)

    async def _stream(self, stream: EventStream, call: Call, writer: StreamWriter) -> None:
        """Write each event as it comes, and an error that comes too late for a status as an event."""
        try:
            async with closing(run_all(self._backend, call.requests, writer.sink(stream))) as events:
                async for prompt, event in events:
                    if chunk := writer.take(prompt, event):
                        await stream.write(chunk)
            last = writer.end()
        except ConnectionResetError:
            return
        except Exception as error:
            if not stream.begun:
                raise
            last = writer.fail(report(error, call.request_id))
        await stream.end(last)

    def admit(self, request: web.Request, call: Call) -> None:
        """Name the request in the logs and its trace, count what is ignored, and set the deadline and the tenant.

        Raises:
            DeadlineExceeded: it is past already.
        """
        name_request(request, call.request_id)
        take_trace(request.headers)
        for name in call.ignored:
            self._count_ignored(name)
        for item in call.requests:
            fold_deadline(item, None)
            if caller := current_caller.get():
                item.tenant = caller.tenant

    async def send(self, request: web.Request, events: AsyncIterator[bytes]) -> web.StreamResponse:
        """Answer with events that come from elsewhere; a caller that disconnects ends the sending alone."""
        async with self._event_stream(request) as stream, closing(events):
            try:
                async for data in events:
                    await stream.write(data)
            except ConnectionResetError:
                return stream.response
            await stream.end(b"")
        return stream.response

    def _event_stream(self, request: web.Request) -> EventStream:
        return EventStream(
            request,
            keep_alive_s=self._settings.http_keep_alive_s,
            slow_reader_timeout_s=self._settings.slow_reader_timeout_s,
            batch=self._batch,
        )


def given_request_id(request: web.Request) -> str:
    """The id that the request's header names, or the one that it got."""
    return request.headers.get(REQUEST_ID_KEY) or request_id(request)


def failed(error: Exception, own_id: str, form: ErrorForm) -> web.Response:
    """Log an error and answer with it."""
    failure = report(error, own_id)
    return json_response(form(failure), status=status_of(failure).http, headers=http_headers(failure))


def json_response(tree: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A reply of JSON without white space; bytes are JSON already."""
    body = tree if isinstance(tree, bytes) else json.dumps(tree, separators=(",", ":")).encode()
    return web.Response(body=body, status=status, headers=headers, content_type="application/json", charset="utf-8")
