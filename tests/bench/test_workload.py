import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.trace import TraceRow
from bench.workload import ClosedPlan, PlannedRequest, open_plan, prompt_ids, prompt_text, trace_plan


@given(isl=st.integers(1, 5000), seed=st.integers(0, 99), index=st.integers(0, 99))
def test_prompts_have_the_exact_length_and_follow_from_the_seed(isl: int, seed: int, index: int) -> None:
    request = PlannedRequest(index, isl, 1)
    ids = prompt_ids(request, seed=seed, low=32, high=96)
    assert len(ids) == isl
    assert all(32 <= each < 96 for each in ids)
    assert ids == prompt_ids(request, seed=seed, low=32, high=96)
    assert len(prompt_text(request, seed=seed).split()) == isl


def test_prompts_of_two_requests_differ() -> None:
    one, two = (prompt_ids(PlannedRequest(index, 64, 1), seed=0, low=32, high=96) for index in (0, 1))
    assert one != two


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_spread_that_were_asked(burstiness: float) -> None:
    plan = open_plan(40_000, 10, 10, rate_per_s=20, burstiness=burstiness, seed=7)
    gaps = np.diff([0.0, *[request.arrival_s or 0.0 for request in plan]])
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(burstiness, rel=0.1)
    assert plan == open_plan(40_000, 10, 10, rate_per_s=20, burstiness=burstiness, seed=7)


def test_closed_plans_end_or_do_not() -> None:
    assert [request.index for request in ClosedPlan(5, 6, 3)] == [0, 1, 2]
    assert len(list(itertools.islice(ClosedPlan(5, 6, None), 1000))) == 1000


def test_a_trace_is_cut_filtered_and_sped_up() -> None:
    rows = [TraceRow(float(at), 10 * at, 5) for at in range(1, 6)]
    plan = trace_plan(rows, count=2, speed=2, timed=True, max_total_tokens=35)
    assert plan == [PlannedRequest(0, 10, 5, 0.5), PlannedRequest(1, 20, 5, 1.0)]
    assert trace_plan(rows, count=None, speed=1, timed=False, max_total_tokens=None)[4].arrival_s is None


def test_turns_hang_on_the_turn_before() -> None:
    rows = [
        TraceRow(0.0, 10, 5, 0),
        TraceRow(1.0, 20, 5, 1),
        TraceRow(2.0, 11, 5, 0, 0.5),
        TraceRow(3.0, 21, 5, 1),
        TraceRow(4.0, 12, 5, 0, 0.25),
    ]
    plan = trace_plan(rows, count=None, speed=2, timed=True, max_total_tokens=None)
    assert [(each.index, each.arrival_s) for each in plan] == [(0, 0.0), (1, 0.5), (3, 1.5)]
    second = plan[0].then
    assert second is not None and second.then is not None
    assert (second.index, second.isl_tokens, second.think_s, second.arrival_s) == (2, 11, 0.5, None)
    assert (second.then.index, second.then.think_s, second.then.then) == (4, 0.25, None)
    assert plan[1].then is None
    # Without its first turn, the second comes at its own time.
    short = trace_plan(rows[2:], count=None, speed=2, timed=True, max_total_tokens=None)
    assert [(each.index, each.arrival_s) for each in short] == [(0, 1.0), (1, 1.5)]
