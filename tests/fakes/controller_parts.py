"""A worker pool over a runtime that starts nothing, for tests of the parts that stand on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cluster.errors import ServingError
from cluster.placement import worker_plans
from cluster.ray_runtime import RayRuntime, WorkerHandle
from cluster.spec.config import ClusterSpec, parse
from cluster.topology import NodeView
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.worker_launch import WorkerLauncher
from orchestrator.controller.worker_pool import WorkerPool

SPEC = """
model: {path: m, served_name: m, max_model_len_tokens: 1024}
pools: {prefill: {replicas: 2}, decode: {replicas: 2, standby_replicas: 1}}
health: {silence_timeout_s: 15}
"""
IDLE = {"legs": 0, "running_requests": 0, "waiting_requests": 0, "used_blocks": 0, "draining": False}


@dataclass
class Runtime:
    """Workers answer with what ``answers`` has for them and a method: a value, or an error that is raised."""

    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=lambda: ["node"])
    session_folder: Path | None = None

    def nodes(self) -> list[NodeView]:
        return [NodeView(node_id, "10.0.0.1", {"CPU": 9.0}) for node_id in self.present]

    def create(self, plan: Any, *_: Any, **__: Any) -> WorkerHandle:
        return WorkerHandle(plan.worker_id, None, None, self.nodes()[0], ("10.0.0.1",))

    def host_of(self, node: NodeView) -> str:
        return node.host

    async def call(self, handle: WorkerHandle, method: str, *_: Any) -> Any:
        self.calls.append((handle.worker_id, method))
        answer = self.answers.get((handle.worker_id, method), IDLE if method == "check_health" else None)
        if isinstance(answer, Exception):
            raise answer
        return facts(handle.worker_id) if method == "start" else answer

    def remove(self, handle: WorkerHandle, *_: Any) -> None:
        self.removed.append(handle.worker_id)


def facts(worker_id: str) -> dict[str, Any]:
    engine = {
        "incarnation": f"of {worker_id}", "total_blocks": 64, "block_size_tokens": 32, "version": "vllm 1",
        "attention_kernels": ["K"], "vocab_size": 256, "max_model_len_tokens": 1024,
    }  # fmt: skip
    return {"address": "10.0.0.1:7", "metrics_address": "", "pid": 1, "processes": [], "engine": engine}


@dataclass
class Parts:
    """A pool whose planned workers have started; they serve, or are on standby."""

    spec: ClusterSpec
    runtime: Runtime
    pool: WorkerPool
    said: list[tuple[str, str, str]]
    published: list[dict[str, str]]
    """States by worker, each time."""

    def worker(self, worker_id: str) -> ManagedWorker:
        found = self.pool.find(worker_id)
        assert found is not None
        return found

    def state(self, worker_id: str) -> str:
        return self.worker(worker_id).member.state


async def started(folder: Path, *, text: str = SPEC) -> Parts:
    spec = parse(text)
    fake = Runtime()
    runtime = cast(RayRuntime, fake)
    said: list[tuple[str, str, str]] = []
    published: list[dict[str, str]] = []

    async def publish(workers: Sequence[ManagedWorker]) -> None:
        published.append({worker.worker_id: worker.member.state for worker in workers})

    progress: Callable[[str, str, str], None] = lambda *words: said.append(words)  # noqa: E731
    launcher = WorkerLauncher(spec, runtime, on_progress=progress, log_folder=folder)
    pool = WorkerPool(runtime, launcher, publish, silence_timeout_s=15.0, on_progress=progress)
    settings = dict(spec.pools.items())
    for plan in worker_plans(spec):
        worker = pool.add(plan, settings[plan.role])
        await pool.start(worker)
        pool.serve(worker)
    await pool.publish()
    return Parts(spec, fake, pool, said, published)


@dataclass
class Replaced:
    """In the place of a `WorkerReplacement`: keeps what it was given."""

    pool: WorkerPool
    workers: list[str] = field(default_factory=list)

    async def replace(self, worker: ManagedWorker) -> None:
        self.workers.append(worker.worker_id)
        await self.pool.lose(worker)


@dataclass
class Drained:
    """In the place of `WorkerDrains`."""

    orders: list[tuple[str, bool]] = field(default_factory=list)

    def drain(self, worker_ids: Sequence[str], timeout_s: float, *, replace: bool = False) -> None:
        self.orders += [(worker_id, replace) for worker_id in worker_ids]


@dataclass
class Admitted:
    """In the place of a `WorkerAdmission`: lets workers in after so many refusals."""

    pool: WorkerPool
    refusals: list[ServingError] = field(default_factory=list)

    async def admit(self, new: Sequence[str]) -> list[ManagedWorker]:
        if self.refusals:
            raise self.refusals.pop(0)
        for worker_id in new:
            worker = self.pool.find(worker_id)
            assert worker is not None
            self.pool.serve(worker)
        await self.pool.publish()
        return []
