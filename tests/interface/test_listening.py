"""`::` is every address of both families, over HTTP as over gRPC."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest
from aiohttp import ClientSession, web

from interface.authentication import Authentication
from interface.listening import listen


async def answers(host: str, address: str) -> bool:
    """Whether a server that listens on a host is reached at an address."""
    app = web.Application()
    app.add_routes([web.get("/", _ok)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await listen(runner, host, 0)
        port = runner.addresses[0][1]
        async with ClientSession() as session:
            try:
                async with session.get(f"http://{address}:{port}/") as reply:
                    return reply.status == 200
            except OSError:
                return False
    finally:
        await runner.cleanup()


async def _ok(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def test_ipv4_is_reached_at_every_address() -> None:
    assert await answers("::", "127.0.0.1")
    assert await answers("127.0.0.1", "127.0.0.1")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_ipv6_is_reached_at_every_address() -> None:
    assert await answers("::", "[::1]")
    assert not await answers("0.0.0.0", "[::1]")


async def test_without_ipv6_it_is_every_ipv4_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert await answers("::", "127.0.0.1")


async def test_grpc_means_the_same_by_it() -> None:
    server = grpc.aio.server()
    port = Authentication().bind(server, "[::]:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            async with asyncio.timeout(20):
                await channel.channel_ready()
    finally:
        await server.stop(None)
