"""A whole cluster in virtual time: the gateway's queue, the router, every request's lifecycle, the fleet.

What is decided is decided by the code the live gateway runs: `orchestrator.policy.router.place` chooses workers,
`orchestrator.lifecycle.Lifecycle` says what follows from each event. This module carries the actions out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cluster.errors import ServingError, TransferBroken, WorkerDied
from kv_transfer.ticket import HandoffTicket, TicketBook
from orchestrator import lifecycle as lc
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView, place
from orchestrator.simulator.engine import Engine
from orchestrator.simulator.failures import FailurePlan, fail_worker
from orchestrator.simulator.fleet import Fleet, FleetSpec, Worker
from orchestrator.simulator.flight import Export, Flight
from orchestrator.simulator.forecast import FixedForecast, LengthForecast
from orchestrator.simulator.gateway import ClosedLoop, GatewayQueue, GatewaySpec, Hooks
from orchestrator.simulator.kernel import LAST, Kernel
from orchestrator.simulator.leg import Leg, LegState
from orchestrator.simulator.links import Links
from orchestrator.simulator.records import Outcome, Records
from orchestrator.simulator.result import Result, Sampler
from orchestrator.simulator.scaling import FinishedRequest, ScalingPolicy
from orchestrator.simulator.view import LiveFleetView, apply_scaling
from orchestrator.simulator.workload import Workload

__all__ = ["ClosedLoop", "GatewaySpec", "Hooks", "Simulation"]

_TOKENS = (0,) * 65536
_PATIENCE_S = 86400.0


def _tokens(count: int) -> tuple[int, ...]:
    """Token ids that stand for text; what they are does not matter here."""
    return _TOKENS[:count] if count <= len(_TOKENS) else (0,) * count


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
        self.links = Links(self.kernel)
        self.book = TicketBook()
        self.records = Records(len(self.workload))
        self.live: dict[int, Flight] = {}
        self.queue = GatewayQueue()
        self.arrived_requests = 0
        self.arrived_tokens = 0
        self.finished: list[FinishedRequest] = []
        self.transfers = 0
        self.transferred_bytes = 0.0
        self._next = 0
        self._timers = 0
        self._active_s = 0.0
        self._pump_due = False
        self._exports: dict[str, Export] = {}
        self._rng = np.random.default_rng(self.seed)
        workload = self.workload
        self._isl, self._reasoning = workload.isl_tokens.tolist(), workload.reasoning_tokens.tolist()
        self._answer, self._cached = workload.answer_tokens.tolist(), workload.cached_tokens.tolist()
        self._tenant, self._priority = workload.tenant.tolist(), workload.priority.tolist()
        self.fleet = Fleet(
            self.kernel,
            self,
            self.fleet_spec,
            unit_tokens=workload.unit_tokens if len(workload.units) else 0,
            slow_gap_s=self.gateway.slow_gap_s,
            on_ready=self._worker_ready,
        )
        self.sampler = Sampler(self.fleet)

    def run(self, until_s: float = float("inf")) -> Result:
        """Run to the end of the last request, or to ``until_s``."""
        if self.closed_loop is not None:
            loop = self.closed_loop
            self._next = min(loop.clients, len(self.workload))
            for client in range(self._next):
                self.kernel.at(client * loop.stagger_s / loop.clients, self._arrive, client)
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
        if self._next < len(self.workload):
            self.kernel.at(float(self.workload.arrival_s[self._next]), self._arrive_next, self._next)

    def _arrive_next(self, index: int) -> None:
        self._next = index + 1
        self._arrive(index)
        self._schedule_arrival()
        if self.hooks.progress is not None and not index & 255:
            self.hooks.progress(index / len(self.workload))

    def _arrive(self, index: int) -> None:
        now_s, gateway, columns = self.kernel.now_s, self.gateway, self.records.columns
        isl, reasoning = self._isl[index], self._reasoning[index]
        osl = reasoning + self._answer[index]
        columns["arrival_s"][index] = now_s
        columns["isl_tokens"][index], columns["output_tokens"][index] = isl, osl
        columns["reasoning_tokens"][index] = reasoning
        self.arrived_requests += 1
        self.arrived_tokens += isl
        if len(self.queue) >= max(1, gateway.max_queued_requests):
            self._reject(index)
            return
        deadline_s = now_s + gateway.deadline_s if gateway.deadline_s is not None else float("inf")
        flight = Flight(
            index,
            lc.Lifecycle(str(index), _tokens(isl), gateway.max_output_tokens, gateway.handoff, gateway.retry_budget),
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
        self._enqueue(flight)
        if not gateway.max_queued_requests and flight.lifecycle.state is lc.State.QUEUED:
            self.queue.remove(flight)
            del self.live[index]
            self._reject(index)

    def _reject(self, index: int) -> None:
        columns = self.records.columns
        columns["outcome"][index], columns["end_s"][index] = Outcome.REJECTED, self.kernel.now_s
        self._next_of_client()

    def _enqueue(self, flight: Flight, *, again: bool = False) -> None:
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
        return place(
            RequestView(known, more, block, cached),
            views,
            local_prefill_below_tokens=self.fleet_spec.local_prefill_below_tokens,
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
        self.handle(flight, lc.Placed(placement.prefill_id, placement.decode_id))

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
        return self._next >= len(self.workload) and not self.live

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
        self.book.worker_up(worker.worker_id, worker.incarnation)
        if self.failures.mtbf_s is not None:
            life_s = float(self._rng.exponential(self.failures.mtbf_s))
            incarnation = worker.incarnation

            def die(_: object) -> None:
                if worker.incarnation == incarnation:
                    fail_worker(self, worker.worker_id)

            self.timer(self.kernel.now_s + life_s, die)
        self.pump()

    def _settle(self, worker: Worker) -> None:
        if worker.state == "draining" and self.fleet.settle(worker):
            self.book.worker_down(worker.worker_id)

    def _fail_at(self, worker_id: str, _: object) -> None:
        fail_worker(self, worker_id)

    # --- events and actions ---------------------------------------------------------------------------------

    def handle(self, flight: Flight, event: lc.Event) -> None:
        """Give the lifecycle an event and carry out what it answers."""
        actions = flight.lifecycle.handle(event)
        if self.hooks.action is not None:
            self.hooks.action(self.kernel.now_s, flight.index, event, actions)
        for action in actions:
            self._perform(flight, action)

    def _perform(self, flight: Flight, action: lc.Action) -> None:
        columns, index = self.records.columns, flight.index
        match action:
            case lc.SendTokens():
                if columns["first_token_s"][index] < 0:
                    columns["first_token_s"][index] = self._first_token_s(flight)
                leg = flight.leg
                if leg is not None and leg.answer_s >= 0 and columns["answer_s"][index] < 0:
                    columns["answer_s"][index] = max(leg.answer_s, columns["first_token_s"][index])
            case lc.StartLeg():
                self._start_leg(flight, action)
            case lc.FreeReservation():
                if flight.holder is not None and flight.holder.worker_id == action.worker_id:
                    flight.unreserve()
                self.pump()
            case lc.Finish():
                self._finished(flight)
            case lc.AbortLeg():
                self._abort_leg(flight)
            case lc.ReleaseTicket():
                self._release(action.ticket)
            case lc.AskPlacement():
                columns["retries"][index] += 1
                flight.avoid = action.avoid
                self._enqueue(flight, again=True)
            case lc.Fail():
                columns["outcome"][index] = Outcome.FAILED
                self._over(flight)

    def _start_leg(self, flight: Flight, action: lc.StartLeg) -> None:
        worker = self.fleet.workers[action.worker_id]
        left = flight.osl_tokens - action.generated_tokens
        tokens = min(left, action.max_tokens)
        dropped = action.export and self.gateway.handoff is lc.Handoff.PLAIN
        holds = action.worker_id == flight.lifecycle.decode_id
        leg = Leg(
            action.leg_id,
            flight.index,
            len(action.token_ids),
            tokens,
            tokens == left,
            flight.reasoning_tokens - action.generated_tokens if not dropped else -1,
            flight.promised_blocks if holds and flight.holder is not None else 0,
            flight.units,
            flight.cached_tokens,
            action.ticket is not None,
            action.export,
            flight.last_token_s,
        )
        if leg.reason_left_tokens < 0:
            leg.reason_left_tokens = -1
        flight.leg, flight.worker, flight.engine = leg, worker, worker.engine
        if worker.engine is None:
            self.handle(flight, lc.LegFailed(leg.leg_id, WorkerDied("the worker is gone", worker_id=worker.worker_id)))
            return
        if action.ticket is not None:
            flight.export = self._exports.pop(action.ticket.ticket_id, None)
            try:
                self.book.redeem(action.ticket, now_s=self.kernel.now_s)
            except ServingError as error:
                flight.drop_export()
                self.handle(flight, lc.LegFailed(leg.leg_id, error))
                return
        if leg.reserve_blocks:
            flight.unreserve()
        worker.engine.submit(leg)

    def _abort_leg(self, flight: Flight) -> None:
        if flight.transfer is not None:
            self.links.cancel(flight.transfer)
            flight.transfer = None
        flight.drop_export()
        if flight.leg is not None and flight.worker is not None:
            if flight.engine is not None and flight.worker.engine is flight.engine:
                flight.engine.abort(flight.leg)
            self.collect(flight.leg, flight.index)
            self._settle(flight.worker)
        self.pump()

    def _release(self, ticket: HandoffTicket) -> None:
        export = self._exports.pop(ticket.ticket_id, None)
        if export is not None:
            export.release()
            self._settle(export.worker)

    def _first_token_s(self, flight: Flight) -> float:
        leg, worker = flight.leg, flight.worker
        overhead_s = worker.pool.profile.overhead_s if worker is not None else 0.0
        if leg is not None and leg.first_token_s >= 0:
            return leg.first_token_s + overhead_s
        return self.kernel.now_s + overhead_s

    def _finished(self, flight: Flight) -> None:
        columns, index = self.records.columns, flight.index
        columns["outcome"][index] = Outcome.FINISHED
        osl = flight.generated_tokens
        self.forecast.observe(flight.tenant, flight.isl_tokens, osl)
        self._over(flight)
        columns["end_s"][index] = max(columns["end_s"][index], columns["first_token_s"][index])
        if self.scaling is not None:
            self.finished.append(
                FinishedRequest(
                    flight.tenant,
                    flight.isl_tokens,
                    columns["hit_tokens"][index],
                    min(osl, flight.reasoning_tokens),
                    max(0, osl - flight.reasoning_tokens),
                    columns["first_token_s"][index] - columns["arrival_s"][index],
                    columns["end_s"][index] - columns["arrival_s"][index],
                )
            )

    def _over(self, flight: Flight) -> None:
        self.records.columns["end_s"][flight.index] = self.kernel.now_s
        flight.unreserve()
        del self.live[flight.index]
        self._next_of_client()
        self.pump()

    def _next_of_client(self) -> None:
        loop = self.closed_loop
        if loop is not None and self._next < len(self.workload):
            self.kernel.at(self.kernel.now_s + loop.think_s, self._arrive, self._next)
            self._next += 1
        elif self._all_served():
            self.kernel.stop()

    def _deadline(self, flight: Flight) -> None:
        if flight.index in self.live:
            self.queue.remove(flight)
            self.tell_progress(flight)
            self.handle(flight, lc.DeadlinePassed())

    # --- what engines report --------------------------------------------------------------------------------

    def leg_prefilled(self, engine: Engine, leg: Leg) -> None:
        """A local prefill made the first token of its leg."""
        flight = self.live[leg.request]
        flight.last_token_s = leg.last_token_s
        self._hit(leg)
        self._tell(flight, leg, "")

    def leg_over(self, engine: Engine, leg: Leg) -> None:
        """A leg made its last token."""
        flight = self.live[leg.request]
        worker = flight.worker
        assert worker is not None
        self.collect(leg, flight.index)
        flight.last_token_s = self.kernel.now_s
        if not leg.remote and leg.output_tokens == 1:
            self._hit(leg)
        ticket = None
        if leg.export:
            ticket = HandoffTicket(
                f"{worker.incarnation}/{leg.leg_id}",
                worker.worker_id,
                worker.incarnation,
                leg.input_tokens,
                leg.private_blocks,
                self.kernel.now_s + self.gateway.ticket_deadline_s,
                "{}",
            )
            worker.exports += 1
            self._exports[ticket.ticket_id] = Export(worker, engine, leg, ticket)
        self._tell(flight, leg, "stop" if leg.stops else "length", ticket)
        self._settle(worker)
        self.pump()

    def leg_failed(self, engine: Engine, leg: Leg, error: ServingError) -> None:
        """The engine cannot serve a leg."""
        flight = self.live[leg.request]
        flight.drop_export()
        self.handle(flight, lc.LegFailed(leg.leg_id, error))

    def pull(self, engine: Engine, leg: Leg, tokens: int) -> None:
        """Bring a leg's KV from where it was prefilled."""
        flight = self.live[leg.request]
        export, target = flight.export, flight.worker
        if export is None or target is None:
            self.kernel.at(self.kernel.now_s, self.broken, (flight, leg))
            return
        kv_bytes = int(tokens * target.pool.profile.kv_bytes_per_token)
        work_s = self.fleet.transfer_work_s(export.worker, target, kv_bytes) if tokens > 0 else 0.0
        self.transfers += 1
        self.transferred_bytes += kv_bytes
        breaks = self.failures.transfer_share > 0 and self._rng.random() < self.failures.transfer_share
        flight.transfer = self.links.start(
            export.worker.worker_id, target.worker_id, work_s, lambda: self._arrived(flight, leg, breaks)
        )

    def _arrived(self, flight: Flight, leg: Leg, broken: bool) -> None:
        flight.transfer = None
        source = flight.export.worker if flight.export is not None else None
        if broken:
            self.broken((flight, leg))
        elif flight.engine is not None:
            flight.drop_export()
            flight.engine.loaded(leg)
        if source is not None:
            self._settle(source)

    def broken(self, argument: tuple[Flight, Leg]) -> None:
        """The KV of a leg will not come."""
        flight, leg = argument
        if flight.leg is not leg or leg.state is LegState.OVER:
            return
        flight.drop_export()
        if flight.engine is not None:
            flight.engine.abort(leg)
        self.handle(flight, lc.LegFailed(leg.leg_id, TransferBroken("the transfer broke", request_id=str(leg.request))))

    def _tell(self, flight: Flight, leg: Leg, finish: str, ticket: HandoffTicket | None = None) -> None:
        tokens = leg.made_tokens - leg.told_tokens
        leg.told_tokens = leg.made_tokens
        self.handle(flight, lc.LegOutput(leg.leg_id, _tokens(tokens), finish, ticket))

    def tell_progress(self, flight: Flight) -> None:
        """Let the gateway have the tokens that a decoding leg has made by now."""
        leg, engine = flight.leg, flight.engine
        if leg is None or engine is None or leg.state is not LegState.DECODING:
            return
        engine.sync()
        if leg.joined_order >= 0:
            leg.made_tokens = engine.batch.made_of(leg)
        if leg.made_tokens > leg.told_tokens:
            flight.last_token_s = engine.batch.start_s
            self._tell(flight, leg, "")

    def _hit(self, leg: Leg) -> None:
        if not self.records.columns["retries"][leg.request] and not self.records.columns["moves"][leg.request]:
            self.records.columns["hit_tokens"][leg.request] = leg.hit_tokens

    def collect(self, leg: Leg, index: int) -> None:
        """Write what a leg counted into the request's record, once."""
        self.records.columns["slow_gaps"][index] += leg.slow_gaps
        self.records.columns["preemptions"][index] += leg.preemptions
        leg.slow_gaps = leg.preemptions = 0
