"""A whole cluster in virtual time: the gateway's queue, the router, every request's lifecycle, the fleet.

What is decided is decided by the code the live gateway runs: `orchestrator.policy.router.place` chooses workers,
`orchestrator.request.lifecycle.Lifecycle` says what follows from each event. This module carries the actions out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from cluster.errors import RequestRejected
from orchestrator.policy.scaling_policy import FinishedRequest, ScalingPolicy
from orchestrator.request import lifecycle as lc
from planner.simulator.driver import LegDriver, some_tokens
from planner.simulator.failures import FailurePlan, fail_worker
from planner.simulator.fleet import Fleet, FleetSpec, Worker
from planner.simulator.fleet_changes import FleetChanges
from planner.simulator.flight import Flight
from planner.simulator.forecast import FixedForecast, LengthForecast
from planner.simulator.gateway import ClosedLoop, GatewaySpec, Hooks
from planner.simulator.kernel import Kernel, Timers
from planner.simulator.placer import Placer
from planner.simulator.preemption import Preemption
from planner.simulator.records import Outcome, Records
from planner.simulator.result import Result, Sampler
from planner.simulator.traffic import Traffic
from planner.simulator.view import LiveFleetView
from planner.simulator.workload import Workload

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
        forecast: Output lengths as the router gets them.
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
        self.timers = Timers(self.kernel)
        self.records = Records(len(self.workload))
        self.live: dict[int, Flight] = {}
        self.traffic = Traffic(listed=self.scaling is not None)
        # Turns that wait for the one before are not in the line of those that come by themselves.
        before = self.workload.turn_before
        self._line: list[int] = np.flatnonzero(before < 0).tolist()
        self._turn_after = {int(turn): int(after) for after, turn in enumerate(before) if turn >= 0}
        # Requests that will come and are in nobody's queue yet: turns, and what clients of a closed loop send next.
        self._due = len(self._turn_after)
        self._next = 0
        self._active_s = 0.0
        self.rng = np.random.default_rng(self.seed)
        self._read_columns()
        self.fleet = Fleet(
            self.kernel,
            self.fleet_spec,
            unit_tokens=self.workload.unit_tokens if len(self.workload.units) else 0,
            slow_gap_s=self.gateway.slow_gap_s,
        )
        self.driver = LegDriver(
            self.kernel,
            self.records,
            self.gateway,
            self.fleet,
            self.live,
            self,
            breaks=self._breaks,
            hook=self.hooks.action,
        )
        self.placer = Placer(
            self.kernel,
            self.timers,
            self.records,
            self.gateway,
            self.fleet,
            self.driver,
            self.forecast,
            Preemption(self.gateway, self.fleet, self.live, self.driver),
        )
        self.changes = FleetChanges(
            self.kernel,
            self.timers,
            self.records,
            self.gateway,
            self.fleet,
            self.live,
            self.driver,
            self.placer,
            self.forecast,
        )
        self.view = LiveFleetView(self.fleet, self.placer, self.live, self.traffic)
        self.sampler = Sampler(self.fleet)
        self.fleet.start(self.driver, on_ready=self._worker_ready, on_promoted=self.placer.pump)

    def _read_columns(self) -> None:
        """Columns as lists: one number of an array at a time is slow."""
        workload = self.workload
        self._isl, self._reasoning = workload.isl_tokens.tolist(), workload.reasoning_tokens.tolist()
        self._answer, self._cached = workload.answer_tokens.tolist(), workload.cached_tokens.tolist()
        self._tenant, self._priority = workload.tenant.tolist(), workload.priority.tolist()

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
            self.timers.at(self.scaling.interval_s, self._scale)
        for time_s, worker_id in self.failures.at:
            self.timers.at(time_s, functools.partial(self.fail, worker_id))
        self.kernel.run(until_s)
        self.sampler.sample(self.kernel.now_s, len(self.placer), len(self.live))
        return Result.of(self.kernel, self.records, self.fleet, self.driver, self.sampler)

    # --- arrivals and the queue -----------------------------------------------------------------------------

    def _schedule_arrival(self) -> None:
        if self._next < len(self._line):
            index = self._line[self._next]
            self.kernel.at(float(self.workload.arrival_s[index]), self._arrive_next, index)

    def _arrive_next(self, index: int) -> None:
        self._next += 1
        self.arrive(index)
        self._schedule_arrival()
        if self.hooks.progress is not None and not self._next & 255:
            self.hooks.progress(self._next / len(self._line))

    def _arrive_due(self, index: int) -> None:
        self._due -= 1
        self.arrive(index)

    def arrive(self, index: int) -> None:
        """A request of the workload comes."""
        now_s, gateway, columns = self.kernel.now_s, self.gateway, self.records.columns
        isl, reasoning = self._isl[index], self._reasoning[index]
        osl = reasoning + self._answer[index]
        columns["arrival_s"][index] = now_s
        columns["isl_tokens"][index], columns["output_tokens"][index] = isl, osl
        columns["reasoning_tokens"][index] = reasoning
        self.traffic.arrived(now_s, self.workload.tenants[self._tenant[index]], isl)
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
        try:
            displaced = self.placer.ask(flight)
        except RequestRejected:
            del self.live[index]
            self._reject(index)
            return
        if displaced is not None:
            self.driver.handle(displaced, lc.Displaced(self.placer.displaced_error()))

    def _reject(self, index: int) -> None:
        columns = self.records.columns
        columns["outcome"][index], columns["end_s"][index] = Outcome.REJECTED, self.kernel.now_s
        self._next_of_client(index)

    # --- what requests ask for (`RequestOwner`) ---------------------------------------------------------------

    def freed(self) -> None:
        """KV was given back."""
        self.placer.pump()

    def prompt_read(self) -> None:
        """A worker has read a prompt."""
        self.placer.prompt_read()

    def placement_asked(self, flight: Flight) -> None:
        """A request needs workers again."""
        self.placer.ask(flight, again=True)

    def over(self, flight: Flight) -> None:
        """A request has ended: its client sends the next, and waiting requests may find KV."""
        columns, index, osl = self.records.columns, flight.index, flight.generated_tokens
        finished = columns["outcome"][index] == Outcome.FINISHED
        if finished:
            self.forecast.observe(flight.tenant, flight.isl_tokens, osl)
        columns["end_s"][index] = self.kernel.now_s
        del self.live[index]
        self.placer.over(flight)
        self._next_of_client(index)
        self.placer.pump()
        if finished:
            columns["end_s"][index] = max(columns["end_s"][index], columns["first_token_s"][index])
            self.traffic.finished(
                FinishedRequest(
                    index,
                    flight.tenant,
                    flight.isl_tokens,
                    columns["hit_tokens"][index],
                    min(osl, flight.reasoning_tokens),
                    max(0, osl - flight.reasoning_tokens),
                    columns["first_token_s"][index] - columns["arrival_s"][index],
                    columns["end_s"][index] - columns["arrival_s"][index],
                )
            )

    # --- the fleet ------------------------------------------------------------------------------------------

    def _all_served(self) -> bool:
        return self._next >= len(self._line) and not self._due and not self.live

    def _goes_on(self) -> bool:
        """Whether anything can still happen to a request; a scaling policy has a day to bring the worker it needs."""
        if self._all_served():
            return False
        if self.kernel.pending > self.timers.pending:
            self._active_s = self.kernel.now_s
            return True
        return self.scaling is not None and self.kernel.now_s < self._active_s + _PATIENCE_S

    def _sample(self, _: object) -> None:
        self.sampler.sample(self.kernel.now_s, len(self.placer), len(self.live))
        if self.sampler.rows[1:] and not self._goes_on():
            return
        self.timers.at(self.kernel.now_s + self.sample_s, self._sample)

    def _scale(self, _: object) -> None:
        assert self.scaling is not None
        for action in self.scaling.decide(self.kernel.now_s, self.view):
            self.changes.apply(action)
        if self._goes_on():
            self.timers.at(self.kernel.now_s + self.scaling.interval_s, self._scale)

    def _worker_ready(self, worker: Worker) -> None:
        self.driver.tickets.worker_up(worker.worker_id, worker.incarnation)
        if self.failures.mtbf_s is not None:
            life_s = float(self.rng.exponential(self.failures.mtbf_s))
            incarnation = worker.incarnation

            def die(_: object) -> None:
                if worker.incarnation == incarnation:
                    self.fail(worker.worker_id)

            self.timers.at(self.kernel.now_s + life_s, die)
        self.placer.pump()

    def fail(self, worker_id: str, _: object = None) -> None:
        """A worker dies.

        Raises:
            ConfigError: there is no such worker.
        """
        promoted = fail_worker(worker_id, self.fleet, self.live, self.driver)
        if promoted or self.gateway.live_rules:
            self.placer.pump()  # another is on its way, so that a request may be preempted

    def _breaks(self) -> bool:
        share = self.failures.transfer_share
        return share > 0 and bool(self.rng.random() < share)

    # --- ends of requests ---------------------------------------------------------------------------------

    def _next_of_client(self, index: int) -> None:
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
            self.driver.tell_progress(flight)
            self.driver.handle(flight, lc.DeadlinePassed())
