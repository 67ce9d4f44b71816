"""What every dialect that generates has in common: one piece of code runs them all."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from cluster.errors import WorkerDied
from cluster.spec.config import GatewaySettings
from interface.http.event_stream import COMMENT
from interface.http.server import serve_http
from tests.fakes.backend import MODEL, FakeBackend, Stall, admitted, delta, finished, first_token, reply, script
from tests.interface.conftest import SETTINGS, Edge

MESSAGES = [{"role": "user", "content": "Hi"}]
DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": MESSAGES},
    "/v1/responses": {"model": MODEL, "input": "Hi"},
    "/v1/messages": {"model": MODEL, "messages": MESSAGES, "max_tokens": 9},
}
LAST = {"/v1/chat/completions": b"[DONE]", "/v1/responses": b"response.completed", "/v1/messages": b"message_stop"}
every = pytest.mark.parametrize("path", DIALECTS)


@asynccontextmanager
async def serving(backend: FakeBackend, **settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
    runner, port = await serve_http(backend, GatewaySettings(grpc_port=0, http_port=0, **settings))
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session
    finally:
        await runner.cleanup()


@every
async def test_a_silent_stream_gets_comments_before_its_first_event_and_after(path: str) -> None:
    admit, go_on = asyncio.Event(), asyncio.Event()
    steps = [admit, admitted(), first_token(), delta("Hel"), go_on, delta("lo", finish="STOP"), finished()]
    async with (
        serving(FakeBackend(script(*steps)), http_keep_alive_s=0.02) as session,
        session.post(path, json={**DIALECTS[path], "stream": True}) as answer,
    ):
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert await answer.content.readuntil(b"\n\n") == COMMENT
        admit.set()
        while (data := await answer.content.readuntil(b"\n\n")) == COMMENT or b"Hel" not in data:
            pass
        while await answer.content.readuntil(b"\n\n") != COMMENT:
            pass
        go_on.set()
        rest = await answer.content.read()
    assert LAST[path] in rest.split(b"\n\n")[-2]


@every
async def test_an_error_after_a_comment_is_an_event(path: str) -> None:
    fail = asyncio.Event()
    async with (
        serving(FakeBackend(script(fail, WorkerDied("gone"))), http_keep_alive_s=0.02) as session,
        session.post(path, json={**DIALECTS[path], "stream": True}) as answer,
    ):
        assert await answer.content.readuntil(b"\n\n") == COMMENT
        fail.set()
        rest = await answer.content.read()
    assert b'"gone"' in rest
    assert answer.status == 200


@every
async def test_a_reader_that_stops_loses_its_request(path: str) -> None:
    def endless(_: object) -> Any:
        yield admitted()
        while True:
            yield delta("x" * 10_000)

    backend = FakeBackend(endless)
    async with (
        serving(backend, slow_reader_timeout_s=0.05) as session,
        session.post(path, json={**DIALECTS[path], "stream": True}) as answer,
    ):
        await answer.content.readuntil(b"\n\n")
        await asyncio.wait_for(backend.cancelled.wait(), 10)


@every
@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_that_disconnects_ends_its_request(edge: Edge, path: str, stream: bool) -> None:
    edge.backend.script = script(admitted(), Stall())
    task = asyncio.create_task(edge.post(path, {**DIALECTS[path], "stream": stream}))
    await edge.backend.started.wait()
    task.cancel()
    await asyncio.wait_for(edge.backend.cancelled.wait(), 10)


@every
async def test_a_deadline_already_past(edge: Edge, path: str) -> None:
    status, answer = await edge.post(path, {**DIALECTS[path], "deadline_s": 0})
    assert status == 504
    assert "deadline" in answer["error"]["message"]
    assert edge.backend.requests == []


@every
async def test_ids_priority_and_session(edge: Edge, path: str) -> None:
    body = {**DIALECTS[path], "priority": 3, "session_id": "mine"}
    async with edge.session.post(f"{edge.url}{path}", json=body, headers={"X-Request-Id": "r-1"}) as answer:
        assert (answer.status, answer.headers["X-Request-Id"]) == (200, "r-1")
    [request] = edge.backend.requests
    assert (request.request_id, request.priority, request.session) == ("r-1", -3, "mine")


@every
async def test_kv_transfer_params_never_get_through(edge: Edge, path: str) -> None:
    assert (await edge.post(path, {**DIALECTS[path], "kv_transfer_params": None}))[0] == 400
    assert edge.backend.requests == []


@every
async def test_ignored_fields_are_counted_and_the_access_log_has_no_text(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    counted: Counter[str] = Counter()
    settings = SETTINGS.model_copy(update={"access_log": True})
    runner, port = await serve_http(FakeBackend(reply()), settings, count_ignored=lambda name: counted.update([name]))
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            for more in ({"stream": True}, {"wat": "secret"}):
                async with session.post(path, json={**DIALECTS[path], "service_tier": "auto", **more}) as answer:
                    await answer.read()
    finally:
        await runner.cleanup()
    assert counted == {"service_tier": 1}
    lines = [record.getMessage() for record in caplog.records if record.name == "baton.access"]
    assert [(json.dumps(path) in line, "status=" in line) for line in lines] == [(True, True)] * 2
    assert "secret" not in caplog.text
    assert "Hello" not in caplog.text


@every
async def test_a_page_of_an_allowed_origin_may_call_it(path: str) -> None:
    backend = FakeBackend(reply())
    async with (
        serving(backend, cors_origins=("https://chat.example",)) as session,
        session.post(path, json=DIALECTS[path], headers={"Origin": "https://chat.example"}) as answer,
    ):
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://chat.example")
