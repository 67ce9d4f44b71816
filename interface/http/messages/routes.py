"""Handlers of `/v1/messages`."""

from __future__ import annotations

from aiohttp import web

from interface.backend import Backend
from interface.http.call_runner import CallRunner, Dialect, Handler, given_request_id, json_response
from interface.http.messages.reply import MessageReply
from interface.http.messages.request import read_count_call, read_messages_call
from interface.http.messages.stream import MessageEvents
from interface.status import anthropic_error

PATH = "/v1/messages"
"""Errors of all paths below it have Anthropic's form."""

MESSAGES = Dialect(MessageEvents, MessageReply, anthropic_error)


class MessagesRoutes:
    """Anthropic's endpoints over the one backend."""

    def __init__(self, backend: Backend, runner: CallRunner) -> None:
        self._backend = backend
        self._runner = runner
        self.posts: dict[str, Handler] = {PATH: self._create, f"{PATH}/count_tokens": self._count}

    async def _create(self, request: web.Request) -> web.StreamResponse:
        call = read_messages_call(await self._runner.body(request), request_id=given_request_id(request))
        return await self._runner.run(request, call, MESSAGES)

    async def _count(self, request: web.Request) -> web.Response:
        asked = read_count_call(await self._runner.body(request))
        ids = await self._backend.tokenize(asked, special_tokens=True)
        return json_response({"input_tokens": len(ids)})
