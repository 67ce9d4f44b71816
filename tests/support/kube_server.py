"""As much of a Kubernetes API server as a laptop's commands need: pods by label, forwarded ports, commands in pods.

Ports and commands are real ones of this machine, spoken in the API server's websocket protocol (v4.channel.k8s.io).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

PROTOCOL = "v4.channel.k8s.io"
STDOUT, STDERR, ERROR = 1, 2, 3


@dataclass
class KubeServer:
    """What the server knows, and what was asked of it."""

    url: str = ""
    pods: list[dict[str, Any]] = field(default_factory=list)
    ports: dict[int, int] = field(default_factory=dict)
    """Port of this machine behind each port of a pod."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment of commands."""
    programs: dict[str, list[str]] = field(default_factory=dict)
    """What runs in place of a program of the image."""
    forbidden: set[str] = field(default_factory=set)
    """Of ``pods``, ``portforward`` and ``exec``: what the account may not."""
    cut: bool = False
    """Break the connection of the next command before it has ended."""
    commands: list[tuple[str, str, list[str]]] = field(default_factory=list)
    """Pod, container and command of each exec."""
    terminals: int = 0
    """How many of them asked for a terminal."""
    forwards: int = 0

    def pod(
        self,
        component: str,
        name: str,
        *,
        release: str = "trial",
        revision: str = "r1",
        ready: bool = True,
        **more: Any,
    ) -> None:
        """Add a pod to namespace ``serving``; ``more`` are annotations, ``port`` and ``tls``."""
        port, tls = more.pop("port", 50051), more.pop("tls", False)
        self.pods.append(
            {
                "metadata": {
                    "name": name,
                    "namespace": "serving",
                    "annotations": more.pop("annotations", {}),
                    "labels": {
                        "app.kubernetes.io/component": component,
                        "app.kubernetes.io/instance": release,
                        "baton.io/revision": revision,
                    },
                },
                "spec": {
                    "containers": [{"name": component, "ports": [{"name": "grpc", "containerPort": port}]}],
                    "volumes": [{"name": "tls"}] if tls else [],
                },
                "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
            }
        )

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig with the context ``lab``, which leads here, to namespace ``serving``."""
        context = {"cluster": "c", "user": "u", "namespace": "serving"}
        tree = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "lab", "context": context}],
            "current-context": "lab",
        }
        path.write_text(json.dumps(tree))
        return path

    # --- handlers -------------------------------------------------------------------------------------------

    async def list_pods(self, request: web.Request) -> web.Response:
        if "pods" in self.forbidden:
            text = 'pods is forbidden: User "ann" cannot list resource "pods" in the namespace "serving"'
            return web.json_response({"kind": "Status", "code": 403, "message": text}, status=403)
        key, value = request.query["labelSelector"].split("=")
        found = [
            pod
            for pod in self.pods
            if pod["metadata"]["labels"].get(key) == value
            and pod["metadata"]["namespace"] == request.match_info["namespace"]
        ]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found})

    async def _open(self, request: web.Request, right: str) -> web.WebSocketResponse:
        if right in self.forbidden:
            raise web.HTTPForbidden
        if request.match_info["pod"] not in {pod["metadata"]["name"] for pod in self.pods}:
            raise web.HTTPNotFound
        socket = web.WebSocketResponse(protocols=(PROTOCOL,))
        await socket.prepare(request)
        return socket

    async def forward(self, request: web.Request) -> web.WebSocketResponse:
        socket = await self._open(request, "portforward")
        self.forwards += 1
        port = int(request.query["ports"])
        for channel in (0, 1):
            await socket.send_bytes(bytes([channel]) + port.to_bytes(2, "little"))
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[port])

        async def down() -> None:
            while data := await reader.read(1 << 16):
                await socket.send_bytes(b"\0" + data)
            await socket.close()

        task = asyncio.create_task(down())
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                writer.write(message.data[1:])
                await writer.drain()
        task.cancel()
        writer.close()
        return socket

    async def execute(self, request: web.Request) -> web.WebSocketResponse:
        socket = await self._open(request, "exec")
        command = request.query.getall("command")
        self.commands.append((request.match_info["pod"], request.query["container"], command))
        self.terminals += request.query["tty"].lower() == "true"
        program = self.programs.get(command[0])
        if program is None:
            await self._status(socket, {"status": "Failure", "message": f"exec: {command[0]}: not found"})
            return socket
        process = await asyncio.create_subprocess_exec(
            *program,
            *command[1:],
            env=self.env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None

        async def pass_on(channel: int, source: asyncio.StreamReader) -> None:
            while data := await source.read(1 << 12):
                await socket.send_bytes(bytes([channel]) + data)

        await asyncio.gather(pass_on(STDOUT, process.stdout), pass_on(STDERR, process.stderr))
        code = await process.wait()
        if self.cut:
            assert request.transport is not None
            request.transport.abort()
            return socket
        failed = {"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]}}
        await self._status(socket, failed if code else {"status": "Success"})
        return socket

    async def _status(self, socket: web.WebSocketResponse, status: dict[str, Any]) -> None:
        await socket.send_bytes(bytes([ERROR]) + json.dumps(status).encode())
        await socket.close()


@contextlib.contextmanager
def kube_server() -> Iterator[KubeServer]:
    """Serve on a free port of loopback, in a thread of its own: the commands under test block theirs."""
    state = KubeServer()
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        root = "/api/v1/namespaces/{namespace}/pods"
        app.router.add_get(root, state.list_pods)
        app.router.add_get(root + "/{pod}/portforward", state.forward)
        app.router.add_get(root + "/{pod}/exec", state.execute)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        state.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
