"""A cluster on hosts apart: Ray's head and the gateway on one, a worker on each of the others, callers outside.

Ray is started with `ray start` on each host, as by hand, and again where it ends, as Kubernetes or systemd would do it;
then `baton up --address` on the head.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from baton.internal.v1 import registry_pb2
from benchmarks.fault_cluster import CLOSE_TIMEOUT_S, START_TIMEOUT_S, blocks_left, sockets_left, until
from benchmarks.host_namespaces import Hosts, connections, hosts
from interface.client.client import AsyncClient
from orchestrator.node.node import WORKER_TITLES
from orchestrator.registry import watch

HEAD = "head"
ENGINE_TITLE = "VLLM::"
RAY_PORT = 6399
RAY_RETRY_S = 2.0
HALF_OPEN_TIMEOUT_S = 60.0
"""A vanished peer is noticed by keepalive pings within 40 s."""

SPEC = """
name: hosts-apart
model:
  path: {model}
  served_name: reasoner
  max_model_len_tokens: 2048
  dtype: float32
  reasoning: {{effort_budgets_tokens: {{none: 0, low: 16, medium: 64, high: 1024}}}}
pools:
  prefill: {{replicas: {prefill}, node_resource: prefill, engine: {{kv_blocks: 1024}}}}
  decode: {{replicas: {decode}, node_resource: decode, engine: {{kv_blocks: 1024}}}}
# /dev/shm is the machine's: shared memory would carry KV where a cut link must stop it.
transfer: {{transports: [tcp], lease_s: 30, retry_budget: 4, local_prefill_after_s: null}}
gateway: {{host: 0.0.0.0, grpc_port: 0, http_port: 0, metrics_port: 0}}
"""


class HostCluster:
    """A running cluster whose hosts can be cut off. Worker ``decode-1`` is on some host of its pool: see `host_of`."""

    def __init__(self, net: Hosts, folder: Path) -> None:
        self.net, self.folder = net, folder
        self.grpc_address = ""
        self.members: dict[str, registry_pb2.Member] = {}
        self.ray_restarts = 0
        self._token = secrets.token_hex(32)
        self._tasks: list[asyncio.Task[Any]] = []
        self._client: AsyncClient | None = None
        self._gateway: psutil.Process | None = None
        self._controller: psutil.Process | None = None

    @property
    def env(self) -> dict[str, str]:
        """Environment of what runs on the hosts."""
        return os.environ | {
            "BATON_CACHE": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_raylet_report_resources_period_milliseconds": "1000",
            "RAY_worker_niceness": "0",
        }

    # --- start and end --------------------------------------------------------------------------------------

    async def open(self, spec_text: str) -> None:
        """Start Ray on all hosts, then the cluster.

        Raises:
            RuntimeError: it did not start.
        """
        head = f"{self.net.address(HEAD)}:{RAY_PORT}"
        self._keep_ray(HEAD, ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"])
        await self._ray_started(HEAD)
        # One after another: Ray gives up a node whose agents take more than 30 s, and they share two cores.
        for name in self.net.names:
            if name != HEAD:
                resources = json.dumps({name.split("-")[0]: 1})
                self._keep_ray(name, [f"--address={head}", "--resources", resources])
                await self._ray_started(name)
        spec_path = self.folder / "spec.yaml"
        spec_path.write_text(spec_text)
        up = await self.baton("up", "-f", str(spec_path), "--address", head, "--detach", "--json")
        if up.returncode:
            log = self.folder / "clusters" / "hosts-apart" / "up.log"
            raise RuntimeError(f"the cluster did not start: {up.stdout}\n{up.stderr}\n{log.read_text()[-3000:]}")
        ready = json.loads(up.stdout.strip().splitlines()[-1])
        self.grpc_address = ready["grpc"]
        state = json.loads((self.folder / "clusters" / ready["cluster"] / "state.json").read_text())
        self._controller = psutil.Process(ready["pid"])
        (self._gateway,) = (
            child for child in self._controller.children() if "interface.gateway_main" in child.cmdline()
        )
        registry = f"{self.net.address(HEAD)}:{state['registry'].rsplit(':', 1)[1]}"
        self._client = AsyncClient(self.grpc_address)
        self._tasks.append(asyncio.create_task(watch(registry, self._take)))
        await self.all_ready()

    async def close(self) -> None:
        """End the cluster; the hosts end what is left."""
        if self._client is not None:
            await self._client.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.baton("down", "--json")

    def _keep_ray(self, name: str, arguments: list[str]) -> None:
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--block", f"--node-ip-address={self.net.address(name)}",
            # One CPU: one worker for each host. Without a folder of its own, all have the head's, where two
            # that start at once take the same socket.
            f"--temp-dir={self.folder / name}", "--num-cpus=1", f"--object-store-memory={80 << 20}", *arguments,
        ]  # fmt: skip

        async def keep() -> None:
            while True:
                process = self.net.start(name, command, env=self.env, log=self.folder / f"ray-{name}.log")
                while process.poll() is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
                self.ray_restarts += 1
                await asyncio.sleep(RAY_RETRY_S)

        self._tasks.append(asyncio.create_task(keep()))

    async def _ray_started(self, name: str) -> None:
        path = self.folder / f"ray-{name}.log"

        def started() -> bool:
            return path.exists() and "Ray runtime started" in path.read_text(errors="replace")

        await until(started, START_TIMEOUT_S, f"Ray starts on {name}")

    async def baton(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `baton` command on the head."""
        command = self.net.command(HEAD, [sys.executable, "-m", "interface.cli.main", *arguments])
        return await asyncio.to_thread(
            subprocess.run,
            command, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    # --- what it is like ------------------------------------------------------------------------------------

    def _take(self, message: registry_pb2.WatchMembersResponse) -> None:
        self.members = {member.worker_id: member for member in message.members}

    def client(self) -> AsyncClient:
        """A caller outside the hosts."""
        assert self._client is not None
        return self._client

    def host_of(self, worker_id: str) -> str:
        """The host that a worker is on."""
        address = self.members[worker_id].address.rsplit(":", 1)[0]
        (name,) = (name for name in self.net.names if self.net.address(name) == address)
        return name

    def incarnations(self) -> set[str]:
        """Of all workers known, at present."""
        return {member.incarnation for member in self.members.values()}

    async def all_ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Wait until every worker serves, for controller and gateway alike; returns the seconds it took."""
        began_s = time.monotonic()

        async def complete() -> bool:
            if not self.members or any(member.state != "ready" for member in self.members.values()):
                return False
            known = await self._status()
            return {each.worker_id: each.incarnation for each in known} == {
                each.worker_id: each.incarnation for each in self.members.values()
            }

        async with asyncio.timeout(timeout_s):
            while not await complete():  # noqa: ASYNC110
                await asyncio.sleep(0.25)
        return time.monotonic() - began_s

    async def _status(self) -> list[Any]:
        with contextlib.suppress(Exception):  # the head may be away
            return list((await self.client().get_status()).workers)
        return []

    async def used_blocks(self) -> int:
        """KV blocks in use on all workers, as the gateway sees them."""
        return sum(worker.used_blocks for worker in await self._status())

    async def leaked_blocks(self, lease_s: float) -> int:
        """Blocks still in use one lease after the last request."""
        return await blocks_left(self.used_blocks, lease_s)

    def sockets(self) -> int:
        """Open TCP connections of gateway and controller."""
        assert self._gateway is not None
        assert self._controller is not None
        return connections(self._gateway) + connections(self._controller)

    async def leaked_sockets(self, before: int) -> int:
        """Connections above ``before`` that are still open some seconds after the last request."""
        return await sockets_left(self.sockets, before)

    async def strays(self) -> list[str]:
        """Engines and workers that are no member's, some seconds after."""
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        while (found := self._strays()) and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(1)
        return found

    def _strays(self) -> list[str]:
        known: set[int] = set()
        for member in self.members.values():
            with contextlib.suppress(psutil.Error):
                worker = psutil.Process(member.pid)
                known |= {worker.pid, *(child.pid for child in worker.children(recursive=True))}
        found = []
        for name in self.net.names:
            for process in self.net.processes(name):
                with contextlib.suppress(psutil.Error):
                    title = (process.cmdline() or [""])[0]
                    if title.startswith((ENGINE_TITLE, *WORKER_TITLES)) and process.pid not in known:
                        found.append(f"{name}: {process.pid} {title}")
        return found

    async def half_open(self) -> list[str]:
        """Connections that only one of two hosts knows of, a minute after."""
        deadline_s = time.monotonic() + HALF_OPEN_TIMEOUT_S
        while (found := self.net.half_open()) and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(1)
        return found


@contextlib.asynccontextmanager
async def apart(
    model: Path | str, *, prefill: int = 2, decode: int = 2, replacing: Mapping[str, str] | None = None
) -> AsyncIterator[HostCluster]:
    """A cluster with a host for each worker, ended afterwards. ``replacing``: changes of the spec's text.

    Raises:
        HostsUnavailable: this machine cannot have hosts.
    """
    names = [HEAD, *(f"prefill-{i}" for i in range(prefill)), *(f"decode-{i}" for i in range(decode))]
    spec_text = SPEC.format(model=model, prefill=prefill, decode=decode)
    for old, new in (replacing or {}).items():
        spec_text = spec_text.replace(old, new)
    # A short path: Unix socket names end at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="bh", dir="/tmp", ignore_cleanup_errors=True) as name, hosts(*names) as net:
        cluster = HostCluster(net, Path(name))
        try:
            await cluster.open(spec_text)
            yield cluster
        finally:
            with contextlib.suppress(ValueError):
                net.heal()
            await cluster.close()
