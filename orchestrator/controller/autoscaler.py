"""The autoscaler beside a controller: looks, has the pure policy decide, writes that down, and acts.

The policy is the simulator's (`orchestrator.policy.autoscaler`); what it sees comes from the gateways' reports and the
workers' loads.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from baton.internal.v1 import registry_pb2
from baton.v1 import cluster_pb2
from cluster.errors import ConfigError, ServingError
from cluster.hardware.catalogue import catalogue
from cluster.hardware.engine_constants import engine_constants
from cluster.model.model_config import read_config
from cluster.model.model_path import expand
from cluster.spec.config import ClusterSpec, Role
from decode_workers.cost import DecodeCost
from decode_workers.profile import engine_settings
from orchestrator.policy.autoscaler import Autoscaler
from orchestrator.policy.budget_governor import Governor
from orchestrator.policy.decision_log import entry_line
from orchestrator.policy.demand import Demand, DemandForecaster, horizons_s
from orchestrator.policy.length_forecast import LengthSettings
from orchestrator.policy.measured_capacity import LoadReading, MeasuredCapacity, measured_capacity
from orchestrator.policy.request_book import RequestBook
from orchestrator.policy.router import WorkerView
from orchestrator.policy.scaling_decision import AutoscalerSettings, Decision, Memory, WorkerRow
from orchestrator.policy.scaling_policy import (
    Arrival,
    ChangeRole,
    DrainWorker,
    FinishedRequest,
    InFlight,
    ScalingAction,
    StartWorker,
    WorkerStatus,
)
from prefill_workers.cost import PrefillCost

if TYPE_CHECKING:
    from orchestrator.controller.controller import Controller, ManagedWorker

log = logging.getLogger("baton.autoscaler")

SHOWN_DECISIONS = 12
MAX_LOG_BYTES = 64 << 20
"""Of the decision log; then it begins anew and the old one is kept beside it."""
MISSED_REPORTS = 10
"""Intervals without a report after which a gateway counts as gone."""
ENOUGH_FINISHED = 16
"""Requests that must have finished before anything is decided: before that, lengths are the prior's."""
SCALED = (Role.PREFILL, Role.DECODE)


class LiveAutoscaler:
    """Runs beside a controller whose workers are ready.

    Args:
        controller: What is changed.
        spec: Bounds, objectives and patience.
        decisions: File that every decision is added to, for `baton decisions`.
    """

    def __init__(self, controller: Controller, spec: ClusterSpec, decisions: Path) -> None:
        self._controller = controller
        self._spec = spec
        self._path = decisions
        settings = spec.autoscaling
        self._book = RequestBook(silence_s=MISSED_REPORTS * settings.report_interval_s)
        self._began_s = time.monotonic()
        self.settings = policy_settings(spec)
        self._looked_s = 0.0
        self._governor = Governor()
        self._first_s = 0.0
        self._guess_s = horizons_s(settings.start_s)[-1]
        """With traces so long that none ends, those that run say enough after this."""
        lengths = LengthSettings(
            prior_mean_tokens=float(spec.gateway.forecast_osl_tokens), memory_s=settings.length_half_lives_s
        )
        self._capacity = capacity_of(spec, controller.workers())
        self._capacity.context_memory_s = lengths.memory_s[1]
        forecaster = DemandForecaster(
            self._capacity,
            ttft_s=spec.slo.ttft_p95_s,
            horizons_s=horizons_s(settings.start_s),
            lengths=lengths,
        )
        self._policy = Autoscaler(forecaster, self.settings, interval_s=settings.interval_s, log=self._take)
        self._changing: dict[str, Role] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._demand: Demand | None = None
        self._reason = ""
        self._shown: deque[tuple[float, str]] = deque(maxlen=SHOWN_DECISIONS)
        self._last_actions: tuple[ScalingAction, ...] = ()
        self._read_s: dict[str, float] = {}

    async def run(self) -> None:
        """Decide every interval, until cancelled."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            await asyncio.sleep(self._policy.interval_s)
            try:
                self.step()
            except Exception:  # one bad look must not end scaling for good
                log.exception("no decision this time")

    def step(self) -> None:
        """One look, one decision, and what follows from it."""
        now_s = self._now_s()
        self._read_loads()
        view = _View(self, now_s)
        elapsed_s, self._looked_s = now_s - self._looked_s, now_s
        if self._book.arrived_requests and not self._first_s:
            self._first_s = now_s
        guesses = self._book.finished_requests < ENOUGH_FINISHED and now_s - self._first_s < self._guess_s
        if guesses:
            holders = sum(each.view.role is Role.DECODE for each in self.statuses())
            self._demand = self._policy.forecaster.look(
                now_s, view.in_flight(), view.arrived(), view.finished(), holders
            )
            self._reason = "too few requests have finished to tell how long they get"
            return
        for action in self._policy.decide(now_s, view):
            self._act(action)
        self._govern(elapsed_s)

    # --- what gateways say ----------------------------------------------------------------------------------

    def on_report(self, request: registry_pb2.ReportRequestsRequest) -> registry_pb2.ReportRequestsResponse:
        """`Registry.ReportRequests`."""
        now_s = self._now_s()
        self._book.report(
            request.gateway,
            request.sequence,
            now_s,
            [Arrival(now_s - each.age_s, each.request_class, each.isl_tokens) for each in request.arrived],
            [
                InFlight(
                    each.request,
                    each.request_class,
                    each.priority,
                    each.isl_tokens,
                    each.generated_tokens,
                    each.decode_id or None,
                    each.phase,
                    each.answer_tokens,
                )
                for each in request.in_flight
            ],
            [
                FinishedRequest(
                    each.request,
                    each.request_class,
                    each.isl_tokens,
                    each.cached_tokens,
                    each.reasoning_tokens,
                    each.answer_tokens,
                    each.ttft_s,
                    each.e2e_s,
                )
                for each in request.finished
            ],
        )
        return registry_pb2.ReportRequestsResponse(scaling=self.scaling())

    # --- what is seen ---------------------------------------------------------------------------------------

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _read_loads(self) -> None:
        """Give the capacity each worker's counters that came since the last look."""
        for worker in self._controller.workers():
            load, incarnation = worker.load, worker.member.incarnation
            if load is None or self._read_s.get(incarnation) == worker.load_s:
                continue
            self._read_s[incarnation] = worker.load_s
            reading = LoadReading(
                worker.load_s,
                load["steps"],
                load["output_tokens"],
                load["running_requests"],
                load["used_blocks"] * worker.member.block_size_tokens,
                load["prefill_tokens_per_s"],
                load["timed_steps"],
                load["timed_s"],
            )
            self._capacity.read(incarnation, reading, decodes=worker.role is Role.DECODE)
        present = {worker.member.incarnation for worker in self._controller.workers()}
        self._capacity.forget(present)
        self._read_s = {key: time_s for key, time_s in self._read_s.items() if key in present}

    def statuses(self) -> list[WorkerStatus]:
        """Prefill and decode workers as the policy sees them; a role that is being changed counts as changed.

        Those on standby are not among them: the policy decides about workers that serve, within GPUs less theirs.
        """
        return [
            self._status(worker)
            for worker in self._controller.workers()
            if worker.role in SCALED and not worker.standby  # colocated ones are not scaled
        ]

    def _status(self, worker: ManagedWorker) -> WorkerStatus:
        member, load = worker.member, worker.load or {}
        state = member.state if member.state in ("ready", "draining") else "starting"
        if worker.unwanted.is_set() or worker.draining:  # an engine takes seconds to end, and is none that starts
            state = "draining"
        view = WorkerView(
            worker_id=worker.plan.worker_id,
            role=self._changing.get(worker.plan.worker_id, worker.role),
            total_blocks=member.total_blocks,
            free_blocks=max(0, member.total_blocks - load.get("used_blocks", 0)),
            running_requests=load.get("running_requests", 0),
        )
        since_s = max(0.0, worker.since_s - self._began_s)
        return WorkerStatus(view, worker.plan.role.value, state, since_s, worker.pool.gpus_per_worker)

    def _govern(self, elapsed_s: float) -> None:
        """Let thinking budgets shrink where the forecast exceeds the decode workers that may be had."""
        demand, rows = self._demand, self.statuses()
        if demand is None:
            return
        had = sum(row.view.role is Role.DECODE and row.state != "draining" for row in rows)
        free = self._most_gpus() - sum(row.gpus for row in rows)
        per_worker = max((row.gpus for row in rows), default=1)
        more = 0 if self._may_not_start() else max(0.0, free // per_worker)
        decode_workers = min(self.settings.max_decode, had + more)
        pressure = demand.kv_high_tokens[-1] / max(1.0, decode_workers * demand.worker_kv_tokens)
        self._governor.step(pressure, elapsed_s)

    def _most_gpus(self) -> float:
        return float("inf") if self.settings.max_gpus is None else self.settings.max_gpus

    def _may_not_start(self) -> bool:
        pause_s = self._spec.autoscaling.start_failure_pause_s
        return time.monotonic() - self._controller.changes.start_failed_s < pause_s

    # --- what is done ---------------------------------------------------------------------------------------

    def _take(
        self,
        settings: AutoscalerSettings,
        memory: Memory,
        demand: Demand,
        workers: Sequence[WorkerRow],
        decision: Decision,
    ) -> None:
        """Write a decision down before it is carried out."""
        self._demand, self._reason = demand, decision.reason
        if decision.actions and decision.actions != self._last_actions:  # one that cannot be carried out comes again
            self._shown.append((demand.now_s, decision.reason))
            log.info("%s", decision.reason)
        self._last_actions = decision.actions
        if self._path.is_file() and self._path.stat().st_size > MAX_LOG_BYTES:
            self._path.replace(self._path.with_suffix(".old.jsonl"))
        with self._path.open("a") as out:
            out.write(entry_line(settings, memory, demand, workers, decision) + "\n")

    def _act(self, action: ScalingAction) -> None:
        controller = self._controller
        try:
            match action:
                case StartWorker():
                    if not self._may_not_start():
                        controller.changes.grow(action.role)
                case DrainWorker():
                    states = {worker.plan.worker_id: worker.member.state for worker in controller.workers()}
                    if states.get(action.worker_id) in ("", "starting"):
                        controller.changes.cancel_start(action.worker_id)
                    else:
                        controller.drain([action.worker_id], self._spec.drain.timeout_s)
                case ChangeRole():
                    self._background(self._change_role(action.worker_id, action.role))
                case _:
                    raise AssertionError(f"the autoscaler moves no requests: {action}")
        except ConfigError as error:
            log.warning("not done: %s: %s", action, error)

    async def _change_role(self, worker_id: str, role: Role) -> None:
        self._changing[worker_id] = role
        try:
            await self._controller.changes.change_role(worker_id, role)
        except (ServingError, TimeoutError) as error:
            log.warning("%s does not become %s: %s", worker_id, role, error or "it does not answer")
        finally:
            del self._changing[worker_id]

    def _background(self, work) -> None:  # type: ignore[no-untyped-def]
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what is shown --------------------------------------------------------------------------------------

    def scaling(self) -> cluster_pb2.Scaling:
        """What `baton top` shows."""
        states = Counter((row.view.role, row.state) for row in self.statuses())
        bounds = {
            Role.PREFILL: (self.settings.min_prefill, self.settings.max_prefill),
            Role.DECODE: (self.settings.min_decode, self.settings.max_decode),
        }
        now_s = self._now_s()
        scaling = cluster_pb2.Scaling(
            pools=[
                cluster_pb2.PoolScaling(
                    role=f"ROLE_{role.upper()}",
                    starting=states[role, "starting"],
                    ready=states[role, "ready"],
                    draining=states[role, "draining"],
                    min_replicas=bounds[role][0],
                    max_replicas=bounds[role][1],
                )
                for role in SCALED
            ],
            decisions=[cluster_pb2.ScalingDecision(age_s=now_s - time_s, reason=why) for time_s, why in self._shown],
            reason=self._reason,
            thinking_severity=self._governor.severity if self._spec.autoscaling.thinking_budgets.enabled else 0.0,
        )
        demand = self._demand
        if demand is not None:
            scaling.demand.CopyFrom(
                cluster_pb2.DemandForecast(
                    kv_tokens=demand.kv_tokens,
                    kv_high_tokens=demand.kv_high_tokens[-1],
                    start_s=demand.horizons_s[-1],
                    worker_kv_tokens=demand.worker_kv_tokens,
                    band_low_tokens=demand.band_low_tokens,
                    band_mean_tokens=demand.band_mean_tokens,
                    band_high_tokens=demand.band_high_tokens,
                    prefill_workers=demand.prefill_workers_recent,
                    arrivals_per_s=demand.arrivals_per_s,
                    prompt_tokens_per_s=demand.prompt_tokens_per_s,
                    in_flight_requests=demand.in_flight_requests,
                    queued_requests=demand.queued_requests,
                    request_tokens_per_s=demand.request_tokens_per_s,
                    pace=demand.pace,
                )
            )
        return scaling


class _View:
    """`FleetView` over the gateways' reports and the controller's workers."""

    def __init__(self, autoscaler: LiveAutoscaler, now_s: float) -> None:
        self._autoscaler = autoscaler
        self._book = autoscaler._book
        self._flights = list(self._book.in_flight(now_s))

    @property
    def arrived_requests(self) -> int:
        return self._book.arrived_requests

    @property
    def arrived_tokens(self) -> int:
        return self._book.arrived_tokens

    @property
    def queued_requests(self) -> int:
        return sum(each.phase == "queued" for each in self._flights)

    @property
    def queued_prompt_tokens(self) -> int:
        return sum(each.isl_tokens for each in self._flights if each.phase == "queued")

    def workers(self) -> Sequence[WorkerStatus]:
        return self._autoscaler.statuses()

    def in_flight(self) -> Iterator[InFlight]:
        return iter(self._flights)

    def arrived(self) -> Sequence[Arrival]:
        return self._book.take_arrived()

    def finished(self) -> Sequence[FinishedRequest]:
        return self._book.take_finished()


def policy_settings(spec: ClusterSpec) -> AutoscalerSettings:
    """Settings of the policy, from the pools' bounds and the ``autoscaling`` section.

    GPUs of workers on standby are off its budget: there are always as many.
    """
    pools, settings = dict(spec.pools.items()), spec.autoscaling
    prefill, decode = pools[Role.PREFILL], pools[Role.DECODE]
    standby_gpus = sum(pool.gpus_per_worker * pool.standby_replicas for pool in (prefill, decode))
    tree = {
        "min_prefill": prefill.min_replicas,
        "max_prefill": prefill.most_replicas,
        "min_decode": decode.min_replicas,
        "max_decode": decode.most_replicas,
        "max_gpus": settings.max_gpus - standby_gpus if settings.max_gpus is not None else None,
        "change_roles": spec.changes_roles,
        "patience_s": settings.patience_s,
        "surge_patience_s": settings.surge_patience_s,
        "cancel_patience_s": settings.cancel_patience_s,
        "cooldown_s": settings.cooldown_s,
    }
    return AutoscalerSettings(**{name: value for name, value in tree.items() if value is not None})


def capacity_of(spec: ClusterSpec, workers: Sequence[ManagedWorker]) -> MeasuredCapacity:
    """What a decode worker takes: KV and batch limit of engines that are up, and the cost model if it knows them."""
    held = [
        worker.member.total_blocks * worker.member.block_size_tokens
        for worker in workers
        if worker.role is Role.DECODE and worker.member.total_blocks
    ]
    if not held:
        raise ConfigError("autoscaling: no decode worker is up to tell how much KV one holds")
    step_s, prompt_s = _modelled(spec)
    pool = dict(spec.pools.items())[Role.DECODE]
    return measured_capacity(
        min(held),
        itl_s=spec.slo.itl_p95_s,
        max_num_seqs=engine_settings(spec, pool, Role.DECODE).max_num_seqs,
        modelled_step_s=step_s,
        modelled_prompt_s=prompt_s,
    )


def _modelled(spec: ClusterSpec) -> tuple[Callable[[int, int], float] | None, Callable[[int], float] | None]:
    """The cost models' step and prompt times; None where the catalogue does not know the GPU, or there is none."""
    pools = dict(spec.pools.items())
    decode = pools[Role.DECODE]
    name = decode.accelerator_type or ""
    known = [gpu for key, gpu in sorted(catalogue().items()) if name and key.split("-")[0] == name.split("-")[0]]
    if not known or not decode.accelerators_per_worker:
        return None, None
    try:
        config = json.loads((Path(expand(spec.model.path)) / "config.json").read_text())
        model = read_config(config)
    except (OSError, ValueError, ServingError) as error:
        log.warning("no cost model, capacity is measured alone: %s", error)
        return None, None
    engine, tp = engine_constants("vllm"), decode.accelerators_per_worker
    step = DecodeCost(model, known[0], engine, tp, expert_parallel=decode.expert_parallel)
    prompt = PrefillCost(model, known[0], engine, pools[Role.PREFILL].accelerators_per_worker or tp)
    return step.step_s, prompt.prefill_s
