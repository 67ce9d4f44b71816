"""The workers of one model: those that its spec asks for are started, watched, and replaced when they die.

Nothing is decided about requests here. Pools grow, shrink and exchange workers by order of an operator, or of the
autoscaler beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from baton.internal.v1 import registry_pb2
from cluster.errors import ServingError
from cluster.internal_rpc import InternalRpc
from cluster.placement import worker_plans
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import ClusterSpec
from orchestrator.controller.background_tasks import BackgroundTasks
from orchestrator.controller.canary_driver import CanaryDriver
from orchestrator.controller.canary_log import CanaryLog
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.membership import Membership
from orchestrator.controller.pair_table import PairTable
from orchestrator.controller.pool_growth import PoolGrowth
from orchestrator.controller.role_change import RoleChanges
from orchestrator.controller.scaling_loop import MayTake, ScalingLoop
from orchestrator.controller.worker_admission import WorkerAdmission
from orchestrator.controller.worker_drain import POLL_S, GiveBack, WorkerDrains
from orchestrator.controller.worker_health import HealthChecks
from orchestrator.controller.worker_launch import Progress, WorkerLauncher
from orchestrator.controller.worker_pool import WorkerPool
from orchestrator.controller.worker_replacement import WorkerReplacement
from orchestrator.policy.canary import Canary
from orchestrator.policy.canary_probe import tolerance_nat
from orchestrator.registry import RegistryService

IDLE_S = 1.0
"""Seconds without a request, after which a model that is being removed has none on its way."""


class ModelController:
    """Composes the owners of one model's workers, and starts and stops them.

    Args:
        spec: The cluster as it is for this model.
        registry: Where gateways learn which workers there are.
        runtime: Ray.
        on_progress: Called with what happens.
        log_folder: Where logs go that must outlive Ray's session.
        may_take: Whether so many GPUs are left of what all models share.
        give_back: Called with the nodes that a drained worker leaves empty, so that they and no others go.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        registry: RegistryService,
        runtime: RayRuntime,
        *,
        on_progress: Progress,
        log_folder: Path,
        may_take: MayTake,
        give_back: GiveBack | None = None,
    ) -> None:
        self._spec = spec
        self._registry = registry
        self._log_folder = log_folder
        self._may_take = may_take
        rpc = InternalRpc(spec.security)
        self._tasks = BackgroundTasks()
        self.pairs = PairTable(spec.transfer, rpc, on_progress=on_progress)
        core = Canary(
            interval_s=spec.health.canary.interval_s,
            max_share=spec.health.canary.max_share,
            tolerance_nat=tolerance_nat(spec.model.dtype, spec.model.kv_cache_dtype, spec.model.quantization),
        )
        findings = CanaryLog(core, enabled=spec.health.canary.enabled)
        self.pool = WorkerPool(
            runtime,
            WorkerLauncher(spec, runtime, on_progress=on_progress, log_folder=log_folder),
            Membership(registry, spec.model.served_name, self.pairs, core, findings).publish,
            silence_timeout_s=spec.health.silence_timeout_s,
            on_progress=on_progress,
            prefix=spec.worker_prefix,
        )
        self.canary = CanaryDriver(core, findings, self.pool, spec, rpc)
        self._admission = WorkerAdmission(self.pool, self.pairs, self.canary, on_progress=on_progress)
        self._replacement = WorkerReplacement(self.pool, self._admission, runtime, self._tasks, on_progress=on_progress)
        self.canary.report_to(self._replacement)
        self.drains = WorkerDrains(self.pool, self._replacement, self._tasks, give_back=give_back)
        self.growth = PoolGrowth(
            spec,
            runtime,
            self.pool,
            self._admission,
            self._replacement,
            self.drains,
            self._tasks,
            on_progress=on_progress,
        )
        self.roles = RoleChanges(spec, self.pool, self.pairs)
        self.health = HealthChecks(spec, self.pool, self.drains, self._replacement)

    @property
    def worker_pids(self) -> list[int]:
        """Processes of all workers, for a clean-up that must not depend on Ray."""
        return [worker.member.pid for worker in self.pool.workers() if worker.member.pid]

    async def start(self, node_of: Mapping[str, str]) -> None:
        """Start the workers of the spec, on these nodes, let them into service, and watch them from then on.

        Raises:
            ServingError: a worker cannot be placed or started; the text says why.
        """
        settings = dict(self._spec.pools.items())
        workers = [self.pool.add(plan, settings[plan.role]) for plan in worker_plans(self._spec)]
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(self.pool.start(worker, node_of.get(worker.worker_id)))
        for refused in await self._admission.admit([worker.worker_id for worker in workers]):
            await self._replacement.replace(refused)
        self._tasks.start(self.health.run())
        self._tasks.start(self.canary.run())
        if self._spec.autoscaling.enabled:
            self._start_scaling()

    def _start_scaling(self) -> None:
        scaling = ScalingLoop(
            self._spec,
            self.pool.workers,
            self.growth,
            self.drains,
            self.roles,
            self._log_folder / f"{self._spec.worker_prefix}decisions.jsonl",
            may_take=self._may_take,
        )
        self._registry.on_report[self._spec.model.served_name] = scaling.on_report
        self._tasks.start(scaling.run())

    async def wind_down(self, timeout_s: float) -> AsyncIterator[list[registry_pb2.WorkerDrain]]:
        """Wait until no worker has a request, then drain all; how far each is, until they are gone.

        Gateways have been asked to send nothing new. They may hold requests that wait for KV, which are placed as long
        as workers accept them: so drains begin once all have been idle for a while, or after ``timeout_s``.
        """
        deadline_s = time.monotonic() + timeout_s
        idle_since_s: float | None = None
        while time.monotonic() < deadline_s:
            rows = await asyncio.gather(*(self._load_of(worker) for worker in self.pool.workers() if worker.up))
            yield rows
            now_s = time.monotonic()
            idle_since_s = None if any(row.requests for row in rows) else idle_since_s or now_s
            if idle_since_s is not None and now_s - idle_since_s >= IDLE_S:
                break
            await asyncio.sleep(POLL_S)
        ids = [worker.worker_id for worker in self.pool.workers() if worker.up and not worker.draining]
        if not ids:
            return
        work = self.drains.drain(ids, max(0.0, deadline_s - time.monotonic()))
        while not work.task.done():
            yield [drain.progress for drain in work.drains]
            await asyncio.wait([work.task], timeout=POLL_S)
        work.task.result()
        yield [drain.progress for drain in work.drains]

    async def _load_of(self, worker: ManagedWorker) -> registry_pb2.WorkerDrain:
        stage = registry_pb2.DRAIN_STAGE_DRAINING
        row = registry_pb2.WorkerDrain(worker_id=worker.worker_id, stage=stage)
        with contextlib.suppress(ServingError, TimeoutError):  # one that is gone has none
            load = await self.pool.check_health(worker)
            row.requests = max(load["legs"], load["running_requests"] + load["waiting_requests"])
            row.used_blocks = load["used_blocks"]
        return row

    async def end(self) -> None:
        """Stop what is left of it, and give its places back, while other models go on."""
        self.pool.begin_stop()
        self._tasks.cancel()
        for worker in self.pool.workers():
            await self.pool.abandon(worker)

    async def stop(self) -> None:
        """Stop all workers in parallel, politely first."""
        self.pool.begin_stop()
        self._tasks.cancel()
        await self.pool.stop()
