"""Preemption and peaks alone, over fakes."""

from __future__ import annotations

from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.peaks import FRESH_S, Peaks
from orchestrator.gateway.preemption import Preemption
from tests.fakes.gateway_parts import BLOCK, Clock, FakeFleet, FakeRun, prepared


class Setup:
    def __init__(self) -> None:
        self.fleet = FakeFleet()
        for worker_id in ("prefill-0", "decode-0"):
            self.fleet.add(worker_id)
        self.runs: dict[int, FakeRun] = {}
        self.moving: set[str] = set()
        self.counted = 0
        self.preemption = Preemption(
            self.fleet, self.runs, OutputForecast(512, BLOCK), is_moving=lambda life: life.request_id in self.moving,
            local_prefill_below_tokens=0, on_preempted=self.count,
        )  # fmt: skip

    def count(self) -> None:
        self.counted += 1

    def run(self, tokens: int, priority: int = 0) -> FakeRun:
        run = FakeRun(prepared(64, 500, priority=priority)).decodes("decode-0", tokens)
        self.runs[run.number] = run
        return run


def test_a_worker_that_is_yet_to_report_is_waited_for_but_nothing_is_preempted_for_it() -> None:
    setup = Setup()
    assert not setup.preemption.growing
    setup.preemption.starting = True
    assert setup.preemption.growing
    setup.preemption.starting = False
    setup.fleet.add("decode-1", accepting=False)
    assert setup.preemption.growing
    assert not setup.preemption.starting
    setup.fleet.add("decode-1")
    assert not setup.preemption.growing


def test_the_longest_goes_that_may() -> None:
    setup = Setup()
    short, long, fixed, away, urgent = setup.run(5), setup.run(50), setup.run(90), setup.run(80), setup.run(99, 1)
    fixed.life.resumable = False
    setup.moving.add(away.life.request_id)
    victim = setup.preemption.victim(FakeRun(), 10)
    assert victim is not None
    assert victim.request == long.number
    assert setup.preemption.preempt(victim)
    assert (long.preempted, short.preempted, urgent.preempted) == (True, False, False)
    assert list(setup.fleet.leaving.values()) == [-(-(64 + 50) // BLOCK)]
    assert (setup.counted, setup.preemption.preempted_requests) == (1, 1)


def test_one_at_its_end_is_not_preempted() -> None:
    setup = Setup()
    run = setup.run(5)
    victim = setup.preemption.victim(FakeRun(), 10)
    assert victim is not None
    run.preempt = lambda: False  # type: ignore[method-assign]
    assert not setup.preemption.preempt(victim)
    assert not setup.fleet.leaving
    assert setup.counted == 0


def test_peaks_count_others_as_they_are_and_are_computed_now_and_then() -> None:
    runs: dict[int, FakeRun] = {}
    clock = Clock()

    class Used:
        def decode_used_blocks(self) -> dict[str, int]:
            return {"decode-0": 12, "decode-1": 0}

    peaks = Peaks(Used(), runs, OutputForecast(512, BLOCK), clock)
    run = FakeRun(prepared(64, 96)).decodes("decode-0", 32)
    runs[run.number] = run
    # It holds 3 blocks of the 12, and will hold 5.
    assert peaks.blocks() == {"decode-0": 9 + 5, "decode-1": 0}
    peaks.add("decode-1", 7)
    peaks.add("colocated-0", 7)
    assert peaks.blocks() == {"decode-0": 14, "decode-1": 7}
    clock.advance(FRESH_S)
    assert peaks.blocks() == {"decode-0": 14, "decode-1": 0}
