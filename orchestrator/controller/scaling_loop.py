"""The autoscaler of a live cluster: at each interval the pure policy decides, that is written down, and carried out.

The policy is the simulator's (`orchestrator.policy.autoscaler`); what it sees comes from the gateways' reports and the
workers' loads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from baton.internal.v1 import registry_pb2
from baton.v1 import cluster_pb2
from cluster.errors import ConfigError, ServingError
from cluster.spec.config import ClusterSpec, Role
from orchestrator.controller.background_tasks import BackgroundTasks
from orchestrator.controller.decision_history import DecisionHistory
from orchestrator.controller.pool_growth import PoolGrowth
from orchestrator.controller.role_change import RoleChanges
from orchestrator.controller.scaling_setup import capacity_of, forecaster_of, policy_settings
from orchestrator.controller.scaling_view import LiveView, LoadReader, Workers, WorkerStatuses, enter_report
from orchestrator.controller.worker_drain import WorkerDrains
from orchestrator.policy.autoscaler import Autoscaler
from orchestrator.policy.budget_governor import Governor
from orchestrator.policy.demand import horizons_s
from orchestrator.policy.request_log import RequestLog
from orchestrator.policy.scaling_policy import ChangeRole, DrainWorker, ScalingAction, StartWorker

log = logging.getLogger("baton.autoscaler")

MISSED_REPORTS = 10
"""Intervals without a report after which a gateway counts as gone."""
ENOUGH_FINISHED = 16
"""Requests that must have finished before anything is decided: before that, lengths are the prior's."""


MayTake = Callable[[int], bool]
"""Whether so many GPUs are left of what all models share."""


class ScalingLoop:
    """Owns the autoscaler's memory: the requests reported to it, the capacity measured, the decisions made.

    Args:
        spec: Bounds, objectives and patience.
        workers: Those of the pool; at least one decode worker is up.
        growth: Carries out starts.
        drains: Carries out drains.
        roles: Carries out changes of roles.
        decisions: File that every decision is added to, for `baton decisions`.
        may_take: See `MayTake`.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        workers: Workers,
        growth: PoolGrowth,
        drains: WorkerDrains,
        roles: RoleChanges,
        decisions: Path,
        *,
        may_take: MayTake,
    ) -> None:
        self._spec = spec
        self._workers = workers
        self._growth = growth
        self._drains = drains
        self._roles = roles
        self._may_take = may_take
        settings = spec.autoscaling
        self._began_s = time.monotonic()
        self._settings = policy_settings(spec)
        self._requests = RequestLog(silence_s=MISSED_REPORTS * settings.report_interval_s)
        self._changing: dict[str, Role] = {}
        self._statuses = WorkerStatuses(workers, self._changing, began_s=self._began_s)
        self._history = DecisionHistory(decisions)
        self._governor = Governor()
        capacity = capacity_of(spec, workers())
        self._loads = LoadReader(workers, capacity)
        self._policy = Autoscaler(
            forecaster_of(spec, capacity), self._settings, interval_s=settings.interval_s, log=self._history.take
        )
        self._tasks = BackgroundTasks()
        self._stepped_s = 0.0
        self._first_s = 0.0
        self._guess_s = horizons_s(settings.start_s)[-1]
        """With traces so long that none ends, those that run say enough after this."""

    async def run(self) -> None:
        """Decide every interval, until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._policy.interval_s)
                try:
                    self.step()
                except Exception:  # one failed step must not end scaling for good
                    log.exception("no decision this time")
        finally:
            self._tasks.cancel()

    def step(self) -> None:
        """Take what is seen, decide once, and begin what follows from it."""
        now_s = self._now_s()
        self._loads.read()
        view = LiveView(self._requests, self._statuses, now_s)
        elapsed_s, self._stepped_s = now_s - self._stepped_s, now_s
        if self._requests.arrived_requests and not self._first_s:
            self._first_s = now_s
        guesses = self._requests.finished_requests < ENOUGH_FINISHED and now_s - self._first_s < self._guess_s
        if guesses:
            holders = sum(each.view.role is Role.DECODE for each in self._statuses.all())
            demand = self._policy.forecaster.observe(now_s, view.in_flight(), view.arrived(), view.finished(), holders)
            self._history.postpone(demand, "too few requests have finished to tell how long they get")
            return
        for action in self._policy.decide(now_s, view):
            self._act(action)
        self._govern(elapsed_s)

    def on_report(self, request: registry_pb2.ReportRequestsRequest) -> registry_pb2.ReportRequestsResponse:
        """`Registry.ReportRequests`."""
        enter_report(self._requests, request, self._now_s())
        return registry_pb2.ReportRequestsResponse(scaling=self.scaling())

    def scaling(self) -> cluster_pb2.Scaling:
        """What `baton top` shows."""
        severity = self._governor.severity if self._spec.autoscaling.thinking_budgets.enabled else 0.0
        return self._history.scaling(self._now_s(), self._settings, self._statuses.all(), thinking_severity=severity)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _govern(self, elapsed_s: float) -> None:
        """Let thinking budgets shrink where the forecast exceeds the decode workers that may be had."""
        demand, rows = self._history.demand, self._statuses.all()
        if demand is None:
            return
        had = sum(row.view.role is Role.DECODE and row.state != "draining" for row in rows)
        most_gpus = float("inf") if self._settings.max_gpus is None else self._settings.max_gpus
        free = most_gpus - sum(row.gpus for row in rows)
        per_worker = max((row.gpus for row in rows), default=1)
        more = 0 if self._may_not_start() else max(0.0, free // per_worker)
        decode_workers = min(self._settings.max_decode, had + more)
        pressure = demand.kv_high_tokens[-1] / max(1.0, decode_workers * demand.worker_kv_tokens)
        self._governor.step(pressure, elapsed_s)

    def _may_not_start(self) -> bool:
        pause_s = self._spec.autoscaling.start_failure_pause_s
        return time.monotonic() - self._growth.start_failed_s < pause_s

    # --- what is done ---------------------------------------------------------------------------------------

    def _act(self, action: ScalingAction) -> None:
        try:
            match action:
                case StartWorker():
                    gpus = dict(self._spec.pools.items())[action.role].gpus_per_worker
                    if not self._may_not_start() and self._may_take(gpus):
                        self._growth.grow(action.role)
                case DrainWorker():
                    if any(worker.worker_id == action.worker_id and worker.starting for worker in self._workers()):
                        self._growth.cancel_start(action.worker_id)
                    else:
                        self._drains.drain([action.worker_id], self._spec.drain.timeout_s)
                case ChangeRole():
                    self._tasks.start(self._change_role(action.worker_id, action.role))
                case _:
                    raise AssertionError(f"the autoscaler moves no requests: {action}")
        except ConfigError as error:
            log.warning("not done: %s: %s", action, error)

    async def _change_role(self, worker_id: str, role: Role) -> None:
        self._changing[worker_id] = role
        try:
            await self._roles.change_role(worker_id, role)
        except (ServingError, TimeoutError) as error:
            log.warning("%s does not become %s: %s", worker_id, role, error or "it does not answer")
        finally:
            del self._changing[worker_id]
