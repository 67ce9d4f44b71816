"""Sessions: turns that wait for the turn before, in workloads and in runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from planner.simulator.fleet import FleetSpec
from planner.simulator.records import Outcome
from planner.simulator.simulation import ClosedLoop, GatewaySpec, Simulation
from planner.simulator.workload import Change, Workload, merge

MakeFleet = Callable[..., FleetSpec]


def chats(sessions: int, turns: int, *, think_s: float = 1.0, apart_s: float = 3.0) -> Workload:
    """Sessions that begin ``apart_s`` after each other; the ISL encodes session and turn."""
    parts = []
    for session in range(sessions):
        steps = np.arange(turns)
        parts.append(
            Workload(
                session * apart_s + steps * think_s,
                100 * (session + 1) + steps,
                np.zeros(turns, np.int64),
                np.full(turns, 20),
                session=np.zeros(turns, np.int64),
                think_s=np.where(steps > 0, think_s, np.nan),
            )
        )
    return merge(parts)


def turns_of(workload: Workload) -> list[list[int]]:
    return [np.flatnonzero(workload.session == each).tolist() for each in np.unique(workload.session)]


@given(sessions=st.integers(1, 6), turns=st.integers(1, 5), rate=st.sampled_from([0.5, 1.0, 2.0, 2.7]))
def test_changes_keep_turns_together_and_in_order(sessions: int, turns: int, rate: float) -> None:
    changed = Change(rate=rate).apply(chats(sessions, turns), np.random.default_rng(0))
    for found in turns_of(changed):
        assert len(found) == turns
        assert np.diff(changed.isl_tokens[found]).tolist() == [1] * (turns - 1)
        assert changed.turn_before[found].tolist() == [-1, *found[:-1]]


def test_a_slice_lets_a_turn_without_its_predecessor_come_at_its_time() -> None:
    part = chats(1, 4).between(1.5, 10.0)
    assert part.isl_tokens.tolist() == [102, 103]
    assert part.turn_before.tolist() == [-1, 0]


@pytest.mark.parametrize("think_s", [-1.0, float("inf")])
def test_a_pause_that_cannot_be_is_refused(think_s: float) -> None:
    with pytest.raises(ConfigError, match="think_s"):
        Workload(np.zeros(1), np.ones(1, int), np.zeros(1, int), np.ones(1, int), think_s=np.array([think_s]))


def test_a_turn_comes_its_pause_after_the_answer(fleet: MakeFleet) -> None:
    workload = chats(3, 4, think_s=0.7)
    records = Simulation(fleet(), workload).run().records
    assert (records["outcome"] == Outcome.FINISHED).all()
    for turns in turns_of(workload):
        gaps = records["arrival_s"][turns[1:]] - records["end_s"][turns[:-1]]
        assert gaps == pytest.approx(0.7)
        assert records["arrival_s"][turns[0]] == workload.arrival_s[turns[0]]


def test_a_session_goes_on_after_a_turn_that_was_rejected(fleet: MakeFleet) -> None:
    many = merge([chats(30, 3, apart_s=0.0, think_s=0.0)])
    result = Simulation(fleet(decode=1, blocks=150), many, GatewaySpec(max_queued_requests=2)).run()
    outcomes = result.records["outcome"]
    assert (outcomes == Outcome.REJECTED).any() and not (outcomes == Outcome.OPEN).any()
    assert ((outcomes == Outcome.REJECTED) | (outcomes == Outcome.FINISHED)).all()


def test_clients_of_a_closed_loop_take_whole_sessions(fleet: MakeFleet) -> None:
    workload = chats(5, 3, think_s=0.5)
    records = Simulation(fleet(), workload, closed_loop=ClosedLoop(2)).run().records
    assert (records["outcome"] == Outcome.FINISHED).all()
    for turns in turns_of(workload):
        assert records["arrival_s"][turns[1:]] - records["end_s"][turns[:-1]] == pytest.approx(0.5)
    # Never more than two sessions at a time.
    first = [(records["arrival_s"][turns[0]], records["end_s"][turns[-1]]) for turns in turns_of(workload)]
    for at_s, _ in first:
        assert sum(start <= at_s < end for start, end in first) <= 2


def test_without_sessions_nothing_waits() -> None:
    plain = Workload(np.arange(3.0), np.ones(3, int), np.zeros(3, int), np.ones(3, int))
    assert not plain.follows.any() and (plain.session == -1).all()
