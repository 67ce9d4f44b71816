"""One request from arrival to last token. Pure: an event and a time go in, a list of actions comes out.

::

    QUEUED ──placed──> PREFILLING ──ticket──> DECODING ──last token──> FINISHED
      │                   │  │                   │
      │                   │  └──last token───────┼─────────────────> FINISHED
      │                   │  ^────────moved──────┤ <── turned: another leg on the same worker
      │                   └─────────failure──────┤
      └─ <── prefill the ledger again, preempted ┘      cancel, deadline, no retries left ──> ENDED

The ledger (prompt and every token produced) is kept here and nowhere else, so that any worker may die and the
stream goes on. Each piece of work on a worker is a *leg* with an id of its own; what a leg says after it was
given up is ignored, except a ticket, whose blocks must be released.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.errors import (
    CapacityError,
    DeadlineExceeded,
    RequestAborted,
    ServingError,
    TicketRefused,
    TransferError,
    WorkerError,
)
from kv_transfer.ticket import HandoffTicket
from orchestrator.request.lifecycle_messages import (
    AbortLeg,
    Action,
    AskPlacement,
    Cancelled,
    Counted,
    DeadlinePassed,
    Displaced,
    Event,
    Fail,
    Finish,
    FreeReservation,
    Handoff,
    LegFailed,
    LegOutput,
    Moved,
    Placed,
    Preempted,
    ReleaseTicket,
    SendTokens,
    StartLeg,
    State,
    StopMatched,
    Turned,
    WorkerLost,
)

__all__ = [
    "AbortLeg",
    "Action",
    "AskPlacement",
    "Cancelled",
    "Counted",
    "DeadlinePassed",
    "Displaced",
    "Event",
    "Fail",
    "Finish",
    "FreeReservation",
    "Handoff",
    "LegFailed",
    "LegOutput",
    "Lifecycle",
    "Moved",
    "Placed",
    "Preempted",
    "ReleaseTicket",
    "SendTokens",
    "StartLeg",
    "State",
    "StopMatched",
    "Turned",
    "WorkerLost",
]


@dataclass(slots=True)
class Lifecycle:
    """State of one request. Feed it events with `handle` and do what it answers, in order.

    Args:
        request_id: Unique among live requests.
        prompt_ids: The prompt, tokenised once.
        max_tokens: Output limit; 0 has the prompt computed, and drops the one token that an engine makes in any case.
        handoff: How decode takes over.
        retry_budget: Times the ledger may be prefilled again after a failure.
        resumable: Whether the engine can go on from a ledger with the same meaning; if not, a failure before the
            first token is retried and a later one ends the request. `Counted` changes it.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    handoff: Handoff = Handoff.FIRST_TOKEN
    retry_budget: int = 2
    resumable: bool = True

    state: State = State.QUEUED
    output_ids: list[int] = field(default_factory=list)
    prefill_id: str | None = None
    decode_id: str | None = None
    retries: int = 0
    moves: int = 0
    _leg: StartLeg | None = None
    _legs_started: int = 0
    _avoid: frozenset[str] = frozenset()
    _reserved_on: str | None = None
    _given_up: dict[str, str | None] = field(default_factory=dict)
    """Legs given up whose end is still to be learned of, with the decode worker their ticket was for."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (State.FINISHED, State.ENDED)

    @property
    def context_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def settled(self) -> bool:
        """Whether it decodes and could be moved: its KV is where it decodes, and its meaning does not hang on that."""
        return self.resumable and self.has_output

    @property
    def has_output(self) -> bool:
        """Whether its present decode leg has made a token, so that its KV is there."""
        leg = self._leg
        return self.state is State.DECODING and leg is not None and len(self.output_ids) > leg.generated_tokens

    @property
    def leg_id(self) -> str | None:
        """The leg that runs, if one does."""
        return self._leg.leg_id if self._leg else None

    def handle(self, event: Event) -> list[Action]:
        """Take one event; returns what to do. Late, duplicate and foreign events are harmless."""
        match event:
            case Placed():
                return self._placed(event)
            case Displaced():
                return self._end(event.error) if self.state is State.QUEUED else []
            case Moved():
                return self._moved(event)
            case Preempted():
                return self._preempted()
            case LegOutput():
                return self._output(event)
            case LegFailed():
                if self._is_current(event.leg_id):
                    return self._failed(event.error)
                self._given_up.pop(event.leg_id, None)
                return []
            case WorkerLost():
                return self._worker_lost(event.worker_id)
            case StopMatched():
                return [] if self.ended else [*self._give_up_leg(), *self._finish(event.reason)]
            case Turned():
                return self._turned(event.token_ids)
            case Counted():
                self.handoff = Handoff.PLAIN
                self.resumable &= not event.begun
                return []
            case Cancelled():
                return self._end(RequestAborted("the caller cancelled", request_id=self.request_id))
            case DeadlinePassed():
                return self._end(DeadlineExceeded("the deadline passed", request_id=self.request_id))

    def goes_on_after(self, leg_id: str, tokens: int) -> bool:
        """Whether so many more tokens of a decode leg would be put into the ledger, and nothing else be done.

        Then ``output_ids`` may be extended by them in place of a `handle`, which costs several times as much.
        """
        leg = self._leg
        return (
            self.state is State.DECODING
            and leg is not None
            and leg.leg_id == leg_id
            and len(self.output_ids) + tokens < self.max_tokens
        )

    def validate(self) -> None:
        """Check the invariants; for tests.

        Raises:
            AssertionError: one is broken.
        """
        assert len(self.output_ids) <= self.max_tokens
        assert (self._leg is None) == (self.state in (State.QUEUED, State.FINISHED, State.ENDED))
        assert (self._reserved_on is None) == (self.state in (State.QUEUED, State.FINISHED, State.ENDED))
        assert self.retries <= self.retry_budget
        if self._leg is not None:
            assert self._leg.leg_id not in self._given_up
            assert self._leg.max_tokens >= 1
            assert self._leg.worker_id == (self.prefill_id if self.state is State.PREFILLING else self.decode_id)

    # --- transitions ----------------------------------------------------------------------------------------

    def _placed(self, event: Placed) -> list[Action]:
        if self.state is not State.QUEUED:
            # The placement came too late (cancelled meanwhile): its reservation must not stay.
            return [FreeReservation(event.decode_id)] if self._reserved_on != event.decode_id else []
        self.prefill_id, self.decode_id, self._reserved_on = event.prefill_id, event.decode_id, event.decode_id
        if event.prefill_id is None:
            return [self._start_decode(None)]
        return [self._start_source_leg(event.prefill_id)]

    def _moved(self, event: Moved) -> list[Action]:
        """Stop where it decodes, export there from the engine's own cache, and go on at the target."""
        source_id = self.decode_id
        if self.state is State.PREFILLING and event.decode_id not in (source_id, self.prefill_id):
            actions = self._free()
            self.decode_id = self._reserved_on = event.decode_id
            return actions
        if not self.settled or source_id is None or source_id == event.decode_id:
            return [FreeReservation(event.decode_id)] if self._reserved_on != event.decode_id else []
        actions = [*self._give_up_leg(), *self._free()]
        self.prefill_id, self.decode_id, self._reserved_on = source_id, event.decode_id, event.decode_id
        self.moves += 1
        return [*actions, self._start_source_leg(source_id)]

    def _turned(self, token_ids: tuple[int, ...]) -> list[Action]:
        """Stop the decode leg and start another one there, whose prompt the worker has in its cache."""
        if self.state is not State.DECODING:
            return []
        actions = [*self._give_up_leg(), *self._take(token_ids)]
        if self._remaining == 0:
            return [*actions, *self._finish("length")]
        return [*actions, self._start_decode(None)]

    def _preempted(self) -> list[Action]:
        """Stop where it decodes and queue again. No retry is spent: nothing failed."""
        if self.state is not State.DECODING or not self.resumable:
            return []
        actions = [*self._give_up_leg(), *self._free()]
        self.state, self.prefill_id, self.decode_id = State.QUEUED, None, None
        return [*actions, AskPlacement(self._avoid)]

    def _output(self, event: LegOutput) -> list[Action]:
        if not self._is_current(event.leg_id):
            return self._late(event)
        if self.state is State.PREFILLING:
            return self._prefilled(event)
        actions = self._take(event.token_ids)
        if event.finish_reason:
            self._leg = None
            return [*actions, *self._finish(event.finish_reason)]
        if self._remaining == 0:
            # Not left to the engine: were it lost before it says so, there would be nothing to prefill for.
            return [*actions, *self._give_up_leg(), *self._finish("length")]
        return actions

    def _late(self, event: LegOutput) -> list[Action]:
        """An output of a leg that does not run: of one given up, the ticket must go back. Others are not ours."""
        if not event.finish_reason or event.leg_id not in self._given_up:
            return []
        through = self._given_up.pop(event.leg_id)
        return self._release(event.ticket, through)

    def _prefilled(self, event: LegOutput) -> list[Action]:
        assert self._leg is not None
        leg = self._leg
        actions: list[Action] = []
        if self.handoff is Handoff.FIRST_TOKEN:
            taken = len(self.output_ids) - leg.generated_tokens
            actions += self._take(event.token_ids[: 1 - taken])
        if not event.finish_reason:
            return actions
        if self.handoff is Handoff.FIRST_TOKEN and (event.finish_reason != "length" or self._remaining == 0):
            self._leg = None
            return [*actions, *self._release(event.ticket, self.decode_id), *self._finish(event.finish_reason)]
        if event.ticket is not None and event.ticket.num_tokens <= len(leg.token_ids):
            self._leg = None
            return [*actions, self._start_decode(event.ticket)]
        error: TransferError = TransferError("prefill kept no KV blocks", request_id=self.request_id)
        if event.ticket is not None:
            error = TicketRefused("the ticket is of a longer prompt", request_id=self.request_id)
        actions += [*self._release(event.ticket, self.decode_id), *self._failed(error)]
        self._given_up.pop(leg.leg_id, None)  # its end was heard: a duplicate of it is nothing new
        return actions

    def _failed(self, error: ServingError) -> list[Action]:
        """A leg failed: prefill the ledger again elsewhere, or end where that cannot help."""
        failed_on = self._leg.worker_id if self._leg else None
        if self._leg is not None:
            self._given_up[self._leg.leg_id] = self.decode_id
            self._leg = None
        if failed_on and not isinstance(error, TransferError):
            self._avoid |= {failed_on}
        elif failed_on and self.prefill_id:
            self._avoid |= {self.prefill_id}
        hopeless = not isinstance(error, TransferError | WorkerError | CapacityError)
        if hopeless or self.retries >= self.retry_budget or (self.output_ids and not self.resumable):
            return self._end(error)
        self.retries += 1
        actions = self._free()
        self.state, self.prefill_id, self.decode_id = State.QUEUED, None, None
        return [*actions, AskPlacement(self._avoid)]

    def _worker_lost(self, worker_id: str) -> list[Action]:
        leg = self._leg
        if self.ended or leg is None:
            return []
        lost = WorkerError("the worker is gone", worker_id=worker_id)
        if leg.worker_id == worker_id:
            return self._failed(lost)
        unread = leg.ticket is not None and len(self.output_ids) == leg.generated_tokens
        target_gone = self.state is State.PREFILLING and self.decode_id == worker_id
        source_gone = self.state is State.DECODING and self.prefill_id == worker_id and unread
        if not (target_gone or source_gone):
            return []
        # With the source gone, the read may hang as well as fail; before the first token it counts as not done.
        self._avoid |= {worker_id}
        return [*self._give_up_leg(), *self._failed(lost)]

    # --- pieces ---------------------------------------------------------------------------------------------

    @property
    def _remaining(self) -> int:
        return self.max_tokens - len(self.output_ids)

    def _is_current(self, leg_id: str) -> bool:
        return self._leg is not None and self._leg.leg_id == leg_id

    def _start(
        self, worker_id: str, *, max_tokens: int, export: bool = False, ticket: HandoffTicket | None = None
    ) -> StartLeg:
        self._legs_started += 1
        self._leg = StartLeg(
            leg_id=f"{self.request_id}/{self._legs_started}",
            worker_id=worker_id,
            token_ids=self.prompt_ids + tuple(self.output_ids),
            generated_tokens=len(self.output_ids),
            max_tokens=max_tokens,
            export=export,
            ticket=ticket,
        )
        return self._leg

    def _start_source_leg(self, worker_id: str) -> StartLeg:
        """One token where a handoff begins: the prompt is read there, or, in a move, its KV is there already."""
        self.state = State.PREFILLING
        only_one = self._remaining <= 1 and self.handoff is Handoff.FIRST_TOKEN
        return self._start(worker_id, max_tokens=1, export=not only_one)

    def _start_decode(self, ticket: HandoffTicket | None) -> StartLeg:
        assert self.decode_id is not None
        self.state = State.DECODING
        return self._start(self.decode_id, max_tokens=max(1, self._remaining), ticket=ticket)

    def _take(self, token_ids: tuple[int, ...]) -> list[Action]:
        """Put tokens into the ledger and send them, never more than were asked for."""
        token_ids = token_ids[: self._remaining]
        if not token_ids:
            return []
        self.output_ids.extend(token_ids)
        return [SendTokens(token_ids)]

    def _give_up_leg(self) -> list[Action]:
        if self._leg is None:
            return []
        leg, self._leg = self._leg, None
        self._given_up[leg.leg_id] = self.decode_id
        return [AbortLeg(leg.leg_id, leg.worker_id)]

    def _free(self) -> list[Action]:
        if self._reserved_on is None:
            return []
        worker_id, self._reserved_on = self._reserved_on, None
        return [FreeReservation(worker_id)]

    @staticmethod
    def _release(ticket: HandoffTicket | None, through: str | None) -> list[Action]:
        return [ReleaseTicket(through, ticket)] if ticket is not None and through is not None else []

    def _finish(self, reason: str) -> list[Action]:
        actions = self._free()
        self.state = State.FINISHED
        # A token that was dropped says nothing of the end.
        return [*actions, Finish(reason if self.max_tokens else "length")]

    def _end(self, error: ServingError) -> list[Action]:
        if self.ended:
            return []
        actions = [*self._give_up_leg(), *self._free()]
        self.state = State.ENDED
        return [*actions, Fail(error)]
