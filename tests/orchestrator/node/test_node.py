"""A pod's process over a `ray` of the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from baton.internal.v1 import registry_pb2
from cluster.errors import ConfigError, WorkerDied
from orchestrator.node.node import Node, NodeSettings, worker_processes

SPEC = """
model: {path: m, served_name: m, max_model_len_tokens: 1024}
pools: {prefill: {replicas: 1}, decode: {replicas: 1}}
"""
RAY = ["ray", "start", "--port=6380", "--block"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    return NodeSettings(spec, f"127.0.0.1:{free_port()}", "127.0.0.1", free_port())


def fake_ray(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program called ray, first on the path."""
    path = folder / "bin" / "ray"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nimport signal, sys, time\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")


async def get(settings: NodeSettings, path: str, **headers: str) -> tuple[int, str]:
    """As soon as the port answers."""
    url = f"http://127.0.0.1:{settings.probe_port}{path}"
    async with asyncio.timeout(30), aiohttp.ClientSession(headers=headers) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientConnectorError):
                async with session.get(url) as reply:
                    return reply.status, await reply.text()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("command", [["sh", "-c", "true"], ["ray", "start"], ["ray", "stop", "--block"], []])
async def test_what_does_not_start_ray_is_refused(settings: NodeSettings, command: list[str]) -> None:
    with pytest.raises(ConfigError, match="ray start"):
        await Node(settings, command).run()


async def test_a_taken_probe_port_is_named(settings: NodeSettings) -> None:
    with (
        socket.create_server(("127.0.0.1", settings.probe_port)),
        pytest.raises(ConfigError, match=f"--probe-port {settings.probe_port}"),
    ):
        await Node(settings, RAY).run()


async def test_when_ray_ends_the_pod_ends(
    settings: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ray(tmp_path, monkeypatch, "sys.exit(3)")
    with pytest.raises(WorkerDied, match="ray ended with status 3"):
        async with asyncio.timeout(60):
            await Node(settings, RAY).run()


async def test_probes_say_what_is_waited_for_and_a_signal_ends_ray(
    settings: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ray(
        tmp_path,
        monkeypatch,
        "def end(*_):\n    print('asked', file=open(sys.path[0] + '/ended', 'w'), flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nopen(sys.path[0] + '/up', 'w').close()\ntime.sleep(600)",
    )
    node = asyncio.create_task(Node(settings, RAY).run())
    try:
        assert (await get(settings, "/livez"))[0] == 200
        status, why = await get(settings, "/readyz")
        assert status == 503
        assert why.strip() in ("starting", "waiting for a worker")
        async with asyncio.timeout(30):
            while not (tmp_path / "bin" / "up").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(60):
            await node
    finally:
        node.cancel()
        await asyncio.gather(node, return_exceptions=True)
    assert (tmp_path / "bin" / "ended").read_text() == "asked\n"


def test_the_heads_controller_has_the_nodes_settings(settings: NodeSettings) -> None:
    from dataclasses import replace

    head = replace(settings, head=True, lease=True, node_labels=True, domain_label="rack")
    command = Node(head, RAY)._controller_command()
    assert command[1:3] == ["-m", "orchestrator.controller.controller_main"]
    said = dict(zip(command[3:11:2], command[4:12:2], strict=True))
    assert said == {
        "--spec": str(settings.spec), "--listen": settings.controller, "--address": "127.0.0.1:6380",
        "--placement-timeout-s": "1800",
    }  # fmt: skip
    assert command[11:] == ["--lease", "--node-labels", "--domain-label", "rack"]


@contextlib.asynccontextmanager
async def worker_metrics(text: str, key: str) -> AsyncIterator[str]:
    """A worker's metrics, for those that have the key."""

    async def answer(request: web.Request) -> web.Response:
        known = request.headers.get("Authorization") == f"Bearer {key}"
        return web.Response(text=text if known else "no key", status=200 if known else 401)

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_metrics_of_this_pods_workers_open_to_no_more_than_theirs(settings: NodeSettings) -> None:
    node = Node(settings, RAY)
    runner = await node._serve()
    try:
        async with worker_metrics("a 1\n", "k") as first, worker_metrics("b 2\n", "k") as second:
            elsewhere = registry_pb2.Member(worker_id="c", address="10.9.9.9:1", metrics_address="10.9.9.9:2")
            dead = registry_pb2.Member(worker_id="d", address="127.0.0.1:1", metrics_address=f"127.0.0.1:{free_port()}")
            here = [registry_pb2.Member(address="127.0.0.1:1", metrics_address=each) for each in (first, second)]
            node._take_members(registry_pb2.WatchMembersResponse(members=[*here, elsewhere, dead]))
            assert await get(settings, "/metrics", Authorization="Bearer k") == (200, "a 1\nb 2\n")
            assert await get(settings, "/metrics") == (401, "no key")
    finally:
        await runner.cleanup()


def test_a_process_that_is_no_worker_is_not_counted() -> None:
    assert worker_processes(os.getpid()) == []
