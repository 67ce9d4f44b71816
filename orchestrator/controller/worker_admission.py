"""What stands between a started worker and its service: handshakes with its peers, and the canaries."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import EngineFailed
from cluster.spec.config import Role
from orchestrator.controller.canary_driver import CanaryDriver
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.pair_table import PairTable, pairs_with
from orchestrator.controller.worker_launch import Progress
from orchestrator.controller.worker_pool import WorkerPool
from orchestrator.policy.readiness import can_serve


class WorkerAdmission:
    """Lets started workers into service. Owns nothing: the pool marks them, the table keeps the pairs.

    Args:
        pool: Whose workers.
        pairs: Where they do their handshake.
        canary: Says which compute wrongly.
        on_progress: Called for those that do.
    """

    def __init__(self, pool: WorkerPool, pairs: PairTable, canary: CanaryDriver, *, on_progress: Progress) -> None:
        self._pool = pool
        self._pairs = pairs
        self._canary = canary
        self._progress = on_progress

    async def admit(self, new: Sequence[str]) -> list[ManagedWorker]:
        """Warm pairs that have a new worker in them; then the new ones that compute rightly are ready, or on standby.

        Returns:
            Those that do not: the caller replaces them.

        Raises:
            ServingError: a pair cannot exchange KV.
            EngineFailed: those that compute wrongly leave too few to serve; the text says how they were found out.
        """
        started = {
            worker.worker_id: worker
            for worker in self._pool.workers()
            if worker.member.state == "starting" or worker.up
        }
        alone = [started[worker_id] for worker_id in new if started[worker_id].role is Role.COLOCATED]
        await self._pairs.shake_hands(pairs_with(new, started.values()), alone=alone)
        refused = await self._canary.admit(new)
        for worker_id in new:
            if worker_id in refused:
                self._progress(worker_id, "faulty", refused[worker_id])
            else:
                self._pool.serve(started[worker_id])
                self._canary.serve(worker_id)
        await self._pool.publish()
        if refused and (len(new) == 1 or not self._can_serve()):
            raise EngineFailed("; ".join(dict.fromkeys(refused.values())))
        return [started[worker_id] for worker_id in refused]

    def _can_serve(self) -> bool:
        return can_serve((worker.role.value, worker.up) for worker in self._pool.workers())
