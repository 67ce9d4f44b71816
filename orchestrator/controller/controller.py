"""The controller: starts the workers that the spec asks for, watches them, replaces those that die.

It decides nothing about requests. Gateways learn the membership from its registry. Pools grow, shrink and exchange
workers by order of an operator, or of the autoscaler beside it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from baton.internal.v1 import registry_pb2_grpc
from cluster.internal_rpc import InternalRpc
from cluster.model import model_path
from cluster.placement import assign, worker_plans
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import ClusterSpec
from orchestrator.controller.background_tasks import BackgroundTasks
from orchestrator.controller.canary_driver import CanaryDriver
from orchestrator.controller.canary_log import CanaryLog
from orchestrator.controller.membership import Membership
from orchestrator.controller.pair_table import PairTable
from orchestrator.controller.pool_growth import PoolGrowth
from orchestrator.controller.role_change import RoleChanges, serve_role_change
from orchestrator.controller.scaling_loop import ScalingLoop
from orchestrator.controller.worker_admission import WorkerAdmission
from orchestrator.controller.worker_drain import GiveBack, WorkerDrains, serve_drain
from orchestrator.controller.worker_health import HealthChecks
from orchestrator.controller.worker_launch import Progress, WorkerLauncher
from orchestrator.controller.worker_pool import WorkerPool
from orchestrator.controller.worker_replacement import WorkerReplacement
from orchestrator.policy.canary import Canary
from orchestrator.policy.canary_probe import tolerance_nat
from orchestrator.registry import RegistryService


class Controller:
    """Composes the owners of one cluster, from its registry down to its workers, and starts and stops them.

    Args:
        spec: The cluster.
        runtime: Ray.
        on_progress: Called with what happens.
        log_folder: Where logs go that must outlive Ray's session.
        give_back: Called with the nodes that a drained worker leaves empty, so that they and no others go.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        runtime: RayRuntime,
        *,
        on_progress: Progress,
        log_folder: Path,
        give_back: GiveBack | None = None,
    ) -> None:
        self._spec = spec
        self._runtime = runtime
        self._log_folder = log_folder
        self._rpc = InternalRpc(spec.security)
        self._server: Any = None
        self._tasks = BackgroundTasks()
        self.registry = RegistryService(
            lambda request: serve_drain(request, self.drains, spec.drain.timeout_s),
            lambda request: serve_role_change(request, self.roles),
            lambda: self.canary.check(),
        )
        self.pairs = PairTable(spec.transfer, self._rpc, on_progress=on_progress)
        core = Canary(
            interval_s=spec.health.canary.interval_s,
            max_share=spec.health.canary.max_share,
            tolerance_nat=tolerance_nat(spec.model.dtype, spec.model.kv_cache_dtype, spec.model.quantization),
        )
        findings = CanaryLog(core, enabled=spec.health.canary.enabled)
        self.pool = WorkerPool(
            runtime,
            WorkerLauncher(spec, runtime, on_progress=on_progress, log_folder=log_folder),
            Membership(self.registry, self.pairs, core, findings).publish,
            silence_timeout_s=spec.health.silence_timeout_s,
            on_progress=on_progress,
        )
        self.canary = CanaryDriver(core, findings, self.pool, spec, self._rpc)
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

    async def serve_registry(self, host: str, port: int = 0) -> str:
        """Start the registry; returns its address."""
        self._server = self._rpc.server()
        registry_pb2_grpc.add_RegistryServicer_to_server(self.registry, self._server)
        bound = self._rpc.bind(self._server, f"{host}:{port}")
        await self._server.start()
        return f"{host}:{bound}"

    async def start(self) -> None:
        """Place and start all workers, let them into service, and watch them from then on.

        Raises:
            ServingError: a worker cannot be placed or started; the text says why.
        """
        model_path.check(self._spec.model.path)
        settings = dict(self._spec.pools.items())
        plans = worker_plans(self._spec)
        assignment = assign(plans, await asyncio.to_thread(self._runtime.nodes), may_wait=True)
        workers = [self.pool.add(plan, settings[plan.role]) for plan in plans]
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(self.pool.start(worker, assignment.node_of.get(worker.worker_id)))
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
            self._log_folder / "decisions.jsonl",
        )
        self.registry.on_report = scaling.on_report
        self._tasks.start(scaling.run())

    async def stop(self) -> None:
        """Stop all workers in parallel, politely first."""
        self.pool.begin_stop()
        self._tasks.cancel()
        await self.pool.stop()
        if self._server is not None:
            await self._server.stop(grace=0.5)
