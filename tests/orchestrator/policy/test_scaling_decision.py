"""The decision itself: what it grows and shrinks for, its bounds, its budget, and that its log replays."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.spec.config import Role
from orchestrator.policy.decision_log import entry_line, replay
from orchestrator.policy.demand import RECENT_S, Demand
from orchestrator.policy.scaling_decision import (
    PREFILL_PATIENCE_S,
    Decision,
    DecisionSettings,
    Memory,
    PoolMemory,
    WorkerRow,
    decide,
)
from orchestrator.policy.scaling_policy import ChangeRole, DrainWorker, StartWorker

SETTINGS = DecisionSettings(fill=1.0, shrink_fill=0.9, patience_s=600, help_share=0.0)


def demand(now_s: float = 0.0, decode: float = 3.0, prefill: float = 1.0, later: float | None = None) -> Demand:
    """Demand for so many workers' worth of KV, ``later`` at the far horizon."""
    high = (decode * 1e5, (later if later is not None else decode) * 1e5)
    return Demand(now_s, decode * 1e5, (0.0, 80.0), high, 0, 0, 0, prefill, prefill, 10, 1000, 100, 0, 1e5, 40.0, 1.0)


def fleet(prefill: int = 1, decode: int = 3, starting: int = 0, gpus: int = 1) -> list[WorkerRow]:
    rows = [WorkerRow(f"prefill-{i}", Role.PREFILL, "k", "ready", 0, gpus, i) for i in range(prefill)]
    rows += [WorkerRow(f"decode-{i}", Role.DECODE, "k", "ready", 0, gpus, 10 * i) for i in range(decode)]
    return rows + [WorkerRow(f"decode-s{i}", Role.DECODE, "k", "starting", i, gpus, 0) for i in range(starting)]


def steady(asked: Demand, rows: list[WorkerRow], seconds: int, memory: Memory | None = None) -> Decision:
    """The first decision that does something, or the last."""
    decision = Decision((), "", memory or Memory())
    for now_s in range(0, seconds, 10):
        decision = decide(SETTINGS, decision.memory, replace(asked, now_s=float(now_s)), rows)
        if decision.actions:
            break
    return decision


def test_decode_grows_for_what_is_coming_and_prefill_stays() -> None:
    decision = decide(SETTINGS, Memory(), demand(decode=3, later=6.5), fleet())
    assert decision.actions == (StartWorker(Role.DECODE),) * 4
    assert decision.reason.startswith("decode 3 -> 7: KV 0.30 M tokens, with 95 % under 0.65 M in 80 s")


def test_prefill_grows_for_first_tokens_and_decode_stays() -> None:
    asked = demand(decode=2.8, prefill=2.2)
    assert decide(SETTINGS, Memory(), asked, fleet()).actions == (StartWorker(Role.PREFILL),) * 2


def test_decode_workers_that_help_leave_less_for_the_prefill_pool() -> None:
    """Colocated overflow: eight decode workers do eight tenths of a prefill worker, and half of the need at most."""
    helping = SETTINGS.model_copy(update={"help_share": 0.1})
    asked = demand(prefill=2.7, decode=7.5)
    assert decide(helping, Memory(), asked, fleet(prefill=2, decode=8)).actions == ()
    assert StartWorker(Role.PREFILL) in decide(helping, Memory(), asked, fleet(prefill=2, decode=5)).actions
    assert StartWorker(Role.PREFILL) in decide(SETTINGS, Memory(), asked, fleet(prefill=2, decode=8)).actions
    many = demand(prefill=20.0, decode=300)
    grown = decide(helping, Memory(), many, fleet(prefill=2, decode=310)).actions
    assert grown == (StartWorker(Role.PREFILL),) * 8


def test_what_came_for_a_burst_goes_before_the_long_window_has_lost_it() -> None:
    burst = demand(prefill=4.0, decode=2.8)
    grown = decide(SETTINGS, Memory(), burst, fleet(prefill=2))
    assert len(grown.actions) == 2
    rows = fleet(prefill=4)
    assert steady(burst, rows, 300, grown.memory).actions == ()
    over = replace(demand(prefill=1.5, decode=2.8), prefill_workers_long=4.0)
    memory, sizes = grown.memory, [4]
    for now_s in range(300, 600, 10):
        decision = decide(SETTINGS, memory, replace(over, now_s=float(now_s)), rows)
        memory = decision.memory
        rows = fleet(prefill=len([row for row in rows if row.role is Role.PREFILL]) - len(decision.actions))
        sizes.append(sum(row.role is Role.PREFILL for row in rows))
    assert sizes[-1] == 2, "what was there before the burst stays, as the long window asks for more"
    without = decide(SETTINGS, replace(memory, prefill=replace(memory.prefill, surged_s=-1e9)), over, fleet(prefill=4))
    assert without.actions == ()


def test_what_is_held_already_counts_in_full_whatever_is_left_to_chance() -> None:
    """Sized for less than the 95th percentile, a pool that is full all the same gets a worker at once."""
    bold = SETTINGS.model_copy(update={"fill": 1.5})
    assert decide(bold, Memory(), demand(decode=2.9), fleet()).actions == ()
    assert decide(bold, Memory(), demand(decode=2.95), fleet()).actions == (StartWorker(Role.DECODE),)


def test_workers_on_their_way_count() -> None:
    assert decide(SETTINGS, Memory(), demand(later=5), fleet(starting=2)).actions == ()


def test_a_worker_not_started_yet_is_cancelled_at_once_newest_first() -> None:
    decision = decide(SETTINGS, Memory(), demand(decode=3.5), fleet(starting=2))
    assert decision.actions == (DrainWorker("decode-s1"),)


def test_demand_that_comes_and_goes_cancels_no_start_where_patience_is_asked() -> None:
    """A worker of three requests: at one tick they need two workers, at the next one."""
    patient = SETTINGS.model_copy(update={"cancel_patience_s": 30.0})

    def cancelled_after_s(until_s: int) -> int | None:
        decision = Decision((), "", Memory())
        for now_s in range(0, 200, 5):
            need = 4.5 if now_s < until_s and now_s % 20 == 0 else 3.5
            decision = decide(patient, decision.memory, demand(float(now_s), decode=need), fleet(starting=2))
            if decision.actions:
                assert decision.actions == (DrainWorker("decode-s1"),)
                return now_s
        return None

    assert cancelled_after_s(200) is None
    # The need is remembered by half minutes, so up to as much later.
    assert cancelled_after_s(0) == 30
    assert 110 <= (cancelled_after_s(100) or 0) <= 140


def seconds_until_smaller(decode: float, have: int = 5, requests: int = 1600) -> float:
    decision = Decision((), "", Memory())
    for now_s in range(0, 2000, 10):
        asked = replace(demand(float(now_s), decode=decode), in_flight_requests=requests)
        decision = decide(SETTINGS, decision.memory, asked, fleet(decode=have))
        if decision.actions:
            return now_s
    return float("inf")


def test_the_less_chance_can_explain_it_the_sooner_workers_go() -> None:
    """At 0.9 of a worker's capacity: a need of 4.0, 3.9 and 2.0 of five workers, in 1,600 requests or in 16."""
    assert seconds_until_smaller(3.6) == pytest.approx(600, abs=30)
    assert 200 < seconds_until_smaller(3.5) < 500
    assert seconds_until_smaller(1.8) == pytest.approx(SETTINGS.cooldown_s, abs=30)
    assert seconds_until_smaller(1.8, requests=16) == pytest.approx(150, abs=30)
    assert seconds_until_smaller(4.4) == float(
        "inf"
    )  # four at 0.9 hold only 3.6: the smaller pool would soon have to grow


def test_the_prefill_pool_waits_less_since_its_need_is_that_of_ten_minutes() -> None:
    """But not before five minutes of prompts have been seen."""

    def seconds_until_smaller(since_s: int) -> float:
        decision = Decision((), "", Memory())
        for now_s in range(0, 2000, 10):
            asked = demand(float(now_s), decode=2.8, prefill=1.0 if now_s >= since_s else 8.0)
            decision = decide(SETTINGS, decision.memory, asked, fleet(prefill=9))
            if decision.actions:
                assert len(decision.actions) == 7
                return now_s - since_s
        return float("inf")

    assert seconds_until_smaller(0) == RECENT_S
    assert seconds_until_smaller(800) == pytest.approx(PREFILL_PATIENCE_S, abs=30)


def test_after_a_surge_the_pool_comes_down_sooner() -> None:
    """What was started to catch up is soon too much; a single worker more is no surge."""

    def seconds_until(peak: float) -> float:
        decision, have = Decision((), "", Memory()), 3
        for now_s in range(0, 3000, 10):
            asked = demand(float(now_s), decode=peak if 600 <= now_s < 700 else 2.5)
            decision = decide(SETTINGS, decision.memory, asked, fleet(decode=have))
            have += sum(isinstance(action, StartWorker) for action in decision.actions)
            if any(isinstance(action, DrainWorker) for action in decision.actions):
                return now_s - 700
        return float("inf")

    assert seconds_until(3.5) == pytest.approx(SETTINGS.patience_s, abs=100)
    assert seconds_until(4.5) == pytest.approx(SETTINGS.surge_patience_s / 2, abs=60)


def test_no_shrinking_to_where_requests_would_stay_so_long_that_they_do_not_fit() -> None:
    """Requests make 40 tokens a second and would make 28 on well-filled workers: worth of 2.5 workers becomes 3.6."""
    asked = replace(demand(decode=2.5), planned_tokens_per_s=28.0)
    assert steady(asked, fleet(decode=4), 2000).actions == ()
    assert steady(replace(asked, planned_tokens_per_s=40.0), fleet(decode=4), 2000).actions
    surged = Memory(decode=PoolMemory(surged_s=0.0))
    assert steady(asked, fleet(decode=4), 1000, surged).actions


def test_the_least_loaded_is_drained() -> None:
    assert steady(demand(decode=2.5), fleet(decode=4), 1000).actions == (DrainWorker("decode-0"),)


def test_a_worker_changes_its_role_where_the_other_pool_is_too_large() -> None:
    decision = decide(SETTINGS, Memory(), demand(decode=1.5, prefill=2.0), fleet(prefill=1, decode=4))
    assert decision.actions == (ChangeRole("decode-0", Role.PREFILL),)
    apart = SETTINGS.model_copy(update={"change_roles": False})
    decision = decide(apart, Memory(), demand(decode=1.5, prefill=2.0), fleet(prefill=1, decode=4))
    assert decision.actions == (StartWorker(Role.PREFILL),)


def test_a_steady_load_does_not_flap() -> None:
    """Four hours of a demand that swings by 4 %, at every place between two sizes."""
    for load in np.arange(3.0, 5.0, 0.1):
        rng, have, changes = np.random.default_rng(int(load * 10)), 5, []
        decision = Decision((), "", Memory())
        for now_s in range(0, 14_400, 10):
            asked = demand(float(now_s), decode=load * (1 + 0.04 * rng.standard_normal()))
            decision = decide(SETTINGS, decision.memory, asked, fleet(decode=have))
            for action in decision.actions:
                have += 1 if isinstance(action, StartWorker) else -1
            if decision.actions:
                changes.append(now_s)
        settled = [time_s for time_s in changes if time_s > 1800]
        assert all(late - soon > 600 for soon, late in itertools.pairwise(settled)), (load, settled)


@given(
    st.floats(0, 60), st.floats(0, 60), st.floats(0, 20), st.integers(0, 10), st.integers(0, 20), st.integers(0, 5),
    st.integers(2, 40),
)  # fmt: skip
@settings(deadline=None)
def test_bounds_and_budget_hold(
    now: float, later: float, prefill: float, prefills: int, decodes: int, starting: int, budget: int
) -> None:
    bounds = DecisionSettings(min_prefill=1, max_prefill=8, min_decode=1, max_decode=12, max_gpus=budget)
    rows = fleet(prefills, decodes, starting)
    decision = decide(bounds, Memory(), demand(decode=now, later=later, prefill=prefill), rows)
    count = {Role.PREFILL: prefills, Role.DECODE: decodes + starting}
    touched = set()
    for action in decision.actions:
        if isinstance(action, StartWorker):
            count[action.role] += 1
        elif isinstance(action, DrainWorker):
            role = Role.PREFILL if action.worker_id.startswith("prefill") else Role.DECODE
            count[role] -= 1
            assert action.worker_id not in touched
            touched.add(action.worker_id)
        elif isinstance(action, ChangeRole):
            count[action.role] += 1
            count[Role.DECODE if action.role is Role.PREFILL else Role.PREFILL] -= 1
            assert action.worker_id not in touched
            touched.add(action.worker_id)
    assert decision.reason
    grew = any(isinstance(action, StartWorker) for action in decision.actions)
    if grew:
        assert count[Role.PREFILL] <= max(8, prefills)
        assert count[Role.DECODE] <= max(12, decodes + starting)
        assert sum(count.values()) <= max(budget, prefills + decodes + starting)
    if prefills >= 1 and decodes + starting >= 1:
        assert min(count.values()) >= 1


def test_the_log_replays_and_a_changed_line_is_found() -> None:
    lines, memory = [], Memory()
    for now_s, load in enumerate((3.0, 3.2, 6.0, 2.0, 2.0)):
        asked, rows = demand(now_s * 10.0, decode=load), fleet()
        decision = decide(SETTINGS, memory, asked, rows)
        lines.append(entry_line(SETTINGS, memory, asked, rows, decision))
        memory = decision.memory
    assert [each.agrees for each in replay(lines)] == [True] * 5
    assert [each.agrees for each in replay(lines[2:])] == [True] * 3
    tree = json.loads(lines[2])
    tree["demand"]["kv_high_tokens"][1] = 1e5
    assert [each.agrees for each in replay([json.dumps(tree)])] == [False]
    with pytest.raises(ConfigError, match="line 1 is not a decision"):
        list(replay(['{"a": 1}']))
