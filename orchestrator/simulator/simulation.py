"""A whole cluster in virtual time: the gateway's queue, the router, every request's lifecycle, the fleet.

What is decided is decided by the code the live gateway runs: `orchestrator.policy.router.place` chooses workers,
`orchestrator.lifecycle.Lifecycle` says what follows from each event. This module carries the actions out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from orchestrator import lifecycle as lc
from orchestrator.policy.preemption import TAKE_BACK_EVERY_S, may_take_back
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView, place
from orchestrator.policy.scaling import Arrival, FinishedRequest, ScalingPolicy
from orchestrator.simulator.driver import LegDriver, some_tokens
from orchestrator.simulator.failures import FailurePlan, fail_worker
from orchestrator.simulator.fleet import Fleet, FleetSpec, Worker
from orchestrator.simulator.flight import Flight
from orchestrator.simulator.forecast import FixedForecast, LengthForecast
from orchestrator.simulator.gateway import ClosedLoop, GatewayQueue, GatewaySpec, Hooks
from orchestrator.simulator.kernel import LAST, Kernel
from orchestrator.simulator.preemption import is_growing, preempt_for
from orchestrator.simulator.records import Outcome, Records
from orchestrator.simulator.result import Result, Sampler
from orchestrator.simulator.view import LiveFleetView, apply_scaling
from orchestrator.simulator.workload import Workload

__all__ = ["ClosedLoop", "GatewaySpec", "Hooks", "Simulation"]

_PATIENCE_S = 86400.0


@dataclass
class Simulation:
    """One run. Make it, call `run`, read the `Result`.

    Args:
        fleet: Workers and links.
        workload: Requests.
        gateway: Limits.
        closed_loop: Clients that wait for their answers, in place of the workload's arrival times.
        forecast: Output lengths as the router is told them.
        scaling: Changes the fleet on the way.
        failures: Workers that die and transfers that break.
        sample_s: Seconds between samples of the fleet's state.
        seed: For failures; the workload is drawn before.
    """

    fleet_spec: FleetSpec
    workload: Workload
    gateway: GatewaySpec = field(default_factory=GatewaySpec)
    closed_loop: ClosedLoop | None = None
    forecast: LengthForecast = field(default_factory=FixedForecast)
    scaling: ScalingPolicy | None = None
    failures: FailurePlan = field(default_factory=FailurePlan)
    sample_s: float = 10.0
    seed: int = 0
    hooks: Hooks = field(default_factory=Hooks)

    def __post_init__(self) -> None:
        self.kernel = Kernel()
        self.records = Records(len(self.workload))
        self.live: dict[int, Flight] = {}
        self.queue = GatewayQueue()
        self.arrived_requests = 0
        self.arrived_tokens = 0
        self.finished: list[FinishedRequest] = []
        self.arrivals: list[Arrival] = []
        # Turns that wait for the one before are not in the line of those that come by themselves.
        before = self.workload.turn_before
        self._line: list[int] = np.flatnonzero(before < 0).tolist()
        self._turn_after = {int(turn): int(after) for after, turn in enumerate(before) if turn >= 0}
        # Requests that will come and are in nobody's queue yet: turns, and what clients of a closed loop send next.
        self._due = len(self._turn_after)
        self._next = 0
        self._timers = 0
        self._active_s = 0.0
        self._pump_due = False
        self._took_back_s: dict[str, float] = {}
        self.rng = np.random.default_rng(self.seed)
        workload = self.workload
        self._isl, self._reasoning = workload.isl_tokens.tolist(), workload.reasoning_tokens.tolist()
        self._answer, self._cached = workload.answer_tokens.tolist(), workload.cached_tokens.tolist()
        self._tenant, self._priority = workload.tenant.tolist(), workload.priority.tolist()
        self.driver = LegDriver(self)
        self.fleet = Fleet(
            self.kernel,
            self.driver,
            self.fleet_spec,
            unit_tokens=workload.unit_tokens if len(workload.units) else 0,
            slow_gap_s=self.gateway.slow_gap_s,
            on_ready=self._worker_ready,
            on_promoted=self.pump,
        )
        self.sampler = Sampler(self.fleet)

    def run(self, until_s: float = float("inf")) -> Result:
        """Run to the end of the last request, or to ``until_s``."""
        if self.closed_loop is not None:
            loop = self.closed_loop
            self._next = min(loop.clients, len(self._line))
            self._due += self._next
            for client in range(self._next):
                self.kernel.at(client * loop.stagger_s / loop.clients, self._arrive_due, self._line[client])
        elif len(self.workload):
            self._schedule_arrival()
        self._sample(None)
        if self.scaling is not None:
            self.timer(self.scaling.interval_s, self._scale)
        for time_s, worker_id in self.failures.at:
            self.timer(time_s, functools.partial(self._fail_at, worker_id))
        self.kernel.run(until_s)
        self.sampler.sample(self.kernel.now_s, len(self.queue), len(self.live))
        return Result.of(self)

    # --- arrivals and the queue -----------------------------------------------------------------------------

    def _schedule_arrival(self) -> None:
        if self._next < len(self._line):
            index = self._line[self._next]
            self.kernel.at(float(self.workload.arrival_s[index]), self._arrive_next, index)

    def _arrive_next(self, index: int) -> None:
        self._next += 1
        self._arrive(index)
        self._schedule_arrival()
        if self.hooks.progress is not None and not self._next & 255:
            self.hooks.progress(self._next / len(self._line))

    def _arrive_due(self, index: int) -> None:
        self._due -= 1
        self._arrive(index)

    def _arrive(self, index: int) -> None:
        now_s, gateway, columns = self.kernel.now_s, self.gateway, self.records.columns
        isl, reasoning = self._isl[index], self._reasoning[index]
        osl = reasoning + self._answer[index]
        columns["arrival_s"][index] = now_s
        columns["isl_tokens"][index], columns["output_tokens"][index] = isl, osl
        columns["reasoning_tokens"][index] = reasoning
        self.arrived_requests += 1
        self.arrived_tokens += isl
        if self.scaling is not None:
            self.arrivals.append(Arrival(now_s, self.workload.tenants[self._tenant[index]], isl))
        if len(self.queue) >= max(1, gateway.max_queued_requests):
            self._reject(index)
            return
        deadline_s = now_s + gateway.deadline_s if gateway.deadline_s is not None else float("inf")
        flight = Flight(
            index,
            lc.Lifecycle(
                str(index), some_tokens(isl), gateway.max_output_tokens, gateway.handoff, gateway.retry_budget
            ),
            isl,
            min(osl, gateway.max_output_tokens),
            reasoning,
            min(self._cached[index], isl - 1),
            self.workload.units_of(index) if self.workload.unit_tokens else (),
            self.workload.tenants[self._tenant[index]],
            self._priority[index],
            deadline_s,
        )
        self.live[index] = flight
        if gateway.deadline_s is not None:
            self.kernel.at(deadline_s, self._deadline, flight)
        self.enqueue(flight)
        if gateway.preempt_after_s is not None:
            self.timer(now_s + gateway.preempt_after_s, self._pump)
        if not gateway.max_queued_requests and flight.lifecycle.state is lc.State.QUEUED:
            self.queue.remove(flight)
            del self.live[index]
            self._reject(index)

    def _reject(self, index: int) -> None:
        columns = self.records.columns
        columns["outcome"][index], columns["end_s"][index] = Outcome.REJECTED, self.kernel.now_s
        self.next_of_client(index)

    def enqueue(self, flight: Flight, *, again: bool = False) -> None:
        """Let a request wait for workers; ``again`` if it had been placed before."""
        self.queue.push(flight, again=again)
        if self.queue.head is flight:
            self._pump(None)

    def pump(self) -> None:
        """Something was freed: look at the queue once this instant is over."""
        if self.queue and not self._pump_due:
            self._pump_due = True
            self.kernel.at(self.kernel.now_s, self._pump, None, LAST)

    def _pump(self, _: object) -> None:
        self._pump_due = False
        while self.queue:
            flight = self.queue.head
            placement = self.place_flight(flight)
            if isinstance(placement, Wait):
                if placement.reason == "no_blocks" and preempt_for(self, flight):
                    continue
                return
            self.queue.pop()
            self._placed(flight, placement)

    def place_flight(self, flight: Flight, views: list[WorkerView] | None = None) -> Placement | Wait:
        """Ask the router for this request as it stands."""
        views = self.fleet.views() if views is None else views
        known = flight.isl_tokens + flight.generated_tokens
        cached: dict[str, int] = {}
        if flight.units:
            for view in views:
                engine = self.fleet.workers[view.worker_id].engine
                if engine is not None and (found := engine.cached_tokens(flight.units)):
                    cached[view.worker_id] = found
        elif flight.cached_tokens:
            cached = {view.worker_id: flight.cached_tokens for view in views}
        more = self.forecast.osl_tokens(flight.tenant, flight.isl_tokens, flight.generated_tokens)
        block = self.fleet_spec.pools[0].profile.block_size_tokens
        request = RequestView(known, more, block, cached)
        if flight.waits_for_room:
            since_s = self.kernel.now_s - TAKE_BACK_EVERY_S + 1e-9
            resting = {name for name, time_s in self._took_back_s.items() if time_s > since_s}
            views = may_take_back(views, request.reserve_blocks, growing=is_growing(self), resting=resting)
        return place(
            request,
            views,
            # What made way is prefilled again where it decodes, out of the way of others' first tokens.
            local_prefill_below_tokens=known if flight.waits_for_room else self.fleet_spec.local_prefill_below_tokens,
            local_prefill_after_s=self.fleet_spec.local_prefill_after_s,
            avoid=flight.avoid,
        )

    def _placed(self, flight: Flight, placement: Placement) -> None:
        columns, workers, index = self.records.columns, self.fleet.workers, flight.index
        if columns["placed_s"][index] < 0:
            columns["placed_s"][index] = self.kernel.now_s
        holder = workers[placement.decode_id]
        columns["decode"][index] = holder.number
        columns["prefill"][index] = workers[placement.prefill_id].number if placement.prefill_id else holder.number
        self.reserve(flight, holder, placement.reserve_blocks)
        if flight.waits_for_room:
            flight.waits_for_room = False
            self._took_back_s[placement.decode_id] = self.kernel.now_s
            self.timer(self.kernel.now_s + TAKE_BACK_EVERY_S, self._pump)
        self.driver.handle(flight, lc.Placed(placement.prefill_id, placement.decode_id))

    def reserve(self, flight: Flight, worker: Worker, blocks: int) -> None:
        """Promise blocks of a worker to a request."""
        assert worker.engine is not None
        flight.holder, flight.promised_blocks = worker.engine, blocks
        worker.engine.promised_blocks += blocks

    # --- the fleet ------------------------------------------------------------------------------------------

    def timer(self, time_s: float, action: Callable[[object], object]) -> None:
        """Call ``action(None)`` then; unlike other events, a timer alone does not keep the run going."""
        self._timers += 1
        self.kernel.at(time_s, self._fire, action)

    def _fire(self, action: Callable[[object], object]) -> None:
        self._timers -= 1
        action(None)

    def _all_served(self) -> bool:
        return self._next >= len(self._line) and not self._due and not self.live

    def _goes_on(self) -> bool:
        """Whether anything can still happen to a request; a scaling policy has a day to bring the worker it needs."""
        if self._all_served():
            return False
        if self.kernel.pending > self._timers:
            self._active_s = self.kernel.now_s
            return True
        return self.scaling is not None and self.kernel.now_s < self._active_s + _PATIENCE_S

    def _sample(self, _: object) -> None:
        self.sampler.sample(self.kernel.now_s, len(self.queue), len(self.live))
        if self.sampler.rows[1:] and not self._goes_on():
            return
        self.timer(self.kernel.now_s + self.sample_s, self._sample)

    def _scale(self, _: object) -> None:
        assert self.scaling is not None
        for action in self.scaling.decide(self.kernel.now_s, LiveFleetView(self)):
            apply_scaling(self, action)
        if self._goes_on():
            self.timer(self.kernel.now_s + self.scaling.interval_s, self._scale)

    def _worker_ready(self, worker: Worker) -> None:
        self.driver.book.worker_up(worker.worker_id, worker.incarnation)
        if self.failures.mtbf_s is not None:
            life_s = float(self.rng.exponential(self.failures.mtbf_s))
            incarnation = worker.incarnation

            def die(_: object) -> None:
                if worker.incarnation == incarnation:
                    fail_worker(self, worker.worker_id)

            self.timer(self.kernel.now_s + life_s, die)
        self.pump()

    def _fail_at(self, worker_id: str, _: object) -> None:
        fail_worker(self, worker_id)

    # --- ends of requests ---------------------------------------------------------------------------------

    def next_of_client(self, index: int) -> None:
        """A request is over, well or not: its session's next turn follows, or its client's next, or the run ends."""
        loop, after = self.closed_loop, self._turn_after.get(index)
        if after is not None:
            self.kernel.at(self.kernel.now_s + float(self.workload.think_s[after]), self._arrive_due, after)
        elif loop is not None and self._next < len(self._line):
            self.kernel.at(self.kernel.now_s + loop.think_s, self._arrive_due, self._line[self._next])
            self._next += 1
            self._due += 1
        elif self._all_served():
            self.kernel.stop()

    def _deadline(self, flight: Flight) -> None:
        if flight.index in self.live:
            self.queue.remove(flight)
            self.driver.tell_progress(flight)
            self.driver.handle(flight, lc.DeadlinePassed())
