"""Request ids in every reply, and an access log without a word of the caller's."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.spec.config import SecuritySettings
from interface.access_log import request_id_of
from interface.api_keys import add_to_file, make_key
from interface.authentication import Authentication
from interface.http.server import serve_http
from tests.fakes.backend import MODEL, FakeBackend, Stall, admitted, delta, script
from tests.interface.conftest import SETTINGS, Edge

CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "SECRET"}]}


@asynccontextmanager
async def serving(
    backend: FakeBackend, *, access_log: bool = True, security: SecuritySettings | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    settings = SETTINGS.model_copy(update={"access_log": access_log})
    runner, port = await serve_http(backend, settings, Authentication(security))
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session
    finally:
        await runner.cleanup()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """What the access log has, line by line."""
    caplog.set_level(logging.INFO, logger="baton.access")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "baton.access"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", None, 200),
        ("GET", "/no/such", None, 404),
        ("GET", CHAT, None, 405),
        ("POST", CHAT, [], 400),
        ("POST", CHAT, {**BODY, "wat": 1}, 400),
        ("POST", CHAT, BODY, 200),
        ("POST", CHAT, {**BODY, "stream": True}, 200),
        ("POST", "/tokenize", {}, 400),
    ],
)
async def test_every_reply_has_an_id(edge: Edge, method: str, path: str, body: Any, status: int) -> None:
    for given_id in (None, "mine"):
        headers = {} if given_id is None else {"X-Request-Id": given_id}
        async with edge.session.request(method, f"{edge.url}{path}", json=body, headers=headers) as answer:
            assert answer.status == status
            [own_id] = answer.headers.getall("X-Request-Id")
        assert own_id == given_id if given_id else re.fullmatch("[0-9a-f]{32}", own_id)
        if edge.backend.requests:
            assert edge.backend.requests.pop().request_id == own_id


async def test_an_id_in_the_body_goes_before_the_headers(edge: Edge) -> None:
    async with edge.session.post(
        f"{edge.url}{CHAT}", json={**BODY, "request_id": "body"}, headers={"X-Request-Id": "header"}
    ) as answer:
        assert answer.headers.getall("X-Request-Id") == ["body"]
    assert edge.backend.requests[0].request_id == "body"


async def test_an_id_that_is_none_is_refused_under_another(edge: Edge) -> None:
    async with edge.session.post(f"{edge.url}{CHAT}", json=BODY, headers={"X-Request-Id": "two words"}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == "request_id"
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])


async def test_a_request_refused_before_the_middlewares_gets_its_answer(edge: Edge) -> None:
    async with edge.session.get(f"{edge.url}/health", headers={"Expect": "wat"}) as answer:
        assert answer.status == 417


async def test_the_log_has_a_line_for_each_call_and_no_text(tmp_path: Path, lines: Any) -> None:
    key, entry = make_key("acme corp")
    add_to_file(tmp_path / "keys", entry)
    headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "id-7", "User-Agent": "SECRET", "Referer": "SECRET"}
    calls: list[tuple[str, str, Any, dict[str, str], str]] = [
        ("POST", CHAT, BODY, headers, f'method="POST" path="{CHAT}" status=200'),
        ("POST", CHAT, {**BODY, "stream": True, "user": "SECRET"}, headers, f'method="POST" path="{CHAT}" status=200'),
        ("POST", CHAT, {**BODY, "SECRET": 1}, headers, f'method="POST" path="{CHAT}" status=400'),
        ("GET", "/v1/models/SECRET?q=SECRET", None, headers, 'method="GET" path="/v1/models/{model}" status=404'),
        ("GET", "/SECRET", None, headers, 'method="GET" path="unknown" status=404'),
        ("GET", "/health", None, {}, 'method="GET" path="/health" status=200'),
        ("GET", "/v1/models", None, {"Authorization": "SECRET"}, 'method="GET" path="/v1/models" status=401'),
    ]
    async with serving(FakeBackend(), security=SecuritySettings(api_keys_file=str(tmp_path / "keys"))) as session:
        for number, (method, path, body, head, start) in enumerate(calls):
            async with session.request(method, path, json=body, headers=head) as answer:
                data = await answer.read()
                own_id = answer.headers["X-Request-Id"]
            # A stream's line is written once its end is sent.
            async with asyncio.timeout(10):
                while len(lines()) <= number:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            line = lines()[number]
            found = re.fullmatch(rf"{re.escape(start)} sent_bytes=(\d+) duration_s=\d+\.\d{{4}} peer=.*", line)
            assert found, line
            # A stream's are counted with what HTTP puts around them.
            assert int(found[1]) >= len(data) if b"data: " in data else int(found[1]) == len(data)
            assert f'peer="127.0.0.1" request_id="{own_id}"' in line
            assert line.endswith(' tenant="acme corp"') == (head is headers)
    assert len(lines()) == len(calls)
    assert not any("SECRET" in line or key in line for line in lines())


async def test_a_caller_that_disconnects_is_logged(lines: Any) -> None:
    backend = FakeBackend(script(admitted(), delta("Hel"), Stall()))
    async with serving(backend) as session:
        async with session.post(CHAT, json={**BODY, "stream": True}) as answer:
            await answer.content.readuntil(b"\n\n")
            answer.close()
        await asyncio.wait_for(backend.idle.wait(), 10)
        async with asyncio.timeout(10):
            while not lines():  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    assert "status=499" in lines()[0]


async def test_nothing_is_logged_unless_asked_for(lines: Any) -> None:
    async with serving(FakeBackend(), access_log=False) as session, session.post(CHAT, json=BODY) as answer:
        assert answer.status == 200
    assert lines() == []


@given(st.text(max_size=130))
def test_any_id_is_visible_ascii(given_id: str) -> None:
    own_id = request_id_of(given_id)
    assert re.fullmatch(r"[!-~]{1,128}", own_id)
    assert own_id == given_id or not re.fullmatch(r"[!-~]{1,128}", given_id)
