"""Which web pages may use the gateway: preflights, headers of every reply, and the allow-list in the spec."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.spec.config import SecuritySettings, parse
from interface.api_keys import add_to_file, make_key
from interface.authentication import Authentication
from interface.http.cors import Cors
from interface.http.server import serve_http
from tests.fakes.backend import MODEL, FakeBackend
from tests.interface.conftest import SETTINGS

HERE, ELSEWHERE = "https://chat.example", "https://elsewhere.example"
PATH = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


@asynccontextmanager
async def serving(*origins: str, keys: Path | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """A server with these origins, which asks for a key where there is a file of them."""
    settings = SETTINGS.model_copy(update={"cors_origins": origins})
    security = SecuritySettings(api_keys_file=str(keys)) if keys else None
    runner, port = await serve_http(FakeBackend(), settings, Authentication(security))
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session
    finally:
        await runner.cleanup()


def add_key(path: Path, tenant: str) -> str:
    key, entry = make_key(tenant)
    add_to_file(path, entry)
    return key


def cors(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {
        name: value for name, value in answer.headers.items() if name.startswith("Access-Control") or name == "Vary"
    }


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    add_key(path, "acme")
    return path


async def test_a_preflight_of_an_allowed_origin_needs_no_key(keys: Path) -> None:
    async with (
        serving("http://localhost:3000", HERE, keys=keys) as session,
        session.options(PATH, headers={"Origin": HERE, **PREFLIGHT}) as answer,
    ):
        assert (answer.status, await answer.read()) == (204, b"")
        found = cors(answer)
    assert found["Access-Control-Allow-Origin"] == HERE
    assert found["Access-Control-Allow-Credentials"] == "true"
    assert "POST" in found["Access-Control-Allow-Methods"]
    assert found["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert found["Vary"] == "Origin"


async def test_a_preflight_of_another_origin_is_refused(keys: Path) -> None:
    for origin in (ELSEWHERE, "null", "http://chat.example", f"{HERE}:8443", f"{HERE}.evil.example", "*"):
        async with (
            serving(HERE, keys=keys) as session,
            session.options(PATH, headers={"Origin": origin, **PREFLIGHT}) as answer,
        ):
            assert answer.status == 403
            assert "gateway.cors_origins" in (await answer.json())["error"]["message"]
            assert cors(answer) == {"Vary": "Origin"}


async def test_without_origins_nothing_changes() -> None:
    async with serving() as session:
        async with session.options(PATH, headers={"Origin": HERE, **PREFLIGHT}) as answer:
            assert (answer.status, cors(answer)) == (405, {})
        async with session.post(PATH, json=BODY, headers={"Origin": HERE}) as answer:
            assert (answer.status, cors(answer)) == (200, {})


async def test_options_that_are_no_preflight_are_not_answered() -> None:
    async with serving(HERE) as session, session.options(PATH, headers={"Origin": HERE}) as answer:
        assert answer.status == 405


async def test_every_reply_to_an_allowed_page_can_be_read_by_it(keys: Path) -> None:
    """Whole replies, streams, and errors from every place."""
    cases = [
        ("POST", PATH, BODY, True, 200),
        ("POST", PATH, {**BODY, "stream": True}, True, 200),
        ("POST", PATH, {**BODY, "wat": 1}, True, 400),
        ("POST", PATH, {**BODY, "stream": True, "deadline_s": 0}, True, 504),
        ("POST", PATH, BODY, False, 401),
        ("GET", PATH, None, True, 405),
        ("GET", "/no/such", None, True, 404),
        ("GET", "/v1/models", None, True, 200),
    ]
    key = add_key(keys, "pages")
    async with serving(HERE, keys=keys) as session:
        for method, path, body, has_key, status in cases:
            headers = {"Authorization": f"Bearer {key}"} if has_key else {}
            for origin in (HERE, ELSEWHERE):
                more = {**headers, "Origin": origin}
                async with session.request(method, path, json=body, headers=more) as answer:
                    assert answer.status == status, (method, path)
                    found = cors(answer)
                assert found["Vary"] == "Origin"
                assert found.get("Access-Control-Allow-Origin") == (HERE if origin == HERE else None)
                if origin == HERE:
                    assert "X-Request-Id" in found["Access-Control-Expose-Headers"]
            async with session.request(method, path, json=body, headers=headers) as answer:
                assert cors(answer) == {"Vary": "Origin"}


async def test_any_origin_gets_no_credentials() -> None:
    async with serving("*") as session:
        async with session.options(PATH, headers={"Origin": ELSEWHERE, **PREFLIGHT}) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in answer.headers
        async with session.post(PATH, json=BODY, headers={"Origin": ELSEWHERE}) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in answer.headers


@given(
    allowed=st.lists(st.sampled_from([HERE, "http://a", "http://b:1"]), max_size=3) | st.just(["*"]),
    origin=st.none() | st.sampled_from([HERE, ELSEWHERE, "http://a", "http://b", "null", "*", ""]),
)
def test_no_origin_but_the_listed_is_allowed(allowed: list[str], origin: str | None) -> None:
    found = Cors(allowed).headers(origin)
    given_to = found.get("Access-Control-Allow-Origin")
    assert given_to in (None, "*", origin)
    assert (given_to is not None) == bool(origin and (allowed == ["*"] or origin in allowed))
    assert not (given_to == "*" and "Access-Control-Allow-Credentials" in found)
    # What a cache may keep for one origin must not be served to another.
    assert given_to in (None, "*") or found["Vary"] == "Origin"


SPEC = """
model: {path: m, served_name: m, max_model_len_tokens: 64}
pools: {prefill: {replicas: 1}, decode: {replicas: 1}}
gateway: {cors_origins: %s}
"""


@pytest.mark.parametrize(
    "origins", ["[]", "['*']", "['https://a.example', 'http://localhost:3000']", "['chrome-extension://abcdef']"]
)
def test_origins_of_the_spec(origins: str) -> None:
    parse(SPEC % origins)


@pytest.mark.parametrize(
    "origin",
    ["'https://a.example/'", "a.example", "'https://A.example'", "'https://a.example/x'", "''", "'*', 'http://a'"],
)
def test_origins_that_no_browser_sends_are_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.cors_origins"):
        parse(SPEC % f"[{origin}]")
