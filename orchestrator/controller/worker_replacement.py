"""Workers that die, fall silent or compute wrongly: taken from service, and started again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from cluster.errors import ServingError
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import Role
from orchestrator.controller.background_tasks import BackgroundTasks
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.worker_admission import WorkerAdmission
from orchestrator.controller.worker_launch import Progress
from orchestrator.controller.worker_pool import WorkerPool

log = logging.getLogger("baton.controller")

NODE_LEAVES_TIMEOUT_S = 600.0
"""A node that was announced to leave and stays is used again after this long."""
NODE_POLL_S = 5.0
RESTART_BACKOFF_S = (1.0, 5.0, 15.0, 60.0)


class WorkerReplacement:
    """Replaces workers of a pool. Owns the restarts under way, by way of ``tasks``.

    Args:
        pool: Whose workers.
        admission: Lets the new ones into service.
        runtime: Ray; says which nodes are there.
        tasks: Where restarts run.
        on_progress: Called for each worker that is replaced.
    """

    def __init__(
        self,
        pool: WorkerPool,
        admission: WorkerAdmission,
        runtime: RayRuntime,
        tasks: BackgroundTasks,
        *,
        on_progress: Progress,
    ) -> None:
        self._pool = pool
        self._admission = admission
        self._runtime = runtime
        self._tasks = tasks
        self._progress = on_progress

    async def replace(self, worker: ManagedWorker) -> None:
        """Take a worker from service and start a new one in its place, beside the caller."""
        await self._pool.lose(worker)
        self._progress(worker.worker_id, "lost", "a new one starts")
        self.restart(worker)

    def restart(self, worker: ManagedWorker, *, once_gone: str | None = None) -> None:
        """Start a worker again, as often as it takes, beside the caller.

        ``once_gone`` is a node that must have left before.
        """
        self._tasks.start(self._restart(worker, once_gone))

    async def take_out(self, worker_id: str, sentence: str) -> None:
        """Stop a worker that computes wrongly, at once: what it had is prefilled again elsewhere from the ledger.

        Its KV moves nowhere, and what other workers read from it they drop.
        """
        pool, worker = self._pool, self._pool.find(worker_id)
        if worker is None or pool.stopping or not (worker.up or worker.draining):
            return
        self._progress(worker_id, "faulty", sentence)
        if worker.draining:  # its drain stops it; gateways are to move nothing meanwhile
            await pool.lose(worker)
        else:
            await self.replace(worker)
        if worker.role is not Role.COLOCATED:
            readers = [each.worker_id for each in pool.workers() if each.up and each.role is Role.DECODE]
            self._tasks.start(self._forget_kv(readers))

    async def refuse_link(self, prefill_id: str, decode_id: str, sentence: str) -> None:
        """Have gateways use a link no more, and its reader drop what came over it."""
        await self._pool.publish()
        await self._forget_kv([decode_id])
        self._progress(f"{prefill_id} → {decode_id}", "refused", sentence)

    async def _forget_kv(self, worker_ids: Sequence[str]) -> None:
        """Have workers drop KV that may be wrong. Their running requests compute theirs again, and no token changes."""
        for worker_id in worker_ids:
            worker = self._pool.find(worker_id)
            if worker is None or not worker.up:
                continue
            try:
                await self._pool.call(worker, "forget_kv")
            except (ServingError, TimeoutError) as error:
                log.error("worker %s keeps KV that may be wrong, and is replaced: %s", worker_id, error)
                if worker.up:  # it may have been drained or replaced meanwhile
                    await self.replace(worker)

    async def _restart(self, worker: ManagedWorker, once_gone: str | None) -> None:
        if once_gone is not None:
            await self._until_gone(once_gone)
        while not self._pool.stopping:
            tries = await self._pool.release_for_restart(worker)
            await asyncio.sleep(RESTART_BACKOFF_S[min(tries, len(RESTART_BACKOFF_S) - 1)])
            try:
                await self._pool.start(worker)
                await self._admission.admit([worker.worker_id])
            except ServingError as error:
                log.error("worker %s could not be replaced, next try follows: %s", worker.worker_id, error)
                await self._pool.fail_start(worker)
                continue
            return

    async def _until_gone(self, node_id: str) -> None:
        """Wait for a node to leave, or Ray would place the new worker on it again."""
        for _ in range(int(NODE_LEAVES_TIMEOUT_S / NODE_POLL_S)):
            if node_id not in {node.node_id for node in await asyncio.to_thread(self._runtime.nodes)}:
                return
            await asyncio.sleep(NODE_POLL_S)
