"""Pools grow and exchange workers: what is done to a controller's workers beyond keeping those of the spec."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import TYPE_CHECKING

from cluster.errors import ConfigError, ServingError
from cluster.placement import assign, worker_plan
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import ClusterSpec, Role
from orchestrator.controller.warm_up import WarmUp

if TYPE_CHECKING:
    from orchestrator.controller.controller import Controller, ManagedWorker

log = logging.getLogger("baton.controller")


class PoolChanges:
    """Changes of one controller's pools. Shrinking is a drain, and is the controller's own."""

    def __init__(self, controller: Controller, spec: ClusterSpec, runtime: RayRuntime) -> None:
        self._controller = controller
        self._spec = spec
        self._runtime = runtime
        self.started_in_s: float | None = None
        """What the last worker that was ordered took until it served."""
        self.start_failed_s = -1e9
        """When an order last failed (monotonic)."""

    def _worker(self, worker_id: str) -> ManagedWorker | None:
        return next((each for each in self._controller.workers() if each.plan.worker_id == worker_id), None)

    def grow(self, role: Role) -> str:
        """Order one more worker of a role; returns its name. If it cannot be started, it is gone again.

        Where a worker of the role is on standby, that one serves at once, and the new one is on standby.

        Raises:
            ConfigError: there is no such pool.
        """
        pool = dict(self._spec.pools.items()).get(role)
        if pool is None:
            raise ConfigError(f"pools.{role}: missing; a worker of it cannot be started")
        taken = {worker.plan.worker_id for worker in self._controller.workers()}
        index = next(index for index in itertools.count() if f"{role}-{index}" not in taken)
        worker = self._controller.add(worker_plan(role, pool, index), pool)
        self._controller.background(self._start_more(worker))
        return worker.plan.worker_id

    def cancel_start(self, worker_id: str) -> None:
        """Give up a worker that has not served yet: at once while it waits for its place, else when it has loaded."""
        worker = self._worker(worker_id)
        if worker is not None and worker.member.state in ("", "starting"):
            worker.unwanted.set()
            self._controller.background(self._controller.publish())  # gateways count on it no more

    async def _start_more(self, worker: ManagedWorker) -> None:
        controller, worker_id, began_s = self._controller, worker.plan.worker_id, time.monotonic()
        try:
            await controller.publish()  # a worker on standby serves at once, and this one waits in its place
            nodes = await asyncio.to_thread(self._runtime.nodes)
            domains = {
                each.handle.node.nvlink_domain
                for each in self._controller.workers()
                if each.handle is not None and each.role is Role.PREFILL
            }
            place = assign([worker.plan], nodes, taken_domains=frozenset(domains - {""}), may_wait=True)
            await controller.start_worker(worker, place.node_of.get(worker_id))
            if not worker.unwanted.is_set():
                await controller.warm([worker_id])
                self.started_in_s = time.monotonic() - began_s
                if worker.unwanted.is_set():  # since it began to shake hands; gateways may have given it work
                    worker.unwanted.clear()
                    controller.drain([worker_id], self._spec.drain.timeout_s)
                return
        except (ServingError, TimeoutError) as error:
            if not worker.unwanted.is_set():
                log.error("worker %s could not be started: %s", worker_id, error)
                controller.say(worker_id, "failed", str(error))
                self.start_failed_s = time.monotonic()
        worker.member.state = "lost"
        if worker.standby and not worker.unwanted.is_set():
            controller.background(controller.restart(worker))  # another serves in its place: the pool owes a standby
            return
        worker.unwanted.set()
        await controller.end(worker)
        await controller.remove(worker)
        await controller.forget(worker)

    async def change_role(self, worker_id: str, role: Role) -> ManagedWorker:
        """Let a ready worker do another pool's work, its engine as it is. Returns once gateways have been told.

        New peers shake hands first, and meanwhile the worker serves as before. What it has in its old role moves away
        (decode) or finishes and is read (prefill).

        Raises:
            ConfigError: the worker cannot take the role, or is the last one of its pool.
            ServingError: it cannot exchange KV with a new peer; it keeps its role.
        """
        controller, worker = self._controller, self._worker(worker_id)
        self._check_change(worker_id, worker, role)
        assert worker is not None
        if worker.role is role:
            return worker
        peer_role = Role.DECODE if role is Role.PREFILL else Role.PREFILL
        peers = [
            each
            for each in self._controller.workers()
            if each is not worker
            and each.role is peer_role
            and each.up  # those on standby, too: they will serve with it
            and each.member.revision == worker.member.revision
        ]
        warm_up = WarmUp({each.plan.worker_id: each.member for each in [worker, *peers]}, controller.rpc)
        try:
            for peer in peers:
                await controller.warm_pair(warm_up, *((worker, peer) if role is Role.PREFILL else (peer, worker)))
        finally:
            await warm_up.close()
        await controller.call(worker, "change_role", role.value)
        self._check_change(worker_id, self._worker(worker_id), role)  # much may have happened meanwhile
        old, worker.role, worker.since_s = worker.role, role, time.monotonic()
        worker.member.role = role.value
        await controller.publish()
        controller.say(worker_id, "ready", f"{old} becomes {role}")
        return worker

    def _check_change(self, worker_id: str, worker: ManagedWorker | None, role: Role) -> None:
        if worker is None or worker.member.state != "ready" or worker.draining:
            raise ConfigError(f"{worker_id} is not ready, or unknown; `baton status` lists the workers")
        if Role.COLOCATED in (role, worker.role):
            raise ConfigError("a colocated worker exchanges no KV: only prefill and decode workers change roles")
        if role is worker.role:
            return
        if worker.plan.role is Role.PREFILL and not self._spec.changes_roles:
            raise ConfigError(
                f"{worker_id} was started to prefill alone; set autoscaling.enabled and change_roles, with equal "
                "engines in both pools, and start it anew"
            )
        rest = [
            each for each in self._controller.workers() if each.role is worker.role and each.member.state == "ready"
        ]
        if len(rest) < 2:
            raise ConfigError(f"{worker_id} is the last {worker.role} worker; start another one first")
