"""Carries out what the lifecycles answer, and gives them what the engines report: legs, tickets, transfers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from cluster.errors import RequestRejected, ServingError, TransferBroken, WorkerDied
from kv_transfer.ticket import HandoffTicket, TicketGuard
from orchestrator.request import lifecycle as lc
from planner.simulator.fleet import Fleet, Worker
from planner.simulator.flight import Export, Flight
from planner.simulator.gateway import GatewaySpec
from planner.simulator.kernel import Kernel
from planner.simulator.leg import Leg, LegState
from planner.simulator.links import Links
from planner.simulator.records import Outcome, Records

_TOKENS = (0,) * 65536


def some_tokens(count: int) -> tuple[int, ...]:
    """Token ids that stand for text; what they are does not matter here."""
    return _TOKENS[:count] if count <= len(_TOKENS) else (0,) * count


class RequestOwner(Protocol):
    """Takes what requests ask for that is not done on their legs."""

    def freed(self) -> None:
        """KV was given back: waiting requests may find KV."""
        ...

    def prompt_read(self) -> None:
        """A worker has read a prompt and decodes it."""
        ...

    def placement_asked(self, flight: Flight) -> None:
        """A request that had been placed needs workers again."""
        ...

    def over(self, flight: Flight) -> None:
        """A request has ended; its outcome is in the records."""
        ...


ActionHook = Callable[[float, int, lc.Event | None, Sequence[lc.Action]], None]


class LegDriver:
    """The acting half of a run: every event goes through `handle`, every action is carried out here.

    Args:
        kernel: The clock.
        records: Where times and counts of requests go.
        gateway: Limits.
        fleet: The workers.
        flights: Requests between arrival and end, by index; read alone.
        owner: Takes what is not a matter of legs.
        breaks: Whether the next transfer breaks.
        hook: Sees every event with the actions that followed.
    """

    def __init__(
        self,
        kernel: Kernel,
        records: Records,
        gateway: GatewaySpec,
        fleet: Fleet,
        flights: Mapping[int, Flight],
        owner: RequestOwner,
        *,
        breaks: Callable[[], bool],
        hook: ActionHook | None = None,
    ) -> None:
        self._kernel = kernel
        self._records = records
        self._gateway = gateway
        self._fleet = fleet
        self._flights = flights
        self._owner = owner
        self._breaks = breaks
        self._hook = hook
        self.links = Links(kernel)
        self._exports: dict[str, Export] = {}
        self.tickets = TicketGuard()
        self.transfers = 0
        self.transferred_bytes = 0.0

    # --- events and actions ---------------------------------------------------------------------------------

    def handle(self, flight: Flight, event: lc.Event) -> None:
        """Give the lifecycle an event and carry out what it answers."""
        actions = flight.lifecycle.handle(event)
        if self._hook is not None:
            self._hook(self._kernel.now_s, flight.index, event, actions)
        for action in actions:
            self._perform(flight, action)
        if self._gateway.live_rules and flight.worker is not None:
            self._settle(flight.worker)

    def _perform(self, flight: Flight, action: lc.Action) -> None:
        columns, index = self._records.columns, flight.index
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
                self._owner.freed()
            case lc.Finish():
                columns["outcome"][index] = Outcome.FINISHED
                self._over(flight)
            case lc.AbortLeg():
                self._abort_leg(flight)
            case lc.ReleaseTicket():
                self._release(action.ticket)
            case lc.AskPlacement():
                columns["preemptions" if flight.waits_for_headroom else "retries"][index] += 1
                flight.avoid = action.avoid
                self._owner.placement_asked(flight)
            case lc.Fail():
                rejected = isinstance(action.error, RequestRejected)  # it had waited, and lost its place
                columns["outcome"][index] = Outcome.REJECTED if rejected else Outcome.FAILED
                self._over(flight)

    def _start_leg(self, flight: Flight, action: lc.StartLeg) -> None:
        worker = self._fleet.workers[action.worker_id]
        left = flight.osl_tokens - action.generated_tokens
        tokens = min(left, action.max_tokens)
        dropped = action.export and self._gateway.handoff is lc.Handoff.PLAIN
        holds = action.worker_id == flight.lifecycle.decode_id
        leg = Leg(
            action.leg_id,
            flight.index,
            len(action.token_ids),
            tokens,
            tokens == left,
            flight.reasoning_tokens - action.generated_tokens if not dropped else -1,
            flight.unclaimed_blocks if holds and flight.holder is not None else 0,
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
                self.tickets.redeem(action.ticket, now_s=self._kernel.now_s)
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
            if not self._gateway.live_rules:  # a move's next leg starts there yet, which plain rules overlook
                self._settle(flight.worker)
        self._owner.freed()

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
        return self._kernel.now_s + overhead_s

    def _over(self, flight: Flight) -> None:
        flight.unreserve()
        self._owner.over(flight)

    def _settle(self, worker: Worker) -> None:
        if worker.state == "draining" and self._fleet.settle(worker):
            self.tickets.worker_down(worker.worker_id)

    # --- what engines report --------------------------------------------------------------------------------

    def leg_prefilled(self, leg: Leg) -> None:
        """A local prefill made the first token of its leg."""
        flight = self._flights[leg.request]
        flight.last_token_s = leg.last_token_s
        self._hit(leg)
        self._tell(flight, leg, "")
        self._owner.prompt_read()

    def leg_over(self, leg: Leg) -> None:
        """A leg made its last token."""
        flight = self._flights[leg.request]
        worker, engine = flight.worker, flight.engine
        assert worker is not None and engine is not None
        self.collect(leg, flight.index)
        if not (leg.export and self._gateway.handoff is lc.Handoff.PLAIN):  # else its token goes to nobody
            flight.last_token_s = self._kernel.now_s
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
                self._kernel.now_s + self._gateway.ticket_deadline_s,
                "{}",
            )
            worker.exports += 1
            self._exports[ticket.ticket_id] = Export(worker, engine, leg, ticket)
        self._tell(flight, leg, "stop" if leg.stops else "length", ticket)
        self._settle(worker)
        self._owner.freed()

    def leg_failed(self, leg: Leg, error: ServingError) -> None:
        """The engine cannot serve a leg."""
        flight = self._flights[leg.request]
        flight.drop_export()
        self.handle(flight, lc.LegFailed(leg.leg_id, error))

    def pull(self, leg: Leg, tokens: int) -> None:
        """Bring a leg's KV from where it was prefilled."""
        flight = self._flights[leg.request]
        export, target = flight.export, flight.worker
        if export is None or target is None:
            self._kernel.at(self._kernel.now_s, self.broken, (flight, leg))
            return
        kv_bytes = int(tokens * target.pool.profile.kv_bytes_per_token)
        work_s = self._fleet.transfer_work_s(export.worker, target, kv_bytes) if tokens > 0 else 0.0
        self.transfers += 1
        self.transferred_bytes += kv_bytes
        breaks = self._breaks()
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
        tokens = leg.made_tokens - leg.sent_tokens
        leg.sent_tokens = leg.made_tokens
        self.handle(flight, lc.LegOutput(leg.leg_id, some_tokens(tokens), finish, ticket))

    def tell_progress(self, flight: Flight) -> None:
        """Let the gateway have the tokens that a decoding leg has made by now."""
        leg, engine = flight.leg, flight.engine
        if leg is None or engine is None or leg.state is not LegState.DECODING:
            return
        engine.sync()
        if leg.joined_order >= 0:
            leg.made_tokens = engine.batch.made_of(leg)
        if leg.made_tokens > leg.sent_tokens:
            flight.last_token_s = engine.batch.start_s
            self._tell(flight, leg, "")

    def _hit(self, leg: Leg) -> None:
        if not self._records.columns["retries"][leg.request] and not self._records.columns["moves"][leg.request]:
            self._records.columns["hit_tokens"][leg.request] = leg.hit_tokens

    def collect(self, leg: Leg, index: int) -> None:
        """Write what a leg counted into the request's record, once."""
        self._records.columns["slow_gaps"][index] += leg.slow_gaps
        self._records.columns["preemptions"][index] += leg.preemptions
        leg.slow_gaps = leg.preemptions = 0
