"""Handlers of `/v1/responses`."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from aiohttp import web

from cluster.errors import InvalidRequest, ResponseNotFound
from cluster.spec.config import GatewaySettings
from interface.authentication import current_caller
from interface.http.call_runner import CallRunner, Dialect, Handler, given_request_id, json_response
from interface.http.responses.items import listed_items
from interface.http.responses.reply import ResponseReply
from interface.http.responses.request import NOT_HERE, ResponsesCall, read_responses_call
from interface.http.responses.store import ResponseStore, StoredResponse, response_id_of, size_bytes
from interface.http.responses.stream import ResponseEvents
from interface.status import REQUEST_ID_KEY, openai_error

PATH = "/v1/responses"
MAX_LISTED = 100


class ResponsesRoutes:
    """OpenAI's endpoints of responses, and what this gateway has stored of them."""

    def __init__(self, runner: CallRunner, settings: GatewaySettings) -> None:
        self._runner = runner
        self._store = ResponseStore(
            max_responses=settings.max_stored_responses,
            max_bytes=settings.max_stored_responses_bytes,
            max_age_s=settings.max_stored_response_age_s,
        )
        self._dialect = Dialect(
            partial(ResponseEvents, keep=self._keep), partial(ResponseReply, keep=self._keep), openai_error
        )
        one = f"{PATH}/{{response}}"
        self.posts: dict[str, Handler] = {PATH: self._create}
        self.gets: dict[str, Handler] = {one: self._get, f"{one}/input_items": self._input_items}
        self.deletes: dict[str, Handler] = {one: self._delete}

    async def _create(self, request: web.Request) -> web.StreamResponse:
        call = read_responses_call(
            await self._runner.body(request),
            request_id=given_request_id(request),
            named=REQUEST_ID_KEY in request.headers,
            lookup=self._lookup,
        )
        return await self._runner.run(request, call, self._dialect)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        return json_response(self._stored(request).object)

    async def _delete(self, request: web.Request) -> web.Response:
        stored = self._stored(request)
        self._store.remove(_owner(), stored.object["id"], time.monotonic())
        return json_response({"id": stored.object["id"], "object": "response", "deleted": True})

    async def _input_items(self, request: web.Request) -> web.Response:
        stored = self._stored(request)
        items = listed_items(stored.items[len(stored.items) - stored.own_items :], stored.object["id"])
        if request.query.get("order", "desc") != "asc":
            items.reverse()
        if after := request.query.get("after"):
            place = next((index for index, item in enumerate(items) if item["id"] == after), None)
            if place is None:
                raise InvalidRequest("after: there is no such item", field="after")
            items = items[place + 1 :]
        limit = _limit(request)
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

    def _keep(self, call: ResponsesCall, made: dict[str, Any]) -> None:
        if not call.store:
            return
        now_s = time.monotonic()
        own = call.items[len(call.items) - call.own_items :]
        stored = StoredResponse(
            tenant=_owner(),
            object=made,
            items=call.items,
            own_items=call.own_items,
            session=call.requests[0].session,
            size_bytes=call.earlier_bytes + size_bytes([made, *own]),
            stored_s=now_s,
        )
        self._store.put(stored, now_s)


def _owner() -> str:
    """The tenant of the caller's key; without keys all callers are one."""
    caller = current_caller.get()
    return caller.tenant if caller is not None else ""


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MAX_LISTED):
        raise InvalidRequest(f"limit: expected an integer from 1 to {MAX_LISTED}", field="limit")
    return int(text)
