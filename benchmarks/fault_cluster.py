"""A real cluster to break: `baton up`, gateways of the harness's own, and a relay before every worker.

The relays stand for the network between gateways and workers. Linux's ``tc netem`` would do the same a layer lower; it
needs root and the sch_netem module, and neither is everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from interface.client.client import AsyncClient
from orchestrator.registry import RegistryService, watch

START_TIMEOUT_S = 600.0
CHUNK_BYTES = 1 << 16
CLOSE_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Relay:
    """Carries TCP connections to ``target``, and can cut or slow them."""

    target: str
    address: str = ""
    delay_s: float = 0.0
    cut: bool = False
    """Established connections are reset, new ones refused."""
    _server: Any = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def links(self) -> int:
        """Connections carried at present."""
        return len(self._writers) // 2

    async def start(self) -> None:
        """Listen on a free port of the loopback."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close everything."""
        self._server.close()
        self.sever()

    def sever(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.transport.abort()
            return
        host, port = self.target.rsplit(":", 1)
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, far_writer))
                group.create_task(self._carry(far_reader, writer))
        except* OSError:
            pass
        finally:
            self._writers -= both
            for each in both:
                each.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one side's end is both sides'


@dataclass(slots=True)
class GatewayProcess:
    """One gateway of the harness."""

    process: subprocess.Popen[bytes]
    address: str
    http_port: int
    client: AsyncClient


class FaultCluster:
    """A running cluster with its relays and gateways.

    Args:
        folder: BATON_CACHE of the cluster.
        spec_path: Its spec.
        registry: Address of its controller's registry.
    """

    def __init__(self, folder: Path, spec_path: Path, registry: str) -> None:
        self.folder, self.spec_path, self.registry = folder, spec_path, registry
        self.members: dict[str, registry_pb2.Member] = {}
        self.hidden: set[str] = set()
        self.relays: dict[str, Relay] = {}
        self.gateways: list[GatewayProcess] = []
        self._pairs: list[registry_pb2.Pair] = []
        self._service = RegistryService()
        self._server: Any = None
        self._address = ""
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._clients: list[AsyncClient] = []
        self._old_clients: list[AsyncClient] = []
        self._next_client = 0

    @property
    def env(self) -> dict[str, str]:
        """Environment of its processes."""
        return os.environ | {"BATON_CACHE": str(self.folder)}

    async def open(self, gateways: int = 1) -> None:
        """Start relays and gateways over the cluster's workers."""
        self._server = grpc.aio.server()
        registry_pb2_grpc.add_RegistryServicer_to_server(self._service, self._server)
        self._address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        self._tasks = [asyncio.create_task(watch(self.registry, self._take)), asyncio.create_task(self._forward())]
        for _ in range(gateways):
            await self.add_gateway()
        await self.all_ready()

    async def close(self) -> None:
        """End relays and gateways; the cluster runs on."""
        for client in [*self._clients, *self._old_clients]:
            await client.close()
        for gateway in self.gateways:
            await gateway.client.close()
            gateway.process.terminate()
        for gateway in self.gateways:
            await asyncio.to_thread(gateway.process.wait, 60)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop(0)
        for relay in self.relays.values():
            await relay.stop()

    def _take(self, message: registry_pb2.WatchMembersResponse) -> None:
        self.members = {member.worker_id: member for member in message.members}
        self._pairs = list(message.pairs)
        self._changed.set()

    def refresh(self) -> None:
        """Tell the gateways again, after a change of ``hidden``."""
        self._changed.set()

    async def _forward(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            shown = []
            for member in self.members.values():
                key = f"{member.worker_id}/{member.incarnation}"
                if key not in self.relays:
                    self.relays[key] = Relay(member.address)
                    await self.relays[key].start()
                if member.worker_id not in self.hidden:
                    copy = registry_pb2.Member()
                    copy.CopyFrom(member)
                    copy.address = self.relays[key].address
                    shown.append(copy)
            await self._service.publish("", shown, self._pairs)

    def relay(self, worker_id: str) -> Relay:
        """The relay before a worker's present incarnation."""
        return self.relays[f"{worker_id}/{self.members[worker_id].incarnation}"]

    async def add_gateway(self) -> GatewayProcess:
        """Start one more gateway."""
        ports = self.folder / f"ports-{time.monotonic_ns()}.json"
        with (self.folder / "harness-gateways.log").open("ab") as log_file:
            process = await asyncio.to_thread(
                subprocess.Popen,
                [
                    sys.executable, "-m", "interface.gateway_main", "--with-parent", str(os.getpid()),
                    "--spec", str(self.spec_path), "--controller", self._address, "--ports-file", str(ports),
                ],
                env=self.env, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file,
            )  # fmt: skip
        await until(ports.exists, 120, "the gateway starts")
        given = json.loads(ports.read_text())
        address = f"127.0.0.1:{given['grpc_port']}"
        gateway = GatewayProcess(process, address, given["http_port"], AsyncClient(address))
        self.gateways.append(gateway)
        # Streams may still run on the clients there were, and go on at the other gateways these know.
        self._old_clients += self._clients
        addresses = [each.address for each in self.gateways]
        self._clients = [AsyncClient(addresses[at:] + addresses[:at]) for at in range(len(addresses))]
        return gateway

    def client(self) -> AsyncClient:
        """Clients that know every gateway, each beginning with another one, in turn."""
        self._next_client += 1
        return self._clients[self._next_client % len(self._clients)]

    async def all_ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Wait until every worker serves and every gateway has each and a link to it; returns the seconds it took.

        A gateway knows a worker whose link is cut and dials again within seconds: until then it has fewer sockets.
        """
        began_s = time.monotonic()

        async def complete() -> bool:
            if not self.members or any(member.state != "ready" for member in self.members.values()):
                return False
            for gateway in self.gateways:
                status = await gateway.client.get_status()
                known = {worker.worker_id: worker.incarnation for worker in status.workers}
                shown = {key: each.incarnation for key, each in self.members.items() if key not in self.hidden}
                if known != shown or any(self.relay(worker_id).links < len(self.gateways) for worker_id in shown):
                    return False
            return True

        async with asyncio.timeout(timeout_s):
            while not await complete():  # noqa: ASYNC110
                await asyncio.sleep(0.25)
        return time.monotonic() - began_s

    def incarnations(self) -> set[str]:
        """Of all workers known, at present."""
        return {member.incarnation for member in self.members.values()}

    async def recovered(self, before: set[str] | None) -> float:
        """Wait until all has recovered; with ``before``, not until one of these incarnations was replaced."""
        began_s = time.monotonic()
        if before is not None:
            await until(lambda: not before <= self.incarnations(), START_TIMEOUT_S, "the victim is replaced")
        await self.all_ready()
        return time.monotonic() - began_s

    async def used_blocks(self) -> int:
        """KV blocks in use on all workers, as the first gateway sees them."""
        status = await self.gateways[0].client.get_status()
        return sum(worker.used_blocks for worker in status.workers)

    async def leaked_blocks(self, lease_s: float) -> int:
        """Blocks still in use one lease after the last request."""
        return await blocks_left(self.used_blocks, lease_s)

    def sockets(self) -> int:
        """Open TCP connections of the gateways, listeners left out."""
        found = 0
        for gateway in self.gateways:
            connections = psutil.Process(gateway.process.pid).net_connections(kind="tcp")
            found += sum(each.status != psutil.CONN_LISTEN for each in connections)
        return found

    async def leaked_sockets(self, before: int) -> int:
        """Connections above ``before`` that are still open some seconds after the last request."""
        return await sockets_left(self.sockets, before)

    def memory_bytes(self) -> dict[str, int]:
        """Unique memory of each gateway, and of each worker with its engine core."""
        found = {f"gateway-{index}": _memory(gateway.process.pid) for index, gateway in enumerate(self.gateways)}
        return found | {member.worker_id: _memory(member.pid) for member in self.members.values()}

    async def baton(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `baton` command against the cluster."""
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "interface.cli.main", *arguments],
            env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip


def _memory(pid: int) -> int:
    process = psutil.Process(pid)
    return sum(each.memory_full_info().uss for each in (process, *process.children(recursive=True)))


async def blocks_left(used: Callable[[], Awaitable[int]], lease_s: float) -> int:
    """Blocks in use, once none is or one lease has passed."""
    deadline_s = time.monotonic() + lease_s + 10
    while (found := await used()) and time.monotonic() < deadline_s:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    return found


async def sockets_left(count: Callable[[], int], before: int) -> int:
    """Connections above ``before``, once there is none or they have had time to close."""
    deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
    while (more := count() - before) > 0 and time.monotonic() < deadline_s:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    return max(0, more)


async def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for something in another process.

    Raises:
        TimeoutError: it did not happen.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {timeout_s:g} s in vain: {what}")
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def started(spec_text: str, *, gateways: int = 1) -> AsyncIterator[FaultCluster]:
    """A cluster of its own, ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="baton-faults-") as name:
        folder = Path(name)
        spec_path = folder / "spec.yaml"
        spec_path.write_text(spec_text)
        cluster = FaultCluster(folder, spec_path, "")
        up = await cluster.baton("up", "-f", str(spec_path), "--detach", "--json")
        if up.returncode:
            raise RuntimeError(f"the cluster did not start: {up.stdout}\n{up.stderr}")
        try:
            ready = json.loads(up.stdout.strip().splitlines()[-1])
            state = json.loads((folder / "clusters" / ready["cluster"] / "state.json").read_text())
            cluster.registry = state["registry"]
            await cluster.open(gateways)
            try:
                yield cluster
            finally:
                await cluster.close()
        finally:
            await cluster.baton("down", "--json")
