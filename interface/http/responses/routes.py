"""Handlers of `/v1/responses`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from aiohttp import web

from cluster.errors import InvalidRequest, ResponseNotFound
from cluster.spec.config import GatewaySettings
from interface.authentication import current_caller
from interface.backend import Backend
from interface.http.call_runner import CallRunner, Dialect, Handler, given_request_id, json_response
from interface.http.fields import INT32_MAX
from interface.http.responses.background import BackgroundResponse, BackgroundResponses, split_events
from interface.http.responses.items import listed_items
from interface.http.responses.reply import ResponseReply
from interface.http.responses.request import NOT_HERE, ResponsesCall, read_responses_call
from interface.http.responses.store import ResponseStore, StoredResponse, as_json, response_id_of
from interface.http.responses.stream import ResponseEvents
from interface.status import REQUEST_ID_KEY, openai_error

PATH = "/v1/responses"
MAX_LISTED = 100


class ResponsesRoutes:
    """OpenAI's endpoints of responses, and what this gateway has stored of them."""

    def __init__(self, backend: Backend, runner: CallRunner, settings: GatewaySettings) -> None:
        self._runner = runner
        self._store = ResponseStore(
            max_responses=settings.max_stored_responses,
            max_bytes=settings.max_stored_responses_bytes,
            max_age_s=settings.max_stored_response_age_s,
        )
        self._background = BackgroundResponses(backend, self._keep)
        self._dialect = Dialect(
            partial(ResponseEvents, keep=self._keep), partial(ResponseReply, keep=self._keep), openai_error
        )
        one = f"{PATH}/{{response}}"
        self.posts: dict[str, Handler] = {PATH: self._create, f"{one}/cancel": self._cancel}
        self.gets: dict[str, Handler] = {one: self._get, f"{one}/input_items": self._input_items}
        self.deletes: dict[str, Handler] = {one: self._delete}

    async def _create(self, request: web.Request) -> web.StreamResponse:
        call = read_responses_call(
            await self._runner.body(request),
            request_id=given_request_id(request),
            named=REQUEST_ID_KEY in request.headers,
            lookup=self._lookup,
        )
        if not call.background:
            return await self._runner.run(request, call, self._dialect)
        self._runner.admit(request, call)
        running = self._background.start(_owner(), call)
        if call.stream:
            return await self._runner.send(request, running.follow(0))
        return json_response(running.object())

    async def close(self) -> None:
        """End what runs in the background."""
        await self._background.close()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        running = self._running(request)
        if request.query.get("stream") in ("true", "1"):
            return await self._follow(request, running)
        return json_response(running.object() if running is not None else self._stored(request).object_json)

    async def _follow(self, request: web.Request, running: BackgroundResponse | None) -> web.StreamResponse:
        start = _integer(request, "starting_after", -1, -1, INT32_MAX) + 1
        if running is not None and running.call.stream:
            return await self._runner.send(request, running.follow(start))
        if running is None and (events := self._stored(request).events):
            return await self._runner.send(request, _one(b"".join(split_events(events)[start:])))
        raise InvalidRequest("stream: only a background response that was created as a stream can be followed")

    async def _cancel(self, request: web.Request) -> web.Response:
        running = self._running(request)
        if running is not None:
            await self._background.cancel(running.call.response_id)
            return json_response(running.object())
        made = self._stored(request).object()
        if not made["background"]:
            raise InvalidRequest("only a background response can be cancelled; disconnect to end another")
        return json_response(made)

    async def _delete(self, request: web.Request) -> web.Response:
        if (running := self._running(request)) is not None:
            await self._background.cancel(running.call.response_id)
        stored = self._stored(request)
        self._store.remove(_owner(), stored.response_id, time.monotonic())
        return json_response({"id": stored.response_id, "object": "response", "deleted": True})

    async def _input_items(self, request: web.Request) -> web.Response:
        items = listed_items(self._own_items(request), request.match_info["response"])
        if request.query.get("order", "desc") != "asc":
            items.reverse()
        if after := request.query.get("after"):
            place = next((index for index, item in enumerate(items) if item["id"] == after), None)
            if place is None:
                raise InvalidRequest("after: there is no such item", field="after")
            items = items[place + 1 :]
        limit = _integer(request, "limit", 20, 1, MAX_LISTED)
        shown = items[:limit]
        return json_response(
            {
                "object": "list",
                "data": shown,
                "first_id": shown[0]["id"] if shown else "",
                "last_id": shown[-1]["id"] if shown else "",
                "has_more": len(items) > limit,
            }
        )

    def _own_items(self, request: web.Request) -> list[dict[str, Any]]:
        if (running := self._running(request)) is not None:
            return list(running.call.items[len(running.call.items) - running.call.own_items :])
        stored = self._stored(request)
        given = stored.items()
        return given[len(given) - stored.own_items :]

    def _running(self, request: web.Request) -> BackgroundResponse | None:
        return self._background.get(_owner(), request.match_info["response"])

    def _stored(self, request: web.Request) -> StoredResponse:
        """The response that the path names.

        Raises:
            ResponseNotFound: there is none of this tenant.
        """
        found = self._store.get(_owner(), request.match_info["response"], time.monotonic())
        if found is None:
            raise ResponseNotFound(f"this response {NOT_HERE}")
        return found

    def _lookup(self, any_id: str) -> StoredResponse | None:
        return self._store.get(_owner(), response_id_of(any_id), time.monotonic())

    def _keep(self, call: ResponsesCall, made: dict[str, Any], events: bytes = b"") -> None:
        if not call.store:
            return
        now_s = time.monotonic()
        stored = StoredResponse(
            tenant=_owner(),
            response_id=call.response_id,
            object_json=as_json(made),
            items_json=as_json(call.items),
            own_items=call.own_items,
            session=call.requests[0].session,
            stored_s=now_s,
            events=events,
        )
        self._store.put(stored, now_s)


def _owner() -> str:
    """The tenant of the caller's key; without keys all callers are one."""
    caller = current_caller.get()
    return caller.tenant if caller is not None else ""


def _integer(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    """A number of the query."""
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 12 and low <= int(text) <= high):
        raise InvalidRequest(f"{name}: expected an integer from {low} to {high}", field=name)
    return int(text)


async def _one(events: bytes) -> AsyncIterator[bytes]:
    yield events
