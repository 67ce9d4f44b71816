"""The placer alone: order, headroom, patience, and coming back."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import NoReadyWorker, RequestRejected
from cluster.spec.transfer_settings import TransferSettings
from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.placer import Placer
from orchestrator.gateway.preemption import Preemption
from orchestrator.policy.preemption import TAKE_BACK_EVERY_S
from orchestrator.request.lifecycle import Displaced
from tests.fakes.gateway_parts import BLOCK, Clock, FakeFleet, FakeRun, prepared


class Setup:
    """A placer over a fleet of a prefill and a decode worker of 10 blocks; a plain request takes 6."""

    def __init__(self, queued: int = 8, patience_s: float | None = None) -> None:
        self.clock, self.fleet = Clock(), FakeFleet()
        self.fleet.add("prefill-0")
        self.fleet.add("decode-0", 10)
        self.runs: dict[int, FakeRun] = {}
        forecast = OutputForecast(512, BLOCK)
        self.preemption = Preemption(
            self.fleet, self.runs, forecast, is_moving=lambda _: False,
            local_prefill_below_tokens=0, on_preempted=lambda: None,
        )  # fmt: skip
        self.placer = Placer(
            self.fleet, forecast, self.preemption, TransferSettings(), queued, lambda _: 1.0, patience_s=patience_s,
            clock=self.clock, call_later=self.clock.call_later,
        )  # fmt: skip

    def ask(self, *, again: bool = False, run: FakeRun | None = None, **fields: Any) -> FakeRun:
        run = run or FakeRun(prepared(64, 100, **fields))
        self.runs[run.number] = run
        self.placer.enqueue(run, frozenset(), again=again)
        return run

    def end(self, run: FakeRun) -> None:
        del self.runs[run.number]
        for reservations in self.fleet.reserved.values():
            reservations.pop(run.life.request_id, None)
        self.placer.forget(run)
        self.placer.place_waiting()


def test_the_first_is_placed_at_once_and_the_next_waits_for_its_kv() -> None:
    setup = Setup()
    first, second = setup.ask(), setup.ask()
    assert first.placements == [("prefill-0", "decode-0")]
    assert setup.fleet.reserved == {"decode-0": {first.life.request_id: 6}}
    assert not second.placements
    setup.end(first)
    assert second.placements == [("prefill-0", "decode-0")]


def test_a_small_one_does_not_overtake() -> None:
    setup = Setup()
    setup.ask()
    large = setup.ask()
    small = FakeRun(prepared(8, 8))
    setup.ask(run=small)
    assert not small.placements
    setup.end(large)  # as when its caller disconnects: the small one is the head from here on
    assert small.placements


def test_one_that_comes_to_the_head_of_the_queue_is_tried_at_once() -> None:
    setup = Setup()
    setup.ask()
    large = setup.ask()
    small = setup.ask(run=FakeRun(prepared(8, 8, priority=1)))
    assert small.placements
    assert not large.placements


def test_what_is_the_head_since_another_lost_its_place_is_tried_at_once() -> None:
    setup = Setup(queued=1)
    setup.ask()
    large = setup.ask(priority=-1)
    small = setup.ask(run=FakeRun(prepared(8, 8)))
    assert [type(each) for each in large.posted] == [Displaced]
    assert small.placements


def test_without_workers_an_incoming_request_is_refused_and_one_admitted_before_waits() -> None:
    setup = Setup()
    setup.fleet.workers.clear()
    with pytest.raises(NoReadyWorker):
        setup.ask()
    assert not setup.ask(again=True).placements
    assert setup.placer.waiting == 1


def test_a_full_queue_refuses_and_a_higher_priority_displaces() -> None:
    setup = Setup(queued=1)
    setup.ask()
    waits = setup.ask(priority=-1)
    urgent = setup.ask(priority=1)
    (event,) = waits.posted
    assert isinstance(event, Displaced)
    assert isinstance(event.error, RequestRejected)
    assert not urgent.placements
    with pytest.raises(RequestRejected, match="queue is full"):
        setup.ask()


def test_it_is_charged_once_and_settled_by_what_it_took() -> None:
    setup = Setup()
    first, second = setup.ask(tenant="a"), setup.ask(tenant="a")
    assert setup.placer.settle(first, 10) == 74
    assert setup.placer.settle(first, 10) == 10
    assert setup.placer.settle(second, 0) == 0  # never placed: not even its prompt
    setup.end(first)
    assert setup.placer.settle(second, 5) == 69


def test_after_its_patience_the_longest_is_preempted_and_comes_back_last() -> None:
    setup = Setup(patience_s=2.0)
    setup.preemption.starting = True
    long = setup.ask().decodes("decode-0", 40)
    incoming = setup.ask()
    setup.clock.advance(1.9)
    assert not incoming.placements
    # What it gives up is given out at once, as the fleet's report of it would have it.
    real = long.preempt

    def preempt() -> bool:
        done = real()
        setup.fleet.reserved["decode-0"].pop(long.life.request_id, None)
        setup.ask(run=long, again=True)
        return done

    long.preempt = preempt  # type: ignore[method-assign]
    setup.clock.advance(0.2)
    assert incoming.placements == [("prefill-0", "decode-0")]
    assert long.preempted
    assert setup.preemption.preempted_requests == 1
    assert long.waits_for_headroom
    setup.end(incoming)
    assert long.placements == [("prefill-0", "decode-0"), (None, "decode-0")]
    setup.clock.advance(TAKE_BACK_EVERY_S + 1)
    assert not setup.clock.timers or all(at_s > setup.clock.now_s for at_s, _ in setup.clock.timers)


def test_where_nothing_grows_nothing_is_preempted() -> None:
    setup = Setup(patience_s=2.0)
    long = setup.ask().decodes("decode-0", 40)
    incoming = setup.ask()
    setup.clock.advance(10)
    assert not long.preempted
    assert not incoming.placements


def test_one_that_waits_for_headroom_does_not_go_where_others_fill() -> None:
    setup = Setup()
    run = FakeRun(prepared(64, 100))
    run.waits_for_headroom = True
    setup.preemption.starting = True
    setup.fleet.others["decode-0"] = 3
    setup.fleet.reserve("elsewhere", "decode-0", 4)
    setup.ask(run=run, again=True)
    assert not run.placements
    del setup.fleet.reserved["decode-0"]
    setup.fleet.others.clear()
    setup.placer.prompt_read()
    assert run.placements == [(None, "decode-0")]
