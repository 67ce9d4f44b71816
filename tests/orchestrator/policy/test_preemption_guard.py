"""When a running request may be preempted: patience, samples, one at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.policy.admission import Discipline
from orchestrator.policy.preemption import RESAMPLE_S, Running
from orchestrator.policy.preemption_guard import PreemptionGuard

RUNNING = Running(7, "d0", 0, 10, 100, False)


class Owner:
    """Has one request to preempt; counts what was asked of it."""

    def __init__(self) -> None:
        self.starting = self.growing = True
        self.found: Running | None = RUNNING
        self.asked: list[tuple[str, int]] = []
        self.preempted = 0
        self.on_preempt: Callable[[], object] = lambda: None
        self.delays_s: list[float] = []

    def victim(self, item: str, need_blocks: int) -> Running | None:
        self.asked.append((item, need_blocks))
        return self.found

    def preempt(self, victim: Running) -> bool:
        assert victim is RUNNING
        self.preempted += 1
        return self.on_preempt() is None


def guard(
    patience_s: float | None = 2.0, discipline: Discipline = Discipline.FAIR
) -> tuple[Owner, PreemptionGuard[str]]:
    owner = Owner()
    return owner, PreemptionGuard(owner, patience_s, discipline, owner.delays_s.append)


def test_it_is_patient_from_when_no_kv_was_found() -> None:
    owner, one = guard()
    one.arrived("r", 1.0)
    assert not one.make_headroom("r", 5, 99.0)  # it was not tried yet
    one.found_no_kv("r", 10.0)
    one.found_no_kv("r", 11.0)  # again: that changes nothing
    assert owner.delays_s == [2.0]
    assert not one.make_headroom("r", 5, 11.9)
    assert one.make_headroom("r", 5, 12.0)
    assert owner.asked == [("r", 5)]
    one.placed("r")
    one.found_no_kv("r", 20.0)  # its worker was lost since
    assert not one.make_headroom("r", 5, 21.0)


def test_by_plain_rules_it_is_patient_from_its_arrival_on() -> None:
    owner, one = guard(discipline=Discipline.PLAIN)
    one.arrived("r", 1.0)
    one.found_no_kv("r", 10.0)
    one.placed("r")
    assert owner.delays_s == [2.0]
    assert one.make_headroom("r", 5, 3.0)
    one.over("r")
    assert not one.make_headroom("r", 5, 3.0)


@pytest.mark.parametrize("discipline", Discipline)
def test_without_a_limit_of_patience_nothing_is_preempted(discipline: Discipline) -> None:
    owner, one = guard(None, discipline)
    one.arrived("r", 1.0)
    one.found_no_kv("r", 1.0)
    assert not one.make_headroom("r", 5, 1e9)
    assert not owner.delays_s


def test_only_while_a_worker_is_on_its_way() -> None:
    owner, one = guard(0.0)
    one.found_no_kv("r", 1.0)
    owner.starting = False  # it may be ready and yet to report: that is no reason
    assert not one.make_headroom("r", 5, 9.0)
    assert not owner.asked


def test_after_all_were_tried_in_vain_there_is_a_pause() -> None:
    owner, one = guard(0.0)
    owner.found = None
    one.found_no_kv("r", 1.0)
    assert not one.make_headroom("r", 5, 1.0)
    assert not one.make_headroom("r", 5, 1.0 + RESAMPLE_S / 2)
    assert len(owner.asked) == 1
    assert owner.delays_s == [0.0, RESAMPLE_S]
    owner.found = RUNNING
    assert one.make_headroom("r", 5, 1.0 + RESAMPLE_S)


def test_what_one_frees_is_given_out_before_the_next_is_chosen() -> None:
    owner, one = guard(0.0)
    one.found_no_kv("r", 1.0)
    one.found_no_kv("s", 1.0)
    nested = []
    owner.on_preempt = lambda: nested.append(one.make_headroom("s", 5, 1.0))
    assert one.make_headroom("r", 5, 1.0)
    assert (nested, owner.preempted) == ([False], 1)
    owner.on_preempt = lambda: 0
    assert not one.make_headroom("s", 5, 1.0)  # it was at its end
    owner.on_preempt = lambda: None
    assert one.make_headroom("s", 5, 1.0)
