from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    OutOfBlocks,
    RequestAborted,
    ServingError,
    TicketRefused,
    TransferBroken,
    WorkerDied,
    WorkerDraining,
)
from kv_transfer.ticket import HandoffTicket
from orchestrator.request.lifecycle import (
    AbortLeg,
    Action,
    AskPlacement,
    Cancelled,
    Counted,
    DeadlinePassed,
    Event,
    Fail,
    Finish,
    FreeReservation,
    Handoff,
    LegFailed,
    LegOutput,
    Lifecycle,
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

PROMPT = (1, 2, 3)


def life(**changes: object) -> Lifecycle:
    return Lifecycle(**{"request_id": "r", "prompt_ids": PROMPT, "max_tokens": 8, **changes})  # type: ignore[arg-type]


def ticket(source: str = "p0", name: str = "t", tokens: int = 3) -> HandoffTicket:
    return HandoffTicket(f"{source}/{name}", source, f"inc-{source}", tokens, 1, 100.0, "{}")


def prefilled(run: Lifecycle, *, prefill: str = "p0", decode: str = "d0", token: int = 10) -> HandoffTicket:
    """Bring a queued run to DECODING."""
    run.handle(Placed(prefill, decode))
    kept = ticket(prefill, name=str(run.leg_id), tokens=len(PROMPT) + len(run.output_ids))
    run.handle(LegOutput(str(run.leg_id), (token,), "length", kept))
    assert run.state is State.DECODING
    return kept


# --- the way through ------------------------------------------------------------------------------------------------


def test_first_token_is_sent_before_decode_starts_and_decode_gets_it_as_input() -> None:
    run = life()
    (start,) = run.handle(Placed("p0", "d0"))
    assert start == StartLeg("r/1", "p0", PROMPT, 0, max_tokens=1, export=True)
    kept = ticket()
    assert run.handle(LegOutput("r/1", (10,), "length", kept)) == [
        SendTokens((10,)),
        StartLeg("r/2", "d0", (*PROMPT, 10), 1, max_tokens=7, ticket=kept),
    ]
    assert run.handle(LegOutput("r/2", (11, 12))) == [SendTokens((11, 12))]
    assert run.handle(LegOutput("r/2", (13,), "stop")) == [SendTokens((13,)), FreeReservation("d0"), Finish("stop")]
    assert run.state is State.FINISHED


def test_plain_handoff_drops_prefills_token() -> None:
    run = life(handoff=Handoff.PLAIN, resumable=False)
    run.handle(Placed("p0", "d0"))
    kept = ticket()
    assert run.handle(LegOutput("r/1", (10,), "length", kept)) == [
        StartLeg("r/2", "d0", PROMPT, 0, max_tokens=8, ticket=kept)
    ]


def test_a_holder_that_prefills_by_itself_gets_one_leg() -> None:
    run = life()
    assert run.handle(Placed(None, "c0")) == [StartLeg("r/1", "c0", PROMPT, 0, max_tokens=8)]


def test_one_token_needs_no_handoff() -> None:
    run = life(max_tokens=1)
    assert run.handle(Placed("p0", "d0")) == [StartLeg("r/1", "p0", PROMPT, 0, max_tokens=1, export=False)]
    assert run.handle(LegOutput("r/1", (10,), "length")) == [
        SendTokens((10,)),
        FreeReservation("d0"),
        Finish("length"),
    ]


def test_a_stop_at_the_first_token_releases_the_kept_blocks() -> None:
    run = life()
    run.handle(Placed("p0", "d0"))
    kept = ticket()
    assert run.handle(LegOutput("r/1", (10,), "stop", kept)) == [
        SendTokens((10,)),
        ReleaseTicket("d0", kept),
        FreeReservation("d0"),
        Finish("stop"),
    ]


def test_prefills_token_may_come_before_its_end() -> None:
    run = life()
    run.handle(Placed("p0", "d0"))
    assert run.handle(LegOutput("r/1", (10,))) == [SendTokens((10,))]
    kept = ticket()
    assert run.handle(LegOutput("r/1", (), "length", kept)) == [
        StartLeg("r/2", "d0", (*PROMPT, 10), 1, max_tokens=7, ticket=kept)
    ]


def test_tokens_over_the_limit_are_cut_and_the_leg_ended() -> None:
    run = life(max_tokens=3)
    prefilled(run)
    assert run.handle(LegOutput("r/2", (11, 12, 13))) == [
        SendTokens((11, 12)),
        AbortLeg("r/2", "d0"),
        FreeReservation("d0"),
        Finish("length"),
    ]


def test_no_message_without_tokens() -> None:
    run = life()
    prefilled(run)
    assert run.handle(LegOutput("r/2", ())) == []


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_lost_decode_worker_leads_to_a_prefill_of_the_ledger_elsewhere() -> None:
    run = life()
    prefilled(run)
    run.handle(LegOutput("r/2", (11,)))
    assert run.handle(WorkerLost("d0")) == [FreeReservation("d0"), AskPlacement(frozenset({"d0"}))]
    assert run.handle(Placed("p1", "d1")) == [
        StartLeg("r/3", "p1", (*PROMPT, 10, 11), 2, max_tokens=1, export=True),
    ]


def test_a_prefill_worker_lost_before_its_kv_was_read_counts_as_a_failed_transfer() -> None:
    run = life()
    prefilled(run)
    assert run.handle(WorkerLost("p0")) == [
        AbortLeg("r/2", "d0"),
        FreeReservation("d0"),
        AskPlacement(frozenset({"p0"})),
    ]


def test_a_prefill_worker_lost_after_its_kv_was_read_changes_nothing() -> None:
    run = life()
    prefilled(run)
    run.handle(LegOutput("r/2", (11,)))
    assert run.handle(WorkerLost("p0")) == []


def test_a_decode_worker_lost_during_prefill_gives_its_late_ticket_back() -> None:
    run = life()
    run.handle(Placed("p0", "d0"))
    assert run.handle(WorkerLost("d0")) == [
        AbortLeg("r/1", "p0"),
        FreeReservation("d0"),
        AskPlacement(frozenset({"d0"})),
    ]
    kept = ticket()
    assert run.handle(LegOutput("r/1", (10,), "length", kept)) == [ReleaseTicket("d0", kept)]
    assert run.handle(LegOutput("r/1", (10,), "length", kept)) == []


def test_a_cancel_during_prefill_gives_the_late_ticket_back() -> None:
    run = life()
    run.handle(Placed("p0", "d0"))
    assert [type(action) for action in run.handle(Cancelled())] == [AbortLeg, FreeReservation, Fail]
    kept = ticket()
    assert run.handle(LegOutput("r/1", (10,), "length", kept)) == [ReleaseTicket("d0", kept)]


def test_a_placement_after_the_cancel_is_given_back() -> None:
    run = life()
    run.handle(Cancelled())
    assert run.handle(Placed("p0", "d0")) == [FreeReservation("d0")]


@pytest.mark.parametrize("error", [OutOfBlocks("full"), EngineFailed("broke"), WorkerDraining("drains")])
def test_what_another_worker_may_mend_is_retried_elsewhere(error: ServingError) -> None:
    run = life()
    prefilled(run)
    assert run.handle(LegFailed("r/2", error)) == [FreeReservation("d0"), AskPlacement(frozenset({"d0"}))]


def test_a_broken_transfer_avoids_the_source() -> None:
    run = life()
    prefilled(run)
    assert run.handle(LegFailed("r/2", TransferBroken("reset")))[-1] == AskPlacement(frozenset({"p0"}))


def test_a_prefill_that_kept_no_blocks_is_avoided() -> None:
    run = life()
    run.handle(Placed("p0", "d0"))
    assert run.handle(LegOutput("r/1", (10,), "length", None)) == [
        SendTokens((10,)),
        FreeReservation("d0"),
        AskPlacement(frozenset({"p0"})),
    ]


def test_a_ticket_of_more_tokens_than_the_leg_had_is_never_read() -> None:
    run = life()
    run.handle(Placed("p0", "d0"))
    alien = ticket(tokens=4)
    assert run.handle(LegOutput("r/1", (10,), "length", alien)) == [
        SendTokens((10,)),
        ReleaseTicket("d0", alien),
        FreeReservation("d0"),
        AskPlacement(frozenset({"p0"})),
    ]


def test_a_bad_request_is_not_retried() -> None:
    run = life()
    run.handle(Placed("p0", "d0"))
    error = InvalidRequest("bad grammar")
    assert run.handle(LegFailed("r/1", error)) == [FreeReservation("d0"), Fail(error)]


def test_retries_are_bounded() -> None:
    run = life(retry_budget=2)
    for _ in range(2):
        run.handle(Placed("p0", "d0"))
        assert isinstance(run.handle(LegFailed(str(run.leg_id), WorkerDied("gone")))[-1], AskPlacement)
    run.handle(Placed("p0", "d0"))
    assert isinstance(run.handle(LegFailed(str(run.leg_id), WorkerDied("gone")))[-1], Fail)


def test_what_cannot_resume_is_retried_before_its_first_token_only() -> None:
    run = life(handoff=Handoff.PLAIN, resumable=False)
    run.handle(Placed("p0", "d0"))
    run.handle(LegOutput("r/1", (10,), "length", ticket()))
    assert isinstance(run.handle(LegFailed("r/2", TransferBroken("reset")))[-1], AskPlacement)
    run.handle(Placed("p0", "d0"))
    run.handle(LegOutput("r/3", (10,), "length", ticket(name="u")))
    run.handle(LegOutput("r/4", (20,)))
    assert isinstance(run.handle(LegFailed("r/4", WorkerDied("gone")))[-1], Fail)


@pytest.mark.parametrize(("event", "error"), [(Cancelled(), RequestAborted), (DeadlinePassed(), DeadlineExceeded)])
def test_an_end_from_outside_aborts_and_frees(event: Event, error: type[ServingError]) -> None:
    run = life()
    prefilled(run)
    abort, free, fail = run.handle(event)
    assert (abort, free) == (AbortLeg("r/2", "d0"), FreeReservation("d0"))
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, error)
    assert run.handle(event) == []


# --- moves ----------------------------------------------------------------------------------------------------------


def test_a_move_exports_where_it_decodes_and_goes_on_at_the_target() -> None:
    run = life()
    prefilled(run)
    run.handle(LegOutput("r/2", (11,)))
    assert run.handle(Moved("d1")) == [
        AbortLeg("r/2", "d0"),
        FreeReservation("d0"),
        StartLeg("r/3", "d0", (*PROMPT, 10, 11), 2, max_tokens=1, export=True),
    ]
    assert run.handle(LegOutput("r/2", (12,), "abort")) == []
    kept = ticket("d0", tokens=5)
    assert run.handle(LegOutput("r/3", (12,), "length", kept)) == [
        SendTokens((12,)),
        StartLeg("r/4", "d1", (*PROMPT, 10, 11, 12), 3, max_tokens=5, ticket=kept),
    ]
    assert (run.moves, run.retries) == (1, 0)


def test_a_move_during_prefill_changes_the_target_alone() -> None:
    run = life()
    run.handle(Placed("p0", "d0"))
    assert run.handle(Moved("d1")) == [FreeReservation("d0")]
    kept = ticket()
    assert run.handle(LegOutput("r/1", (10,), "length", kept))[-1] == StartLeg(
        "r/2", "d1", (*PROMPT, 10), 1, max_tokens=7, ticket=kept
    )
    assert run.moves == 0


def test_what_cannot_move_gives_the_promise_back() -> None:
    run = life()
    prefilled(run)  # its KV is still being read
    assert run.handle(Moved("d1")) == [FreeReservation("d1")]
    run = life(handoff=Handoff.PLAIN, resumable=False)
    run.handle(Placed("p0", "d0"))
    run.handle(LegOutput("r/1", (10,), "length", ticket()))
    run.handle(LegOutput("r/2", (20,)))
    assert run.handle(Moved("d1")) == [FreeReservation("d1")]


def test_a_source_lost_during_the_move_is_a_failure_like_any_other() -> None:
    run = life()
    prefilled(run)
    run.handle(LegOutput("r/2", (11,)))
    run.handle(Moved("d1"))
    assert run.handle(WorkerLost("d0")) == [FreeReservation("d1"), AskPlacement(frozenset({"d0"}))]


# --- turns ----------------------------------------------------------------------------------------------------------


def test_a_turn_goes_on_from_the_ledger_on_the_same_worker() -> None:
    run = life()
    prefilled(run)
    run.handle(LegOutput("r/2", (11,)))
    assert run.handle(Turned((99,))) == [
        AbortLeg("r/2", "d0"),
        SendTokens((99,)),
        StartLeg("r/3", "d0", (*PROMPT, 10, 11, 99), 3, max_tokens=5),
    ]
    assert run.handle(LegOutput("r/2", (12,), "abort")) == []
    assert run.handle(LegOutput("r/3", (13,), "stop"))[0] == SendTokens((13,))
    assert (run.moves, run.retries) == (0, 0)


def test_a_turn_with_no_tokens_left_ends_the_request() -> None:
    run = life(max_tokens=2)
    prefilled(run)
    assert run.handle(Turned((98, 99))) == [
        AbortLeg("r/2", "d0"),
        SendTokens((98,)),
        FreeReservation("d0"),
        Finish("length"),
    ]


def test_only_what_decodes_can_turn() -> None:
    run = life()
    assert run.handle(Turned((99,))) == []
    run.handle(Placed("p0", "d0"))
    assert run.handle(Turned((99,))) == []


def test_a_worker_lost_before_the_first_counted_token_is_followed_by_a_plain_handoff() -> None:
    run = life()
    prefilled(run)
    run.handle(LegOutput("r/2", (99,)))
    run.handle(Counted(begun=False))
    run.handle(WorkerLost("d0"))
    run.handle(Placed("p1", "d1"))
    kept = ticket("p1", tokens=5)
    assert run.handle(LegOutput("r/3", (20,), "length", kept)) == [
        StartLeg("r/4", "d1", (*PROMPT, 10, 99), 2, max_tokens=6, ticket=kept)
    ]
    run.handle(LegOutput("r/4", (20,)))
    run.handle(Counted(begun=True))
    assert isinstance(run.handle(WorkerLost("d1"))[-1], Fail)


# --- any order of events --------------------------------------------------------------------------------------------

PREFILLS = ("p0", "p1")
DECODES = ("d0", "d1")
ERRORS = (
    WorkerDied("x"),
    EngineFailed("x"),
    OutOfBlocks("x"),
    TransferBroken("x"),
    TicketRefused("x"),
    WorkerDraining("x"),
    InvalidRequest("x"),
)
tokens = st.lists(st.integers(0, 99), max_size=4).map(tuple)


class AnyOrder(RuleBasedStateMachine):
    """Plays workers, router and caller in any order, and keeps the balance that the lifecycle must not upset."""

    @initialize(
        max_tokens=st.integers(0, 6),
        retry_budget=st.integers(0, 2),
        handoff=st.sampled_from(Handoff),
        resumable=st.booleans(),
    )
    def begin(self, max_tokens: int, retry_budget: int, handoff: Handoff, resumable: bool) -> None:
        self.life = life(max_tokens=max_tokens, retry_budget=retry_budget, handoff=handoff, resumable=resumable)
        self.asked = 1  # the driver asks for the first placement itself
        self.asks = self.preempted = 0
        self.reserved: set[str] = set()
        self.legs: dict[str, StartLeg] = {}
        self.over: set[str] = set()
        self.ticket_uses: dict[str, int] = {}
        self.sent: list[int] = []
        self.final: list[LegOutput] = []

    def feed(self, event: Event) -> list[Action]:
        was_over = self.life.ended
        midst = isinstance(event, LegOutput) and self.life.goes_on_after(event.leg_id, len(event.token_ids))
        actions = self.life.handle(event)
        if midst and isinstance(event, LegOutput) and event.token_ids and not event.finish_reason:
            assert actions == [SendTokens(event.token_ids)]
        for position, action in enumerate(actions):
            match action:
                case SendTokens():
                    assert action.token_ids
                    self.sent += action.token_ids
                case StartLeg():
                    assert action.leg_id not in self.legs
                    assert action.token_ids == (*PROMPT, *self.sent)
                    assert action.generated_tokens == len(self.sent)
                    # Of a prompt alone an engine makes one token, which is not said.
                    assert 1 <= action.max_tokens <= max(1, self.life.max_tokens - len(self.sent))
                    assert not set(self.legs) - self.over, "two legs at once"
                    self.legs[action.leg_id] = action
                    if action.ticket is not None:
                        self.ticket_uses[action.ticket.ticket_id] += 1
                case AbortLeg():
                    assert self.legs[action.leg_id].worker_id == action.worker_id
                    assert action.leg_id not in self.over
                    self.over.add(action.leg_id)
                case ReleaseTicket():
                    assert action.worker_id in DECODES
                    self.ticket_uses[action.ticket.ticket_id] += 1
                case FreeReservation():
                    self.reserved.remove(action.worker_id)
                case AskPlacement():
                    self.asked += 1
                    self.asks += 1
                case Finish() | Fail():
                    assert position == len(actions) - 1
        if was_over:
            assert all(isinstance(action, ReleaseTicket | FreeReservation) for action in actions)
        return actions

    @precondition(lambda self: self.asked)
    @rule(prefill=st.sampled_from([*PREFILLS, None]), decode=st.sampled_from(DECODES))
    def place(self, prefill: str | None, decode: str) -> None:
        self.asked -= 1
        self.reserved.add(decode)
        self.feed(Placed(prefill, decode))

    @rule(prefill=st.sampled_from(PREFILLS), decode=st.sampled_from(DECODES))
    def place_unasked(self, prefill: str, decode: str) -> None:
        if self.life.state is State.QUEUED:
            return  # the router answers each question once
        self.reserved.add(decode)
        self.feed(Placed(prefill, decode))

    @precondition(lambda self: self.legs)
    @rule(data=st.data(), ids=tokens, finish=st.sampled_from(["", "", "stop", "length"]), extra=st.integers(0, 1))
    def output(self, data: st.DataObject, ids: tuple[int, ...], finish: str, extra: int) -> None:
        """Any leg that has not said its end speaks, those given up included."""
        ended = {event.leg_id for event in self.final}
        open_legs = [leg for leg in self.legs if leg not in ended]
        if not open_legs:
            return
        leg = self.legs[data.draw(st.sampled_from(open_legs))]
        kept = None
        if leg.export and finish and data.draw(st.booleans()):
            kept = ticket(leg.worker_id, leg.leg_id, len(leg.token_ids) + extra * data.draw(st.integers(0, 1)))
            self.ticket_uses[kept.ticket_id] = 0
        event = LegOutput(leg.leg_id, ids, finish, kept)
        if finish:
            self.over.add(leg.leg_id)
            self.final.append(event)
        self.feed(event)

    @precondition(lambda self: self.final)
    @rule(data=st.data())
    def duplicate(self, data: st.DataObject) -> None:
        self.feed(data.draw(st.sampled_from(self.final)))

    @precondition(lambda self: self.legs)
    @rule(data=st.data(), error=st.sampled_from(ERRORS))
    def leg_fails(self, data: st.DataObject, error: ServingError) -> None:
        leg_id = data.draw(st.sampled_from(list(self.legs)))
        self.over.add(leg_id)
        self.final.append(LegOutput(leg_id, (), "stop"))  # it says no more
        self.feed(LegFailed(leg_id, error))

    @rule(decode=st.sampled_from(DECODES))
    def move(self, decode: str) -> None:
        if self.life.state is State.QUEUED or decode in self.reserved:
            return  # a drain moves what runs, to where it has nothing yet
        was = self.life.state
        self.reserved.add(decode)
        self.feed(Moved(decode))
        assert self.life.decode_id == decode or decode not in self.reserved or was is not self.life.state

    @rule(ids=tokens)
    def turn(self, ids: tuple[int, ...]) -> None:
        could = self.life.state is State.DECODING
        retries, leg_id = self.life.retries, self.life.leg_id
        if could and leg_id in self.over:
            return  # a turn comes of an output, and before the leg's end is reported
        assert bool(self.feed(Turned(ids))) is could
        assert self.life.retries == retries
        assert self.life.leg_id is None or self.life.leg_id != leg_id or not could

    @rule(begun=st.booleans(), really=st.integers(0, 3))
    def counted(self, begun: bool, really: int) -> None:
        if really == 0:
            assert self.feed(Counted(begun)) == []

    @rule()
    def preempt(self) -> None:
        could = self.life.state is State.DECODING and self.life.resumable
        retries = self.life.retries
        actions = self.feed(Preempted())
        assert bool(actions) is could
        assert self.life.retries == retries
        self.preempted += could

    @rule(ids=tokens)
    def foreign(self, ids: tuple[int, ...]) -> None:
        assert self.feed(LegOutput("other/1", ids, "length", ticket(name="foreign"))) == []
        assert self.feed(LegFailed("other/1", WorkerDied("x"))) == []

    @rule(worker=st.sampled_from([*PREFILLS, *DECODES]))
    def worker_lost(self, worker: str) -> None:
        current = self.life.leg_id
        if current is not None and self.legs[current].worker_id == worker:
            self.over.add(current)
        self.feed(WorkerLost(worker))

    @precondition(lambda self: self.sent)
    @rule()
    def stop_matched(self) -> None:
        self.feed(StopMatched("stop"))

    @rule(event=st.sampled_from([Cancelled(), DeadlinePassed()]), really=st.integers(0, 3))
    def end(self, event: Event, really: int) -> None:
        if really == 0:
            self.feed(event)

    @invariant()
    def balance_holds(self) -> None:
        if not hasattr(self, "life"):
            return
        self.life.validate()
        assert self.sent == self.life.output_ids
        assert len(self.sent) <= self.life.max_tokens
        assert self.asks == self.life.retries + self.preempted
        assert self.life.retries <= self.life.retry_budget
        assert all(uses == 1 for uses in self.ticket_uses.values()), self.ticket_uses
        running = set(self.legs) - self.over
        if self.life.ended:
            assert not self.reserved
            assert not running, "a leg runs on after the end"
        else:
            assert running or self.asked, "nothing will ever happen again"
            assert running == ({self.life.leg_id} if self.life.leg_id else set())


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestAnyOrder = AnyOrder.TestCase
