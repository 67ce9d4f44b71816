"""The endpoints beside the generating ones: health, version, models; HEAD, and paths that end with a slash."""

from __future__ import annotations

import aiohttp
import pytest

from interface.authentication import Authentication
from interface.http.server import serve_http
from tests.fakes.backend import MODEL, FakeBackend
from tests.interface.conftest import SETTINGS, Edge

GETS = ["/health", "/v1/health", "/ping", "/version", "/v1/status", "/v1/models", f"/v1/models/{MODEL}"]


async def get(edge: Edge, path: str, method: str = "GET") -> tuple[int, bytes]:
    async with edge.session.request(method, f"{edge.url}{path}", allow_redirects=False) as answer:
        return answer.status, await answer.read()


@pytest.mark.parametrize("path", GETS)
async def test_a_path_may_end_with_a_slash_and_be_asked_by_head(edge: Edge, path: str) -> None:
    whole = await get(edge, path)
    assert whole[0] == 200
    assert await get(edge, f"{path}/") == whole
    for each in (path, f"{path}/"):
        async with edge.session.head(f"{edge.url}{each}") as answer:
            assert (answer.status, await answer.read()) == (200, b"")
            assert int(answer.headers["Content-Length"]) == len(whole[1])


async def test_generating_paths_may_end_with_a_slash(edge: Edge) -> None:
    body = {"model": MODEL, "prompt": "Hi"}
    assert (await edge.post("/v1/completions/", body))[0] == 200
    messages = [{"role": "user", "content": "Hi"}]
    assert (await edge.post("/v1/chat/completions/", {"model": MODEL, "messages": messages}))[0] == 200


async def test_health_and_version(edge: Edge) -> None:
    for path in ("/health", "/v1/health", "/ping"):
        assert await get(edge, path) == (200, b'{"status":"ok"}')
    assert await get(edge, "/ping", "POST") == (200, b'{"status":"ok"}')
    assert await get(edge, "/version") == (200, b'{"version":"0"}')


@pytest.mark.parametrize("path", ["/v1/models//", "/v1/models/no-such", "/v1/models/no/such/", "/v1", "/", "//health"])
async def test_unknown_paths_stay_unknown(edge: Edge, path: str) -> None:
    assert (await get(edge, path))[0] == 404


async def test_head_of_a_generating_path_says_what_it_takes(edge: Edge) -> None:
    async with edge.session.head(f"{edge.url}/v1/completions") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")


class Closed(Authentication):
    """Asks for a key, and takes none."""

    @property
    def is_guarded(self) -> bool:
        return True


async def test_health_alone_needs_no_key() -> None:
    runner, port = await serve_http(FakeBackend(), SETTINGS, Closed())
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            for path in [*GETS, "/v1/health/", "/ping/", "/version/", "/nothing"]:
                async with session.get(path) as answer:
                    is_open = path.strip("/") in {"health", "v1/health", "ping"}
                    assert answer.status == (200 if is_open else 401), path
    finally:
        await runner.cleanup()
