"""Asks workers how they are, and has those that are gone or silent replaced."""

from __future__ import annotations

import asyncio
import logging
import time
from enum import Enum

from cluster.errors import ServingError
from cluster.spec.config import ClusterSpec
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.worker_drain import WorkerDrains
from orchestrator.controller.worker_pool import WorkerPool
from orchestrator.controller.worker_replacement import WorkerReplacement
from orchestrator.policy.silence import CutOff

log = logging.getLogger("baton.controller")


class Health(Enum):
    """How a worker answers a health check."""

    WELL = "well"
    SILENT = "silent"
    LOST = "lost"


class HealthChecks:
    """Owns the loop that checks the workers of a pool.

    Args:
        spec: How often, and how long a silence may be.
        pool: Whose workers.
        drains: Takes workers that are about to end.
        replacement: Takes workers that are gone or silent.
    """

    def __init__(
        self, spec: ClusterSpec, pool: WorkerPool, drains: WorkerDrains, replacement: WorkerReplacement
    ) -> None:
        self._spec = spec
        self._pool = pool
        self._drains = drains
        self._replacement = replacement
        self._cut_off = CutOff(spec.health.silence_timeout_s)

    async def run(self) -> None:
        """Check every interval, until cancelled."""
        while True:
            await asyncio.sleep(self._spec.health.interval_s)
            try:
                await self.check()
            except Exception:
                log.exception("a round of health checks failed; the next one comes")

    async def check(self) -> None:
        """Ask all workers that serve or are on standby once, and act on the answers."""
        up = [worker for worker in self._pool.workers() if worker.up]
        found = await asyncio.gather(*(self._health(worker) for worker in up))
        silent = sum(each is Health.SILENT for each in found)
        if self._cut_off.observe(time.monotonic(), heard=Health.WELL in found, silent=silent):
            log.warning("no worker answers: this host is cut off, or all of them are; none is replaced yet")
            return
        for worker, health in zip(up, found, strict=True):
            if health is not Health.WELL and worker.up and not self._pool.stopping and not worker.draining:
                await self._replacement.replace(worker)

    async def _health(self, worker: ManagedWorker) -> Health:
        try:
            load = await self._pool.check_health(worker)
        except TimeoutError:
            log.error("worker %s does not answer", worker.worker_id)
            return Health.SILENT
        except ServingError as error:
            log.error("worker %s is lost: %s", worker.worker_id, error)
            return Health.LOST
        if load["draining"] and worker.up and not worker.draining:
            log.warning("worker %s was asked to end; it is drained and replaced", worker.worker_id)
            self._drains.drain([worker.worker_id], self._spec.drain.timeout_s, replace=True)
        return Health.WELL
