"""A pool grows by a worker, or is spared one that has not served yet."""

from __future__ import annotations

import asyncio
import logging
import time

from cluster.errors import ConfigError, ServingError
from cluster.placement import assign
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import ClusterSpec, Role
from orchestrator.controller.background_tasks import BackgroundTasks
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.worker_admission import WorkerAdmission
from orchestrator.controller.worker_drain import WorkerDrains
from orchestrator.controller.worker_launch import Progress
from orchestrator.controller.worker_pool import WorkerPool
from orchestrator.controller.worker_replacement import WorkerReplacement

log = logging.getLogger("baton.controller")


class PoolGrowth:
    """Starts workers beyond those of the spec. Owns the starts under way, and what came of the last ones.

    Args:
        spec: The cluster.
        runtime: Ray; says which nodes are there.
        pool: Whose workers.
        admission: Lets them into service.
        replacement: Starts a worker on standby again that could not be started.
        drains: Empties a worker that was given up and came into service all the same.
        tasks: Where starts run.
        on_progress: Called for a start that failed.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        runtime: RayRuntime,
        pool: WorkerPool,
        admission: WorkerAdmission,
        replacement: WorkerReplacement,
        drains: WorkerDrains,
        tasks: BackgroundTasks,
        *,
        on_progress: Progress,
    ) -> None:
        self._spec = spec
        self._runtime = runtime
        self._pool = pool
        self._admission = admission
        self._replacement = replacement
        self._drains = drains
        self._tasks = tasks
        self._progress = on_progress
        self.started_in_s: float | None = None
        """What the last worker that was ordered took until it served."""
        self.start_failed_s = -1e9
        """When an order last failed (monotonic)."""

    def grow(self, role: Role) -> str:
        """Order one more worker of a role; returns its name. If it cannot be started, it is gone again.

        Where a worker of the role is on standby, that one serves at once, and the new one is on standby.

        Raises:
            ConfigError: there is no such pool.
        """
        settings = dict(self._spec.pools.items()).get(role)
        if settings is None:
            raise ConfigError(f"pools.{role}: missing; a worker of it cannot be started")
        worker = self._pool.add_another(role, settings)
        self._tasks.start(self._start(worker))
        return worker.worker_id

    def cancel_start(self, worker_id: str) -> None:
        """Give up a worker that has not served yet: at once while it waits for its place, else when it has loaded."""
        worker = self._pool.find(worker_id)
        if worker is not None and worker.starting:
            self._pool.give_up(worker)
            self._tasks.start(self._pool.publish())  # gateways count on it no more

    async def _start(self, worker: ManagedWorker) -> None:
        began_s = time.monotonic()
        try:
            await self._pool.publish()  # a worker on standby serves at once, and this one waits in its place
            await self._pool.start(worker, await self._node_for(worker))
            if not worker.unwanted.is_set():
                await self._admission.admit([worker.worker_id])
                self.started_in_s = time.monotonic() - began_s
                if worker.unwanted.is_set():  # since its handshake began; gateways may have given it work
                    self._drains.drain([worker.worker_id], self._spec.drain.timeout_s)
                return
        except (ServingError, TimeoutError) as error:
            if not worker.unwanted.is_set():
                log.error("worker %s could not be started: %s", worker.worker_id, error)
                self._progress(worker.worker_id, "failed", str(error))
                self.start_failed_s = time.monotonic()
        if worker.standby and not worker.unwanted.is_set():
            await self._pool.lose(worker)
            self._replacement.restart(worker)  # another serves in its place: the pool owes a standby
        else:
            await self._pool.abandon(worker)

    async def _node_for(self, worker: ManagedWorker) -> str | None:
        """Where the worker fits best; None leaves it to Ray, or waits for a node to come."""
        nodes = await asyncio.to_thread(self._runtime.nodes)
        domains = {
            each.handle.node.nvlink_domain
            for each in self._pool.workers()
            if each.handle is not None and each.role is Role.PREFILL
        }
        place = assign([worker.plan], nodes, taken_domains=frozenset(domains - {""}), may_wait=True)
        return place.node_of.get(worker.worker_id)
