"""The workers of a cluster: their records and their processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cluster.errors import ConfigError, ServingError, WorkerDied
from cluster.placement import WorkerPlan, worker_plan
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import PoolSettings, Role
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.worker_launch import Progress, WorkerLauncher
from orchestrator.policy.standby import Place, exchanges

log = logging.getLogger("baton.controller")

STOP_TIMEOUT_S = 10.0

Publish = Callable[[Sequence[ManagedWorker]], Awaitable[None]]
"""Called with all workers when something about them has changed."""


class WorkerPool:
    """Owns the workers, and is alone in changing what is known of them and in calling, stopping and removing them.

    Args:
        runtime: Ray, where the workers run.
        launcher: Places and loads them.
        publish: See `Publish`.
        silence_timeout_s: Seconds that a worker has for an answer.
        on_progress: Called at each stage of a worker.
        prefix: What names of workers begin with.
    """

    def __init__(
        self,
        runtime: RayRuntime,
        launcher: WorkerLauncher,
        publish: Publish,
        *,
        silence_timeout_s: float,
        on_progress: Progress,
        prefix: str = "",
    ) -> None:
        self._runtime = runtime
        self._launcher = launcher
        self._publish = publish
        self._silence_timeout_s = silence_timeout_s
        self._progress = on_progress
        self._prefix = prefix
        self._workers: dict[str, ManagedWorker] = {}
        self.stopping = False
        """The cluster ends: nothing is started or replaced any more."""

    # --- what there is --------------------------------------------------------------------------------------

    def workers(self) -> list[ManagedWorker]:
        """All workers, in order of start."""
        return list(self._workers.values())

    def find(self, worker_id: str) -> ManagedWorker | None:
        """The worker of this name."""
        return self._workers.get(worker_id)

    async def publish(self) -> None:
        """Publish the workers, once those on standby have filled the places that they can."""
        self._fill_places()
        await self._publish(self.workers())

    def _fill_places(self) -> None:
        places = [
            Place(worker.worker_id, worker.role, worker.standby, worker.up)
            for worker in self._workers.values()
            if not worker.unwanted.is_set() and (worker.returns or not worker.draining)
        ]
        for exchange in exchanges(places):
            promoted, replaced = self._workers[exchange.promoted], self._workers[exchange.replaced]
            promoted.standby, replaced.standby = False, True
            promoted.member.state, promoted.since_s = "ready", time.monotonic()
            log.info("%s serves in the place of %s", exchange.promoted, exchange.replaced)
            self._progress(exchange.promoted, "ready", f"from standby, in the place of {exchange.replaced}")

    # --- from start to service ------------------------------------------------------------------------------

    def add(self, plan: WorkerPlan, pool: PoolSettings) -> ManagedWorker:
        """Record a worker that is to be started."""
        worker = self._workers[plan.worker_id] = ManagedWorker.planned(plan, pool)
        return worker

    def add_another(self, role: Role, pool: PoolSettings) -> ManagedWorker:
        """Record one more worker of a role, under the first name that is free."""
        plans = (worker_plan(role, pool, index, prefix=self._prefix) for index in itertools.count())
        return self.add(next(plan for plan in plans if plan.worker_id not in self._workers), pool)

    async def start(self, worker: ManagedWorker, node_id: str | None = None) -> None:
        """Place a worker and load its engine; it serves once `serve` is called.

        Raises:
            ServingError: it could not be placed or started; the text says why.
        """
        plan, pool = worker.plan, worker.pool
        placing = asyncio.ensure_future(self._launcher.place(plan, pool, node_id=node_id, cancelled=worker.unwanted))
        try:
            worker.handle = handle = await asyncio.shield(placing)
        except asyncio.CancelledError:
            worker.unwanted.set()  # it may have a place by now, or get one: that has to be known to be given back
            with contextlib.suppress(ServingError):
                worker.handle = await placing
            raise
        loaded = await self._launcher.load(plan, pool, handle, role=worker.role)
        worker.member, worker.processes = loaded.member, loaded.processes

    def serve(self, worker: ManagedWorker) -> None:
        """A worker that has started is ready, or on standby."""
        state = "standby" if worker.standby else "ready"
        worker.member.state, worker.since_s = state, time.monotonic()
        worker.start_failed = False
        self._progress(worker.worker_id, state, worker.member.address)

    def give_up(self, worker: ManagedWorker) -> None:
        """Have a worker that is being started not serve; the caller publishes."""
        worker.unwanted.set()

    async def fail_start(self, worker: ManagedWorker) -> None:
        """A start failed: gateways do not count on the worker until it serves."""
        worker.start_failed = True
        await self.publish()

    # --- in service -----------------------------------------------------------------------------------------

    async def call(self, worker: ManagedWorker, method: str, *arguments: Any) -> Any:
        """Await a method of the worker, for at most ``silence_timeout_s``.

        Raises:
            WorkerDied: it is gone.
            TimeoutError: it does not answer.
        """
        if worker.handle is None:
            raise WorkerDied("the worker is gone", worker_id=worker.worker_id)
        async with asyncio.timeout(self._silence_timeout_s):
            return await self._runtime.call(worker.handle, method, *arguments)

    async def check_health(self, worker: ManagedWorker) -> dict[str, Any]:
        """Ask a worker for its load, and keep it.

        Raises:
            WorkerDied, TimeoutError: as `call`.
        """
        load: dict[str, Any] = await self.call(worker, "check_health")
        worker.load, worker.load_s = load, time.monotonic()
        return load

    async def take_role(self, worker: ManagedWorker, role: Role) -> None:
        """Publish a ready worker under another role."""
        old, worker.role, worker.since_s = worker.role, role, time.monotonic()
        worker.member.role = role.value
        await self.publish()
        self._progress(worker.worker_id, "ready", f"{old} becomes {role}")

    # --- from service to its end ----------------------------------------------------------------------------

    def begin_drain(self, worker_ids: Sequence[str], *, returns: bool) -> list[ManagedWorker]:
        """Mark workers as draining; the caller publishes.

        Raises:
            ConfigError: a worker is not known, not ready, or drains already.
        """
        check_drainable(self.workers(), worker_ids)
        workers = [self._workers[worker_id] for worker_id in dict.fromkeys(worker_ids)]
        for worker in workers:
            worker.unwanted.clear()  # one that was given up, and came into service all the same
            worker.draining, worker.returns = True, returns
            worker.member.state, worker.since_s = "draining", time.monotonic()
        return workers

    async def retire(self, worker: ManagedWorker) -> None:
        """Stop a worker that has been drained."""
        returns = worker.returns
        await self.lose(worker)
        await self._end(worker)
        self._progress(worker.worker_id, "drained", "a new one starts" if returns else "stopped")
        worker.draining = worker.returns = False

    async def lose(self, worker: ManagedWorker) -> None:
        """Publish a worker as lost."""
        worker.member.state = "lost"
        await self.publish()

    async def release_for_restart(self, worker: ManagedWorker) -> int:
        """Give back what a worker's last incarnation has; how often it was started again before."""
        await self._release(worker)
        worker.restarts += 1
        return worker.restarts - 1

    async def abandon(self, worker: ManagedWorker) -> None:
        """End a worker that never came into service, and forget it."""
        worker.member.state = "lost"
        worker.unwanted.set()
        await self._end(worker)
        await self.forget(worker)

    async def forget(self, worker: ManagedWorker) -> None:
        """Drop a worker whose process has ended."""
        self._workers.pop(worker.worker_id, None)
        await self.publish()

    def begin_stop(self) -> None:
        """Start nothing any more, and end the waits for places."""
        self.stopping = True
        for worker in self._workers.values():
            worker.unwanted.set()

    async def stop(self) -> None:
        """Have all workers stop by themselves, in parallel; the runtime removes what is left."""
        await asyncio.gather(*(self._stop(worker) for worker in self._workers.values()))

    async def _end(self, worker: ManagedWorker) -> None:
        """Stop a worker, politely first, and give its resources back."""
        await self._stop(worker)
        await self._release(worker)

    async def _stop(self, worker: ManagedWorker) -> None:
        if worker.handle is None:
            return
        self._progress(worker.worker_id, "stopping", "")
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._runtime.call(worker.handle, "stop")
        except (ServingError, TimeoutError) as error:
            log.warning("worker %s did not stop by itself: %s", worker.worker_id, error)

    async def _release(self, worker: ManagedWorker) -> None:
        """Give a worker's resources back, and end what is left of its processes."""
        if worker.handle is not None:
            handle, worker.handle = worker.handle, None
            processes, worker.processes = worker.processes, []
            await asyncio.to_thread(self._runtime.remove, handle, processes)


def check_drainable(workers: Sequence[ManagedWorker], worker_ids: Sequence[str]) -> None:
    """See that workers of a pool can be drained.

    Raises:
        ConfigError: one is not known, not ready, or drains already.
    """
    by_id = {worker.worker_id: worker for worker in workers}
    for worker_id in worker_ids:
        known = by_id.get(worker_id)
        if known is None or not known.up or known.draining:
            state = "unknown" if known is None else "draining" if known.draining else known.member.state or "gone"
            ready = [each.worker_id for each in workers if each.up]
            raise ConfigError(f"{worker_id} is {state}; workers that can be drained: {', '.join(ready) or 'none'}")
