from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from cluster.spec.config import GatewaySettings
from interface.grpc_server import serve_grpc
from interface.http.server import serve_http
from tests.fakes.backend import FakeBackend, reply

LIMIT_BYTES = 64 << 10
SETTINGS = GatewaySettings(grpc_port=0, http_port=0, max_request_bytes=LIMIT_BYTES)


@dataclass
class Edge:
    """Both servers over one fake backend, and an HTTP session."""

    backend: FakeBackend
    grpc_address: str
    url: str
    session: aiohttp.ClientSession

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        async with self.session.post(f"{self.url}{path}", json=body, headers=headers) as reply:
            return reply.status, await reply.json()

    async def chat(self, **body: Any) -> tuple[int, Any]:
        body = {"model": "tiny-thinker", "messages": [{"role": "user", "content": "Hi"}], **body}
        return await self.post("/v1/chat/completions", body)

    async def complete(self, **body: Any) -> tuple[int, Any]:
        return await self.post("/v1/completions", {"model": "tiny-thinker", "prompt": "Hi", **body})

    async def stream(self, path: str, **body: Any) -> list[bytes]:
        async with self.session.post(f"{self.url}{path}", json={**body, "stream": True}) as reply:
            assert reply.status == 200, await reply.text()
            data = await reply.read()
        assert data.endswith(b"\n\n")
        return data.removesuffix(b"\n\n").split(b"\n\n")


@pytest.fixture
async def edge(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Edge]:
    caplog.set_level(logging.INFO, logger="baton.api")
    backend = FakeBackend()
    server, grpc_port = await serve_grpc(backend, SETTINGS)
    runner, http_port = await serve_http(backend, SETTINGS)
    async with aiohttp.ClientSession() as session:
        yield Edge(backend, f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}", session)
    await runner.cleanup()
    await server.stop(0)
    assert backend.running == 0


@pytest.fixture(scope="session")
def server_thread() -> Iterator[tuple[FakeBackend, str]]:
    """A gRPC server in a thread of its own, as a sync client or a command finds it, and its backend."""
    loop = asyncio.new_event_loop()
    backend = FakeBackend()
    server, port = loop.run_until_complete(serve_grpc(backend, SETTINGS))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield backend, f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def served(server_thread: tuple[FakeBackend, str]) -> tuple[FakeBackend, str]:
    """That server, with a backend that has seen nothing and says Hello."""
    backend, address = server_thread
    backend.script = reply()
    backend.requests.clear()
    backend.cancelled.clear()
    return backend, address
