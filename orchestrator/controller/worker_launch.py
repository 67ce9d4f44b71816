"""Places a worker's actor on Ray and loads its engine."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.internal.v1 import registry_pb2
from cluster.errors import EngineFailed, ServingError
from cluster.placement import WorkerPlan
from cluster.ray_runtime import ProcessId, RayRuntime, WorkerHandle, engine_env
from cluster.spec.config import ClusterSpec, PoolSettings, Role
from kv_transfer.transport import ucx_tls
from orchestrator.controller.worker_roles import ACTORS, leg_kinds

Progress = Callable[[str, str, str], None]
"""Called with a subject (``ray``, a worker id, a pair), a stage and a detail."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker whose engine is loaded: what the registry publishes of it, and its processes."""

    member: registry_pb2.Member
    processes: list[ProcessId]


class WorkerLauncher:
    """Starts workers of one spec, and owns none of them.

    Args:
        spec: The cluster.
        runtime: Ray.
        on_progress: Called at each stage.
        log_folder: Where logs go that must outlive Ray's session.
    """

    def __init__(self, spec: ClusterSpec, runtime: RayRuntime, *, on_progress: Progress, log_folder: Path) -> None:
        self._spec = spec
        self._runtime = runtime
        self._progress = on_progress
        self._log_folder = log_folder

    async def place(
        self, plan: WorkerPlan, pool: PoolSettings, *, node_id: str | None, cancelled: threading.Event
    ) -> WorkerHandle:
        """Wait for the worker's resources and create its actor; ``cancelled``, once set, ends the wait.

        Raises:
            ServingError: it could not be placed; the text says why.
        """
        spec, on_cpu = self._spec, pool.accelerators_per_worker == 0
        self._progress(plan.worker_id, "placing", "")
        handle = await asyncio.to_thread(
            self._runtime.create,
            plan,
            ACTORS[plan.role],
            lambda host: (spec, pool, plan.worker_id, host, leg_kinds),
            env=engine_env(
                on_cpu=on_cpu,
                omp_threads=pool.omp_threads,
                kv_cache_gib=pool.engine.cpu_kv_cache_gib,
                ucx_tls=ucx_tls(spec.transfer.transports, on_cpu=on_cpu),
            ),
            node_id=node_id,
            cancelled=cancelled,
        )
        self._progress(plan.worker_id, "loading", f"on {self._runtime.host_of(handle.node)}")
        return handle

    async def load(self, plan: WorkerPlan, pool: PoolSettings, handle: WorkerHandle, *, role: Role) -> Loaded:
        """Load the engine of a placed worker, which serves in ``role``.

        Raises:
            EngineFailed: it did not start; the text says why, and where its logs are.
        """
        began_s = time.monotonic()
        try:
            facts = await self._runtime.call(handle, "start")
        except (ServingError, TimeoutError) as error:
            folder = self._keep_logs()
            raise EngineFailed(f"{plan.worker_id} did not start: {error}; its logs are in {folder}") from error
        member = _member(self._spec.model.served_name, plan, pool, handle, role, facts)
        kernels = ", ".join(member.attention_kernels)
        taken = f"{time.monotonic() - began_s:.0f} s"
        self._progress(plan.worker_id, "loaded", f"{taken}, {kernels}" if kernels else taken)
        return Loaded(member, facts["processes"])

    def _keep_logs(self) -> Path:
        """Copy Ray's logs to where they outlive the session."""
        if self._runtime.session_folder is not None:
            source = self._runtime.session_folder / "session_latest" / "logs"
            shutil.copytree(source, self._log_folder / "ray", dirs_exist_ok=True, ignore_dangling_symlinks=True)
        return self._log_folder


def _member(
    model: str, plan: WorkerPlan, pool: PoolSettings, handle: WorkerHandle, role: Role, facts: Mapping[str, Any]
) -> registry_pb2.Member:
    engine, node = facts["engine"], handle.node
    on_cpu = pool.accelerators_per_worker == 0
    return registry_pb2.Member(
        worker_id=plan.worker_id,
        model=model,
        role=role.value,
        state="starting",
        address=facts["address"],
        metrics_address=facts["metrics_address"],
        incarnation=engine["incarnation"],
        node=node.node_id[:12],
        domain=node.domain,
        accelerator="cpu" if on_cpu else (node.gpu or pool.accelerator_type or "gpu"),
        total_blocks=engine["total_blocks"],
        block_size_tokens=engine["block_size_tokens"],
        pid=facts["pid"],
        accelerators=pool.accelerators_per_worker,
        cpus=pool.cpus_per_worker,
        revision=engine["version"],
        spot=node.spot,
        attention_kernels=engine["attention_kernels"],
        vocab_size=engine["vocab_size"],
        max_model_len_tokens=engine["max_model_len_tokens"],
    )
