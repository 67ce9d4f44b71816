"""A real cluster for tests: `baton up --detach` in a cache folder of its own, and gateways inside the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.internal.v1 import registry_pb2
from cluster.spec import portfolio
from cluster.spec.config import ClusterSpec
from orchestrator.gateway.gateway import Gateway
from orchestrator.local.state_file import ClusterState
from orchestrator.registry import watch
from orchestrator.request.model_front import ModelFront, load_fronts, load_model_front
from tests.support.ending import end_marked, ended, marked, named

START_TIMEOUT_S = 420
"""Two cores take 80 s for three engines; this much under load before a test is called failed."""


@dataclass
class LiveCluster:
    """A running cluster."""

    folder: Path
    spec_path: Path
    state: ClusterState

    @property
    def spec(self) -> ClusterSpec:
        """Of the first model."""
        return portfolio.load(self.spec_path).first

    @property
    def grpc(self) -> str:
        return self.state.grpc_address

    @property
    def http(self) -> str:
        return self.state.http_url

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {"BATON_CACHE": str(self.folder)}

    def baton(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a `baton` command against this cluster."""
        return run_baton(self.folder, *arguments, timeout_s=timeout_s)

    @contextlib.asynccontextmanager
    async def gateway(self, *roles: str, more: str = "", decode_kv_blocks: int | None = None) -> AsyncIterator[Gateway]:
        """A gateway inside the test that sees only the workers of these roles.

        ``more`` is YAML added to its spec; ``decode_kv_blocks`` is all the KV it knows of each decode worker.
        """
        models = portfolio.parse(self.spec_path.read_text() + more)
        gateway = Gateway(models, load_fronts(models), load=_loaded)
        known = asyncio.Event()

        def take(message: registry_pb2.WatchMembersResponse) -> None:
            members = [member for member in message.members if member.role in roles]
            seen = registry_pb2.WatchMembersResponse()
            seen.CopyFrom(message)
            del seen.members[:]
            seen.members.extend(members)
            for member in seen.members:
                if decode_kv_blocks is not None and member.role == "decode":
                    member.total_blocks = decode_kv_blocks
            gateway.update_members(seen)
            if members:
                known.set()

        tasks = [asyncio.create_task(watch(self.state.registry, take))]
        gateway.report_to(self.state.registry)
        try:
            await asyncio.wait_for(known.wait(), 30)
            yield gateway
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await gateway.close()

    def stop(self) -> None:
        """`baton down`, and nothing may be left."""
        with ended(self.folder):
            result = self.baton("down", "--json")
            assert result.returncode == 0, result.stderr
            assert not (left := marked_processes(self.folder)), left


def _loaded(spec: ClusterSpec) -> tuple[ClusterSpec, ModelFront]:
    return spec, load_model_front(spec, Path(spec.model.path))


def run_baton(folder: Path, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a `baton` command with its own cache folder."""
    return subprocess.run(
        [sys.executable, "-m", "interface.cli.main", *arguments],
        env=os.environ | {"BATON_CACHE": str(folder)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def start_cluster(folder: Path, spec_text: str, *arguments: str, timeout_s: float = START_TIMEOUT_S) -> LiveCluster:
    """Start a cluster and wait until it is ready. If it is not, whatever the reason, none of its processes stays."""
    spec_path = folder / "spec.yaml"
    spec_path.write_text(spec_text)
    try:
        result = run_baton(folder, "up", "-f", str(spec_path), "--detach", "--json", *arguments, timeout_s=timeout_s)
        if result.returncode != 0:
            logs = "\n".join(path.read_text()[-3000:] for path in folder.glob("clusters/*/*.log"))
            raise AssertionError(f"the cluster did not start:\n{result.stdout}\n{result.stderr}\n{logs}")
        ready = json.loads(result.stdout.strip().splitlines()[-1])
        return LiveCluster(folder, spec_path, read_state(folder, ready["cluster"]))
    except BaseException:
        end_marked(folder)
        raise


def kept_cluster(folder: Path, spec_text: str) -> LiveCluster:
    """The cluster that runs in the folder, or a new one that goes on running."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        state = read_state(folder, "shared-test")
    except AssertionError:
        return start_cluster(folder, spec_text)
    return LiveCluster(folder, folder / "spec.yaml", state)


def read_state(folder: Path, name: str) -> ClusterState:
    """State file of a cluster under another cache folder."""
    from orchestrator.local import state_file

    old = os.environ.get("BATON_CACHE")
    os.environ["BATON_CACHE"] = str(folder)
    try:
        state = state_file.read_state(name)
    finally:
        if old is None:
            del os.environ["BATON_CACHE"]
        else:
            os.environ["BATON_CACHE"] = old
    assert state is not None
    return state


def marked_processes(folder: Path, *, wait_s: float = 10) -> list[str]:
    """Processes that were started for the cache folder and still run after ``wait_s``."""
    deadline_s = time.monotonic() + wait_s
    while (found := marked(folder)) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    return [named(process) for process in found]


def shared_memory_segments() -> set[str]:
    """Names in /dev/shm."""
    return {path.name for path in Path("/dev/shm").iterdir()}


def used_blocks(status: Any) -> dict[str, int]:
    """Blocks in use by worker, of a `Status`."""
    return {worker.worker_id: worker.used_blocks for worker in status.workers}
