"""Comments in streams that are silent: they come, change nothing of the events, and hide no reader that stopped."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from cluster.errors import ConfigError, WorkerDied
from cluster.spec.config import GatewaySettings, parse
from interface.http.event_stream import COMMENT
from interface.http.server import serve_http
from tests.fakes.backend import MODEL, FakeBackend, Stall, admitted, delta, finished, first_token, script

OFTEN_S = 0.02
PATH = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "request_id": "mine", "stream": True}


@asynccontextmanager
async def serving(
    backend: FakeBackend, keep_alive_s: float | None, **more: Any
) -> AsyncIterator[aiohttp.ClientSession]:
    settings = GatewaySettings(grpc_port=0, http_port=0, http_keep_alive_s=keep_alive_s, **more)
    runner, port = await serve_http(backend, settings)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session
    finally:
        await runner.cleanup()


async def until(answer: aiohttp.ClientResponse, comments: int) -> bytes:
    """What comes up to so many comments."""
    data = b""
    async with asyncio.timeout(20):
        while data.count(COMMENT) < comments:
            data += await answer.content.readuntil(b"\n\n")
    return data


def events(data: bytes) -> bytes:
    """The stream without its comments; every piece between blank lines is one or the other, whole."""
    pieces = data.split(b"\n\n")
    assert pieces.pop() == b""
    assert all(piece.startswith(b"data: ") or piece + b"\n\n" == COMMENT for piece in pieces)
    kept = b"".join(piece + b"\n\n" for piece in pieces if piece + b"\n\n" != COMMENT)
    return re.sub(rb'"created":\d+', b'"created":0', kept)


async def whole(backend: FakeBackend) -> bytes:
    """What a client gets without keep-alive."""
    async with serving(backend, None) as session, session.post(PATH, json=BODY) as answer:
        data = await answer.read()
    assert COMMENT not in data
    return events(data)


@pytest.mark.parametrize("silent_at", [0, 1, 2, 3, 4])
async def test_a_silent_stream_gets_comments_and_its_events_stay_the_same(silent_at: int) -> None:
    steps: list[Any] = [admitted(), first_token(), delta("Hel"), delta("lo", finish="STOP"), finished()]
    expected = await whole(FakeBackend(script(*steps)))
    go_on = asyncio.Event()
    backend = FakeBackend(script(*steps[:silent_at], go_on, *steps[silent_at:]))
    async with serving(backend, OFTEN_S) as session, session.post(PATH, json=BODY) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert answer.headers["X-Request-Id"] == "mine"
        data = await until(answer, comments=3)
        go_on.set()
        data += await answer.read()
    assert events(data) == expected


async def test_no_comment_is_inside_an_event() -> None:
    """Large events, comments all the time, and a reader that reads in small pieces."""
    steps = [
        admitted(),
        *(delta("x" * size) for size in [1, 100_000, 7, 300_000] * 5),
        delta("", finish="STOP"),
        finished(),
    ]
    expected = await whole(FakeBackend(script(*steps)))
    async with serving(FakeBackend(script(*steps)), 1e-6) as session, session.post(PATH, json=BODY) as answer:
        data = b""
        while piece := await answer.content.read(10_000):
            data += piece
            await asyncio.sleep(0)
    assert COMMENT in data
    assert events(data) == expected


async def test_an_error_before_the_first_comment_has_its_status_and_later_is_an_event() -> None:
    fail = asyncio.Event()
    backend = FakeBackend(script(admitted(), fail, WorkerDied("no worker is left")))
    async with serving(backend, OFTEN_S) as session:
        async with session.post(PATH, json=BODY) as answer:
            assert answer.status == 200
            await until(answer, comments=1)
            fail.set()
            data = await answer.read()
        assert b'"code": "worker_died"' in data
        assert data.endswith(b"data: [DONE]\n\n")
        # The event is set, so this one fails at once.
        async with session.post(PATH, json=BODY) as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "worker_died"


@pytest.mark.parametrize("texts", [(), ("Hel",)])
async def test_leaving_a_silent_stream_cancels_it(texts: tuple[str, ...]) -> None:
    backend = FakeBackend(script(admitted(), *map(delta, texts), Stall()))
    async with serving(backend, OFTEN_S) as session:
        async with session.post(PATH, json=BODY) as answer:
            await until(answer, comments=2)
            answer.close()
        await asyncio.wait_for(backend.cancelled.wait(), 20)
        await asyncio.wait_for(backend.idle.wait(), 20)


async def test_comments_do_not_hide_a_reader_that_stopped() -> None:
    def endless(_: object) -> Any:
        yield admitted()
        while True:
            yield delta("x" * 10_000)

    backend = FakeBackend(endless)
    async with (
        serving(backend, 0.01, slow_reader_timeout_s=0.5) as session,
        session.post(PATH, json=BODY) as answer,
    ):
        await answer.content.readuntil(b"\n\n")
        await asyncio.wait_for(backend.cancelled.wait(), 20)
        answer.close()


async def test_openais_client_passes_over_comments() -> None:
    openai = pytest.importorskip("openai")
    begin, go_on = asyncio.Event(), asyncio.Event()
    backend = FakeBackend(script(admitted(), begin, delta("Hel"), go_on, delta("lo", finish="STOP"), finished()))
    texts: list[str | None] = []
    async with (
        serving(backend, OFTEN_S) as session,
        session.get("/health") as health,
        openai.AsyncOpenAI(base_url=str(health.url.with_path("/v1")), api_key="-", max_retries=0, timeout=20) as client,
    ):
        messages = [{"role": "user", "content": "Hi"}]
        # It answers before the first token: with a comment.
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        begin.set()
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content)
            if len(texts) == 1:
                await asyncio.sleep(5 * OFTEN_S)
                go_on.set()
    assert texts == ["Hel", "lo"]


async def test_the_setting() -> None:
    text = "model: {path: m, served_name: m, max_model_len_tokens: 64}\n"
    text += "pools: {prefill: {replicas: 1}, decode: {replicas: 1}}\n"
    assert parse(text).gateway.http_keep_alive_s == 15
    assert parse(text + "gateway: {http_keep_alive_s: null}").gateway.http_keep_alive_s is None
    with pytest.raises(ConfigError, match=r"gateway\.http_keep_alive_s"):
        parse(text + "gateway: {http_keep_alive_s: 0}")
