"""Gives requests workers: what `orchestrator.policy.placement_queue` decides is carried out, and KV is reserved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.errors import RequestRejected
from orchestrator.policy.admission import Discipline
from orchestrator.policy.placement_queue import PlacementQueue, Routing
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView, is_batch
from orchestrator.request import lifecycle as lc
from planner.simulator.driver import LegDriver
from planner.simulator.fleet import Fleet, Worker
from planner.simulator.flight import Flight
from planner.simulator.forecast import LengthForecast
from planner.simulator.gateway import GatewaySpec
from planner.simulator.kernel import LAST, Kernel, Timers
from planner.simulator.preemption import Preemption
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
    ) -> None:
        self._kernel = kernel
        self._timers = timers
        self._records = records
        self._gateway = gateway
        self._fleet = fleet
        self._driver = driver
        self._forecast = forecast
        spec = fleet.spec
        self._routing = Routing(
            local_prefill_below_tokens=spec.local_prefill_below_tokens,
            local_prefill_after_s=spec.local_prefill_after_s,
        )
        self._queue: PlacementQueue[Flight] = PlacementQueue(
            self,
            preemption,
            self._routing,
            gateway.max_queued_requests,
            weight_of=lambda tenant: gateway.weights.get(tenant, 1.0),
            discipline=Discipline.FAIR if gateway.live_rules else Discipline.PLAIN,
            patience_s=gateway.preempt_after_s,
        )
        self._pump_due = False

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._queue)

    # --- who waits ------------------------------------------------------------------------------------------

    def ask(self, flight: Flight, *, again: bool = False) -> Flight | None:
        """Place a request or let it wait; ``again`` if it had been placed before. Returns the one displaced, if any.

        Raises:
            RequestRejected: it can neither be placed nor wait.
        """
        return self._queue.ask(
            flight,
            priority=flight.priority,
            tenant=flight.tenant,
            cost_tokens=self._cost_tokens(flight),
            deadline_s=flight.deadline_s,
            now_s=self._kernel.now_s,
            again=again,
        )

    def displaced_error(self) -> RequestRejected:
        """What ends a request whose place another one took (`ask`)."""
        return self._queue.displaced_error()

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
        self._queue.place_waiting(self._kernel.now_s)

    def prompt_read(self) -> None:
        """A worker has read a prompt."""
        self._queue.prompt_read(self._kernel.now_s)

    def over(self, flight: Flight) -> None:
        """A request has ended, wherever it was; its tenant is charged what it took."""
        self._queue.leave(flight)
        self._queue.settle(
            flight,
            tenant=flight.tenant,
            priority=flight.priority,
            isl_tokens=flight.isl_tokens,
            output_tokens=flight.generated_tokens,
        )

    # --- what the queue asks (`PlacementOwner`) ---------------------------------------------------------------

    def workers(self, flight: Flight) -> list[WorkerView]:
        """All workers."""
        return self._fleet.views()

    def request_view(self, flight: Flight, workers: Sequence[WorkerView]) -> RequestView:
        """A request as it stands."""
        known = flight.isl_tokens + flight.generated_tokens
        cached: dict[str, int] = {}
        if flight.units:
            for view in workers:
                engine = self._fleet.workers[view.worker_id].engine
                if engine is not None and (found := engine.cached_tokens(flight.units)):
                    cached[view.worker_id] = found
        elif flight.cached_tokens:
            cached = {view.worker_id: flight.cached_tokens for view in workers}
        # A live gateway reserves for one that comes again what it reserves for a new one, unless it was preempted.
        made = 0 if self._gateway.live_rules and not flight.waits_for_headroom else flight.generated_tokens
        more = self._forecast.osl_tokens(flight.tenant, flight.isl_tokens, made)
        block = self._fleet.spec.pools[0].profile.block_size_tokens
        return RequestView(known, more, block, cached, is_batch(flight.priority))

    def avoided(self, flight: Flight) -> frozenset[str]:
        """Workers that failed it before."""
        return flight.avoid

    def placed(self, flight: Flight, view: RequestView, placement: Placement) -> None:
        """Reserve the KV, and let the request go on."""
        columns, workers, index = self._records.columns, self._fleet.workers, flight.index
        if columns["placed_s"][index] < 0:
            columns["placed_s"][index] = self._kernel.now_s
        holder = workers[placement.decode_id]
        columns["decode"][index] = holder.number
        columns["prefill"][index] = workers[placement.prefill_id].number if placement.prefill_id else holder.number
        self.reserve(flight, holder, placement.reserve_blocks)
        flight.waits_for_headroom = False
        self._driver.handle(flight, lc.Placed(placement.prefill_id, placement.decode_id))

    def try_again_in(self, delay_s: float) -> None:
        """Try the head of the queue again after so many seconds."""
        self._timers.at(self._kernel.now_s + delay_s, self.place_waiting)

    # --- pieces ---------------------------------------------------------------------------------------------

    def place(self, flight: Flight, views: list[WorkerView]) -> Placement | Wait:
        """What the router says of a running request on these workers."""
        return self._routing.route(self.request_view(flight, views), views, flight.avoid)

    @staticmethod
    def reserve(flight: Flight, worker: Worker, blocks: int) -> None:
        """Reserve blocks of a worker to a request."""
        assert worker.engine is not None
        flight.holder, flight.unclaimed_blocks = worker.engine, blocks
        worker.engine.unclaimed_blocks += blocks

    def _cost_tokens(self, flight: Flight) -> float:
        """What the tenants' fairness counts."""
        if not self._gateway.live_rules:
            return 0.0
        return flight.isl_tokens + self._forecast.osl_tokens(flight.tenant, flight.isl_tokens, 0)
