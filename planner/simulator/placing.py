"""Requests wait for workers here, and are given them: the queue, the router, and promises of KV."""

from __future__ import annotations

from orchestrator.policy.preemption import TAKE_BACK_EVERY_S, may_take_back
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView, place
from orchestrator.request import lifecycle as lc
from planner.simulator.driver import LegDriver
from planner.simulator.fleet import Fleet, Worker
from planner.simulator.flight import Flight
from planner.simulator.forecast import LengthForecast
from planner.simulator.gateway import GatewayQueue, GatewaySpec
from planner.simulator.kernel import LAST, Kernel, Timers
from planner.simulator.preemption import Preemption, is_growing
from planner.simulator.records import Records


class Placer:
    """Owns who waits. What frees KV calls `pump`; the router's answer goes to the request's lifecycle."""

    def __init__(
        self,
        kernel: Kernel,
        timers: Timers,
        records: Records,
        gateway: GatewaySpec,
        fleet: Fleet,
        driver: LegDriver,
        forecast: LengthForecast,
        preemption: Preemption,
        queue: GatewayQueue,
    ) -> None:
        self._kernel = kernel
        self._timers = timers
        self._records = records
        self._gateway = gateway
        self._fleet = fleet
        self._driver = driver
        self._forecast = forecast
        self._preemption = preemption
        self._queue = queue
        self._pump_due = False
        self._took_back_s: dict[str, float] = {}

    def enqueue(self, flight: Flight, *, again: bool = False) -> None:
        """Let a request wait for workers; ``again`` if it had been placed before."""
        self._queue.push(flight, again=again)
        if self._queue.head is flight:
            self.place_waiting(None)

    def pump(self) -> None:
        """Something was freed: look at the queue once this instant is over."""
        if self._queue and not self._pump_due:
            self._pump_due = True
            self._kernel.at(self._kernel.now_s, self.place_waiting, None, LAST)

    def place_waiting(self, _: object) -> None:
        """Place requests from the queue's head on, until one has to wait."""
        self._pump_due = False
        while self._queue:
            flight = self._queue.head
            placement = self.place(flight)
            if isinstance(placement, Wait):
                crowded = placement.reason == "no_blocks" and self._patience_is_over(flight)
                if crowded and self._preemption.make_room(flight):
                    continue
                return
            self._queue.pop()
            self._placed(flight, placement)

    def place(self, flight: Flight, views: list[WorkerView] | None = None) -> Placement | Wait:
        """Ask the router for this request as it stands."""
        views = self._fleet.views() if views is None else views
        known = flight.isl_tokens + flight.generated_tokens
        cached: dict[str, int] = {}
        if flight.units:
            for view in views:
                engine = self._fleet.workers[view.worker_id].engine
                if engine is not None and (found := engine.cached_tokens(flight.units)):
                    cached[view.worker_id] = found
        elif flight.cached_tokens:
            cached = {view.worker_id: flight.cached_tokens for view in views}
        more = self._forecast.osl_tokens(flight.tenant, flight.isl_tokens, flight.generated_tokens)
        spec = self._fleet.spec
        request = RequestView(known, more, spec.pools[0].profile.block_size_tokens, cached)
        if flight.waits_for_room:
            since_s = self._kernel.now_s - TAKE_BACK_EVERY_S + 1e-9
            resting = {name for name, time_s in self._took_back_s.items() if time_s > since_s}
            views = may_take_back(views, request.reserve_blocks, growing=is_growing(self._fleet), resting=resting)
        return place(
            request,
            views,
            # What was preempted is prefilled again where it decodes, out of the way of others' first tokens.
            local_prefill_below_tokens=known if flight.waits_for_room else spec.local_prefill_below_tokens,
            local_prefill_after_s=spec.local_prefill_after_s,
            avoid=flight.avoid,
        )

    @staticmethod
    def reserve(flight: Flight, worker: Worker, blocks: int) -> None:
        """Promise blocks of a worker to a request."""
        assert worker.engine is not None
        flight.holder, flight.promised_blocks = worker.engine, blocks
        worker.engine.promised_blocks += blocks

    def _patience_is_over(self, flight: Flight) -> bool:
        patience_s = self._gateway.preempt_after_s
        arrived_s = self._records.columns["arrival_s"][flight.index]
        return patience_s is not None and bool(self._kernel.now_s >= arrived_s + patience_s - 1e-9)

    def _placed(self, flight: Flight, placement: Placement) -> None:
        columns, workers, index = self._records.columns, self._fleet.workers, flight.index
        if columns["placed_s"][index] < 0:
            columns["placed_s"][index] = self._kernel.now_s
        holder = workers[placement.decode_id]
        columns["decode"][index] = holder.number
        columns["prefill"][index] = workers[placement.prefill_id].number if placement.prefill_id else holder.number
        self.reserve(flight, holder, placement.reserve_blocks)
        if flight.waits_for_room:
            flight.waits_for_room = False
            self._took_back_s[placement.decode_id] = self._kernel.now_s
            self._timers.at(self._kernel.now_s + TAKE_BACK_EVERY_S, self.place_waiting)
        self._driver.handle(flight, lc.Placed(placement.prefill_id, placement.decode_id))
