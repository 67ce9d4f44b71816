"""The OpenAI HTTP interface over a `Backend`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from cluster.errors import ConfigError, InvalidRequest, ModelNotFound
from cluster.spec.config import GatewaySettings
from interface.authentication import Authentication, current_caller
from interface.backend import Backend
from interface.http.call_runner import CallRunner, Dialect, ErrorForm, Handler, failed, given_request_id, json_response
from interface.http.completions.chunk import Chunks
from interface.http.completions.reply import Reply
from interface.http.completions.request import read_chat_call, read_completion_call, with_texts
from interface.http.cors import Cors
from interface.http.idle import IdleSweeper
from interface.http.messages.routes import PATH as MESSAGES_PATH
from interface.http.messages.routes import MessagesRoutes
from interface.http.openapi import document
from interface.http.request_log import RequestLog, request_id
from interface.http.responses.routes import ResponsesRoutes
from interface.http.status import model_object, to_json
from interface.http.tokens import read_detokenize_call, read_tokenize_call, tokens_object
from interface.listening import listen
from interface.status import anthropic_error, openai_error

LINGER_S = 1.0
"""Seconds that the rest of a refused body is thrown away, so that its sender gets to read the reply."""
SHUTDOWN_S = 5.0
"""Seconds that running replies have to end by themselves when the server stops."""

HEALTH_PATHS = frozenset({"/health", "/v1/health", "/ping"})
"""Served without a key. SageMaker asks for /ping."""

COMPLETIONS = Dialect(Chunks, Reply, openai_error)


def _is_our_matter(record: logging.LogRecord) -> bool:
    """Broken HTTP is its sender's matter; aiohttp would log a stack and the bytes, which may be a prompt's."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


server_log = logging.getLogger("baton.api.http")
server_log.addFilter(_is_our_matter)


class HttpServer:
    """The routes. One handler per request; a caller that disconnects cancels it, and with it the backend's stream."""

    def __init__(
        self,
        backend: Backend,
        settings: GatewaySettings,
        authentication: Authentication,
        count_ignored: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._backend = backend
        self._runner = CallRunner(backend, settings, count_ignored)
        self._authentication = authentication
        self.sweeper = IdleSweeper(settings.body_timeout_s)
        self._log = RequestLog(settings.access_log)
        self._cors = Cors(settings.cors_origins)
        self._limit_bytes = settings.max_request_bytes
        # More prompts than may wait could never all be admitted.
        self._max_prompts = max(1, settings.max_queued_requests)
        self.responses = responses = ResponsesRoutes(backend, self._runner, settings)
        self._posts: dict[str, Handler] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
            "/ping": self._health,
            **MessagesRoutes(backend, self._runner).posts,
            **responses.posts,
        }
        self._gets: dict[str, Handler] = {
            "/v1/models": self._models,
            "/v1/models/{model:.*[^/]}": self._model,
            "/v1/status": self._status,
            "/version": self._version,
            "/openapi.json": self._openapi,
            **dict.fromkeys(HEALTH_PATHS, self._health),
            **responses.gets,
        }
        self._deletes = responses.deletes

    def app(self) -> web.Application:
        """The application, ready to be run. Each path may end with a slash, and each that takes GET takes HEAD."""
        app = web.Application(
            middlewares=[
                self._log.middleware,
                self.sweeper.middleware,
                _errors_as_json,
                self._cors.middleware,
                self._authorised,
            ],
            client_max_size=self._limit_bytes,
        )
        app.on_response_prepare.extend([self._log.on_response_prepare, self._cors.on_response_prepare])
        for path, handler in self._posts.items():
            app.add_routes([web.post(path, handler), web.post(f"{path}/", handler)])
        for path, handler in self._gets.items():
            app.add_routes([web.get(path, handler), web.get(f"{path}/", handler)])
        for path, handler in self._deletes.items():
            app.add_routes([web.delete(path, handler), web.delete(f"{path}/", handler)])
        return app

    @web.middleware
    async def _authorised(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Serve health to anybody, and the rest to callers with a valid key."""
        if request.path.rstrip("/") not in HEALTH_PATHS:
            # Set for every request: those of one connection share a task.
            current_caller.set(self._authentication.check(_authorization(request)))
        response: web.StreamResponse = await handler(request)
        return response

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        call = read_chat_call(await self._runner.body(request), request_id=given_request_id(request))
        return await self._runner.run(request, call, COMPLETIONS)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        call = read_completion_call(
            await self._runner.body(request), request_id=given_request_id(request), max_prompts=self._max_prompts
        )
        call = await with_texts(call, self._backend.detokenize)
        return await self._runner.run(request, call, COMPLETIONS)

    async def _tokenize(self, request: web.Request) -> web.Response:
        call = read_tokenize_call(await self._runner.body(request))
        ids = await self._backend.tokenize(call.request, special_tokens=call.special_tokens)
        texts = self._backend.token_texts(call.request.model, ids) if call.texts else None
        models = [model for model in self._backend.models() if call.request.model in ("", model.name)]
        return json_response(tokens_object(ids, texts, models[0].max_model_len_tokens))

    async def _detokenize(self, request: web.Request) -> web.Response:
        return json_response(
            {"prompt": await self._backend.detokenize(*read_detokenize_call(await self._runner.body(request)))}
        )

    async def _models(self, request: web.Request) -> web.Response:
        return json_response({"object": "list", "data": [model_object(model) for model in self._backend.models()]})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        for model in self._backend.models():
            if model.name == name:
                return json_response(model_object(model))
        raise ModelNotFound("no such model is served here; GET /v1/models lists them")

    async def _status(self, request: web.Request) -> web.Response:
        return json_response(to_json(self._backend.status()))

    async def _version(self, request: web.Request) -> web.Response:
        return json_response({"version": self._backend.status().version})

    async def _openapi(self, request: web.Request) -> web.Response:
        return json_response(document(self._backend.status().version))

    async def _health(self, request: web.Request) -> web.Response:
        return json_response({"status": "ok"})


async def serve_http(
    backend: Backend,
    settings: GatewaySettings,
    authentication: Authentication | None = None,
    *,
    count_ignored: Callable[[str], object] = lambda _: None,
) -> tuple[web.AppRunner, int]:
    """Start the HTTP server; returns its runner (``await runner.cleanup()`` ends it) and its port.

    ``count_ignored`` is called with the name of each field that was let through without effect; there are few names.

    Raises:
        ConfigError: the address cannot be listened on, or a certificate cannot be used.
    """
    authentication = authentication or Authentication()
    server = HttpServer(backend, settings, authentication, count_ignored)
    app = server.app()
    app.on_shutdown.extend([lambda _: server.sweeper.stop(), lambda _: server.responses.close()])
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        # `body` inflates, within its limit and behind the authentication.
        auto_decompress=False,
        logger=server_log,
        lingering_time=LINGER_S,
        shutdown_timeout=SHUTDOWN_S,
        max_line_size=settings.max_header_bytes,
        max_field_size=settings.max_header_bytes,
        keepalive_timeout=settings.body_timeout_s,
    )
    await runner.setup()
    try:
        await listen(runner, settings.host, settings.http_port, backlog=1024, ssl_context=authentication.ssl_context())
    except OSError as error:
        await runner.cleanup()
        name = f"gateway.http_port={settings.http_port}"
        raise ConfigError(f"{name}: cannot listen on {settings.host}: {error.strerror}") from error
    server.sweeper.start(runner)
    port: int = runner.addresses[0][1]
    return runner, port


@web.middleware
async def _errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every failure in the form of the path's dialect."""
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPException as error:
        return _http_error(error, _error_form(request))
    except Exception as error:
        return failed(error, request_id(request), _error_form(request))
    return response


def _authorization(request: web.Request) -> str:
    """The ``Authorization`` header, or the key that Anthropic's clients send in one of their own."""
    key = request.headers.get("x-api-key")
    return request.headers.get("Authorization") or (f"Bearer {key}" if key else "")


def _error_form(request: web.Request) -> ErrorForm:
    """How the callers of a path read errors."""
    return anthropic_error if request.path.startswith(MESSAGES_PATH) else openai_error


def _http_error(error: web.HTTPException, form: ErrorForm) -> web.Response:
    """What aiohttp itself refuses: an unknown path, a wrong method, a broken header."""
    headers = {}
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            headers["Allow"] = allowed
            text = f"this path takes {allowed} only"
        case web.HTTPNotFound():
            text = (
                "no such path; this server has /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages "
                "and /v1/models"
            )
        case _:
            text = error.reason
    return json_response(form(InvalidRequest(text)), status=error.status, headers=headers)
