"""Gateways in processes of their own, over worker services with fake engines in the test's process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from baton.internal.v1 import registry_pb2, registry_pb2_grpc, worker_pb2_grpc
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import ClusterSpec, parse
from orchestrator.controller.worker_roles import leg_kinds
from orchestrator.registry import RegistryService
from tests.fakes.engine import BLOCK_SIZE_TOKENS, FakeEngine, Network
from workers.worker_service import WorkerService

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 240
"""A gateway imports transformers: 4 s alone, minutes on a machine that trains a model besides."""


def spec_text(**sections: Any) -> str:
    """A spec whose tokeniser is the small model's; the fakes speak its ids 65 to 90."""
    tree: dict[str, Any] = {
        "name": "processes",
        "model": {"path": str(ROOT / "models" / "reasoner"), "served_name": "fake", "max_model_len_tokens": 1024},
        "pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 1}},
        "gateway": {"grpc_port": 0, "http_port": 0, "metrics_port": 0},
    }
    return yaml.safe_dump(tree | sections)


@dataclass
class GatewayProcess:
    """A running gateway."""

    process: asyncio.subprocess.Process
    log: Path
    ports: dict[str, int]

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports['grpc_port']}"

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@dataclass
class FakeWorkers:
    """Worker services over fake engines, and the registry that names them."""

    registry: str
    engines: dict[str, FakeEngine]


@contextlib.asynccontextmanager
async def fake_workers(spec: ClusterSpec, *worker_ids: str, **engine_settings: Any) -> AsyncIterator[FakeWorkers]:
    """Start the workers and a registry, guarded as the spec says."""
    rpc, network, members, servers = InternalRpc(spec.security), Network(), [], []
    engines: dict[str, FakeEngine] = {}
    for worker_id in worker_ids:
        engine = engines[worker_id] = FakeEngine(network, **engine_settings)
        info = await engine.start()
        server = rpc.server()
        worker_pb2_grpc.add_WorkerServicer_to_server(WorkerService(worker_id, engine, info, leg_kinds(engine)), server)
        port = rpc.bind(server, "127.0.0.1:0")
        await server.start()
        servers.append(server)
        members.append(
            registry_pb2.Member(
                worker_id=worker_id,
                role=worker_id.split("-")[0],
                state="ready",
                address=f"127.0.0.1:{port}",
                incarnation=info.incarnation,
                total_blocks=info.total_blocks,
                block_size_tokens=BLOCK_SIZE_TOKENS,
                cpus=1,
            )
        )
    registry = RegistryService()
    await registry.publish("", members, [])
    server = rpc.server()
    registry_pb2_grpc.add_RegistryServicer_to_server(registry, server)
    port = rpc.bind(server, "127.0.0.1:0")
    await server.start()
    try:
        yield FakeWorkers(f"127.0.0.1:{port}", engines)
    finally:
        for each in [*servers, server]:
            await each.stop(0)


@contextlib.asynccontextmanager
async def gateway_processes(
    text: str, registry: str, folder: Path, count: int = 1
) -> AsyncIterator[list[GatewayProcess]]:
    """Start gateways of one spec at once; those still there at the end are killed."""
    parse(text)
    spec_path = folder / "spec.yaml"
    spec_path.write_text(text)
    started: list[tuple[asyncio.subprocess.Process, Path, Path]] = []
    try:
        for index in range(count):
            log, ports = folder / f"gateway-{index}.log", folder / f"ports-{index}.json"
            with log.open("w") as out:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "interface.gateway_main", "--with-parent", str(os.getpid()),
                    "--spec", str(spec_path), "--controller", registry, "--ports-file", str(ports),
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                )  # fmt: skip
            started.append((process, log, ports))
        yield [GatewayProcess(process, log, await _ports(process, log, ports)) for process, log, ports in started]
    finally:
        for process, _, _ in started:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _ports(process: asyncio.subprocess.Process, log: Path, ports: Path) -> dict[str, int]:
    async with asyncio.timeout(START_TIMEOUT_S):
        while (found := _read(ports)) is None:
            assert process.returncode is None, _text(log)
            await asyncio.sleep(0.1)
    return found


def _read(ports: Path) -> dict[str, int] | None:
    return json.loads(ports.read_text()) if ports.is_file() else None


def _text(log: Path) -> str:
    return log.read_text()
