"""The process of a worker: an engine, the gRPC service over it, its metrics, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import psutil
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from baton.internal.v1 import worker_pb2_grpc
from cluster.engine.protocol import Engine, EngineInfo
from cluster.errors import EngineFailed
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import SecuritySettings
from workers.leg_run import LegKinds
from workers.main_thread import run_in_main_thread
from workers.messages import CHANNEL_OPTIONS
from workers.ports import reserved_port
from workers.worker_metrics import serve_metrics
from workers.worker_service import WorkerService


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a started worker reports to the controller."""

    worker_id: str
    role: str
    address: str
    metrics_address: str
    pid: int
    processes: list[tuple[int, float]]
    """The worker and its children, the engine core among them, each with its start time."""
    engine: EngineInfo

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the way through Ray."""
        return asdict(self)


class WorkerHost:
    """A worker as Ray starts it: `start`, then requests over gRPC, then `stop`. Owns engine, ports and role.

    Args:
        worker_id: Name in the cluster, such as ``decode-0``.
        role: ``prefill``, ``decode`` or ``colocated``.
        host: Address to listen on; other workers and gateways reach it there.
        make_engine: Builds the engine, inside the worker's process.
        leg_kinds: What the worker can do with it.
        security: Callers that the worker serves; the files it names are read in the worker's process.
        stall_timeout_s: As in the spec's ``health``.
    """

    def __init__(
        self,
        worker_id: str,
        role: str,
        host: str,
        make_engine: Callable[[], Engine],
        leg_kinds: LegKinds,
        security: SecuritySettings | None = None,
        *,
        stall_timeout_s: float = 30.0,
    ) -> None:
        self._rpc = InternalRpc(security)
        self._open_metrics = security is not None and security.open_metrics
        self._worker_id = worker_id
        self._role = role
        self._host = host
        self._make_engine = make_engine
        self._leg_kinds = leg_kinds
        self._stall_timeout_s = stall_timeout_s
        self._engine: Engine | None = None
        self._service: WorkerService | None = None
        self._server: Any = None
        self._metrics: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: Any = None
        self._side_channel: socket.socket | None = None
        run_in_main_thread(self._take_sigterm)

    def _take_sigterm(self) -> None:
        self._before = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        """Drain if there is anything to move; the controller ends the process once it is empty. Else end as before."""
        service, engine, loop = self._service, self._engine, self._loop
        if service is not None and engine is not None and loop is not None:
            held = service.legs or engine.load().used_blocks
            if held and not service.draining:
                loop.call_soon_threadsafe(service.drain)
                return
        if callable(self._before):
            self._before(signum, frame)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    async def start(self) -> dict[str, Any]:
        """Start engine and service; returns `WorkerFacts` as plain data."""
        self._loop = asyncio.get_running_loop()
        # Fixed before vLLM is imported: the connector reads it from the environment.
        os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] = self._host
        self._side_channel = reserved_port(self._host)
        os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(self._side_channel.getsockname()[1])
        os.environ["BATON_WORKER_ID"] = self._worker_id  # `cluster.engine.fault_injection`, in tests
        self._engine = self._make_engine()
        info = await self._engine.start()
        kinds = self._leg_kinds(self._engine)
        self._service = WorkerService(self._worker_id, self._engine, info, kinds, stall_timeout_s=self._stall_timeout_s)
        port = await self._serve(self._service)
        self._metrics, metrics_port = await serve_metrics(
            self._host,
            lambda: {"pool": self._role, "worker": self._worker_id},
            self._service.load,
            check=None if self._open_metrics else self._rpc.check_header,
        )
        own = psutil.Process()
        facts = WorkerFacts(
            worker_id=self._worker_id,
            role=self._role,
            address=f"{self._host}:{port}",
            metrics_address=f"{self._host}:{metrics_port}",
            pid=os.getpid(),
            processes=[(each.pid, each.create_time()) for each in (own, *own.children(recursive=True))],
            engine=info,
        )
        return facts.to_dict()

    async def _serve(self, service: WorkerService) -> int:
        self._server = self._rpc.server(list(CHANNEL_OPTIONS))
        worker_pb2_grpc.add_WorkerServicer_to_server(service, self._server)
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        port = self._rpc.bind(self._server, f"{self._host}:0")
        await self._server.start()
        return port

    async def check_health(self) -> dict[str, Any]:
        """Raise if the engine is gone or hangs; else its load, ``legs`` (of all gateways) and ``draining``."""
        assert self._engine is not None
        assert self._service is not None
        await self._engine.check_health()
        if self._service.hung:
            raise EngineFailed("the engine has work and makes no step", worker_id=self._worker_id)
        return {**asdict(self._engine.load()), "legs": self._service.legs, "draining": self._service.draining}

    async def read_weights(self, first: int, budget_s: float) -> dict[str, Any]:
        """`WeightSums` of the engine, as plain data."""
        assert self._engine is not None
        return asdict(await self._engine.read_weights(first, budget_s))

    async def forget_kv(self) -> None:
        """Have the engine drop cached KV: some of it came from a worker that computes wrongly."""
        assert self._engine is not None
        await self._engine.forget_kv()

    async def drain(self) -> None:
        """Take no new work, and have the gateways move what is here."""
        if self._service is not None:
            self._service.drain()

    async def change_role(self, role: str) -> None:
        """Be of another pool from here on. The engine does either work as it is; only the metrics' labels change."""
        self._role = role

    async def stop(self) -> None:
        """Stop taking work, end the engine, close the ports."""
        if self._service is not None:
            self._service.drain(grace_s=0)
        if self._server is not None:
            await self._server.stop(grace=1)
        if self._metrics is not None:
            await self._metrics.cleanup()
        if self._engine is not None:
            await self._engine.stop()
        if self._side_channel is not None:
            self._side_channel.close()
