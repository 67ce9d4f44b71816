"""Requests are given workers here: what `orchestrator.policy.placing` decides is carried out, and KV is reserved."""

from __future__ import annotations

from orchestrator.policy.admission import AdmissionQueue
from orchestrator.policy.placing import Placing, Routing
from orchestrator.policy.preemption import TAKE_BACK_EVERY_S
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView, is_batch
from orchestrator.request import lifecycle as lc
from planner.simulator.driver import LegDriver
from planner.simulator.fleet import Fleet, Worker
from planner.simulator.flight import Flight
from planner.simulator.forecast import LengthForecast
from planner.simulator.gateway import GatewaySpec
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
        queue: AdmissionQueue[Flight],
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
        self._placing = Placing(queue, self)
        spec = fleet.spec
        self._routing = Routing(
            local_prefill_below_tokens=spec.local_prefill_below_tokens,
            local_prefill_after_s=spec.local_prefill_after_s,
        )
        self._pump_due = False

    # --- who waits ------------------------------------------------------------------------------------------

    def ask(self, flight: Flight, *, again: bool = False) -> Flight | None:
        """Place a request or let it wait; ``again`` if it had been placed before. Returns the one displaced, if any.

        Raises:
            RequestRejected: it can neither be placed nor wait.
        """
        return self._placing.ask(
            flight,
            priority=flight.priority,
            tenant=flight.tenant,
            cost_tokens=self._cost_tokens(flight),
            deadline_s=flight.deadline_s,
            now_s=self._kernel.now_s,
            again=again,
            waits_for_headroom=flight.waits_for_headroom,
        )

    def pump(self) -> None:
        """Something was freed: try the queue, once this instant is over unless live rules say at once."""
        if self._queue and self._gateway.live_rules:
            self.place_waiting()
        elif self._queue and not self._pump_due:
            self._pump_due = True
            self._kernel.at(self._kernel.now_s, self.place_waiting, None, LAST)

    def place_waiting(self, _: object = None) -> None:
        """Place requests from the queue's head on, until one has to wait."""
        self._pump_due = False
        self._placing.place_waiting(self._kernel.now_s)

    def prompt_read(self) -> None:
        """A worker has read a prompt: by live rules, where none is read a preempted request may come back."""
        head = self._queue.head
        if self._gateway.live_rules and head is not None and head.waits_for_headroom:
            self.place_waiting()

    def over(self, flight: Flight) -> None:
        """A request has ended, wherever it was; its tenant is charged what it took."""
        self._queue.remove(flight)
        if flight.charged_tokens:
            more_tokens = flight.isl_tokens + flight.generated_tokens - flight.charged_tokens
            self._queue.settle(flight.tenant, more_tokens, priority=flight.priority)

    # --- what placing asks for (`PlacementOwner`) -------------------------------------------------------------

    def route(self, flight: Flight) -> Placement | Wait:
        """Ask the router for this request as it stands."""
        found = self.place(flight, self._fleet.views())
        if isinstance(found, Wait) and found.reason == "no_blocks":
            self._no_headroom(flight)
        return found

    def placed(self, flight: Flight, placement: Placement, charged_tokens: float) -> None:
        """Reserve the KV, and let the request go on."""
        columns, workers, index = self._records.columns, self._fleet.workers, flight.index
        if columns["placed_s"][index] < 0:
            columns["placed_s"][index] = self._kernel.now_s
        holder = workers[placement.decode_id]
        columns["decode"][index] = holder.number
        columns["prefill"][index] = workers[placement.prefill_id].number if placement.prefill_id else holder.number
        flight.no_headroom_since_s = None
        if self._gateway.live_rules:
            flight.charged_tokens = flight.charged_tokens or charged_tokens
        self.reserve(flight, holder, placement.reserve_blocks)
        if flight.waits_for_headroom:
            flight.waits_for_headroom = False
            self._routing.take_backs.came_back(placement.decode_id, self._kernel.now_s)
            self._timers.at(self._kernel.now_s + TAKE_BACK_EVERY_S, self.place_waiting)
        self._driver.handle(flight, lc.Placed(placement.prefill_id, placement.decode_id))

    def make_headroom(self, flight: Flight) -> bool:
        """Preempt a request for the head of the queue, if policy finds one."""
        sampled_s = self._preemption.resample_s
        preempted = self._preemption.make_headroom(flight, self._view(flight).reserve_blocks)
        if self._preemption.resample_s > sampled_s:
            self._timers.at(self._preemption.resample_s, self.place_waiting)
        return preempted

    # --- pieces ---------------------------------------------------------------------------------------------

    def place(self, flight: Flight, views: list[WorkerView]) -> Placement | Wait:
        """What the router says of a request on these workers."""
        return self._routing.route(
            self._view(flight, views),
            views,
            avoid=flight.avoid,
            comes_back=flight.waits_for_headroom,
            growing=flight.waits_for_headroom and is_growing(self._fleet),
            now_s=self._kernel.now_s,
        )

    @staticmethod
    def reserve(flight: Flight, worker: Worker, blocks: int) -> None:
        """Reserve blocks of a worker to a request."""
        assert worker.engine is not None
        flight.holder, flight.unclaimed_blocks = worker.engine, blocks
        worker.engine.unclaimed_blocks += blocks

    def _view(self, flight: Flight, views: list[WorkerView] | None = None) -> RequestView:
        known = flight.isl_tokens + flight.generated_tokens
        cached: dict[str, int] = {}
        if views and flight.units:
            for view in views:
                engine = self._fleet.workers[view.worker_id].engine
                if engine is not None and (found := engine.cached_tokens(flight.units)):
                    cached[view.worker_id] = found
        elif views and flight.cached_tokens:
            cached = {view.worker_id: flight.cached_tokens for view in views}
        # A live gateway reserves for one that comes again what it reserves for a new one, unless it was preempted.
        made = 0 if self._gateway.live_rules and not flight.waits_for_headroom else flight.generated_tokens
        more = self._forecast.osl_tokens(flight.tenant, flight.isl_tokens, made)
        block = self._fleet.spec.pools[0].profile.block_size_tokens
        return RequestView(known, more, block, cached, is_batch(flight.priority))

    def _cost_tokens(self, flight: Flight) -> float:
        """What the tenants' fairness counts."""
        if not self._gateway.live_rules:
            return 0.0
        return flight.isl_tokens + self._forecast.osl_tokens(flight.tenant, flight.isl_tokens, 0)

    def _no_headroom(self, flight: Flight) -> None:
        """No worker has KV for a request: try again when it has been patient."""
        patience_s = self._gateway.preempt_after_s
        if not self._gateway.live_rules or patience_s is None or flight.waits_for_headroom:
            return
        if flight.no_headroom_since_s is None:
            flight.no_headroom_since_s = self._kernel.now_s
            self._timers.at(self._kernel.now_s + patience_s, self.place_waiting)
