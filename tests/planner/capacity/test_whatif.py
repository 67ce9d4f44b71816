import pytest

from cluster.errors import ConfigError
from planner.capacity.planner import plan_for
from planner.capacity.whatif import Lever, breaking_point, breaks, changed, resize

from .plans import problem

ASKED = problem(hardware={"gpus": ["H200-SXM"], "tensor_parallel": [1, 2]}, headroom=0.2)
PLAN = plan_for(ASKED)


def test_longer_and_wider_traces_cost_more() -> None:
    for lever in (Lever.TRACE_LENGTH, Lever.RATE, Lever.PRICE):
        rows = resize(ASKED, lever, [0.5, 1.0, 2.0])
        costs = [row.plan.best.cost.usd_month for row in rows if row.plan]
        assert costs == sorted(costs) and len(costs) == 3
        assert costs[1] == pytest.approx(PLAN.best.cost.usd_month)


def test_a_budget_saves_and_says_how_many_traces_it_clips() -> None:
    tight, at_p95, none = resize(ASKED, Lever.BUDGET, [0.3, 1.0, 100.0])
    assert tight.plan and at_p95.plan and none.plan
    assert tight.plan.best.cost.usd_month <= at_p95.plan.best.cost.usd_month <= none.plan.best.cost.usd_month
    assert at_p95.clipped_share == pytest.approx(0.05, abs=0.01)
    assert tight.clipped_share > at_p95.clipped_share and none.clipped_share == 0


def test_prefix_hits_save_prefill() -> None:
    none, most = resize(ASKED, Lever.PREFIX_HIT, [0.0, 0.9])
    assert none.plan and most.plan
    assert most.plan.best.fractional_usd_h < none.plan.best.fractional_usd_h


def test_a_held_fleet_breaks_past_its_headroom_and_not_before() -> None:
    for lever in (Lever.RATE, Lever.TRACE_LENGTH):
        point = breaking_point(PLAN.best, ASKED, lever)
        assert point.factor > 1.05 and point.limit
        assert not breaks(PLAN.best, changed(ASKED, lever, point.factor * 0.97))
        assert breaks(PLAN.best, changed(ASKED, lever, point.factor * 1.05))


def test_what_makes_no_plan_is_reported_with_its_reason() -> None:
    (row,) = resize(ASKED, Lever.TRACE_LENGTH, [60.0])
    assert row.plan is None and "KV capacity" in row.reason


@pytest.mark.parametrize(("lever", "factor"), [(Lever.RATE, 0.0), (Lever.SPREAD, -1.0), (Lever.PREFIX_HIT, 1.0)])
def test_senseless_factors_are_refused(lever: Lever, factor: float) -> None:
    with pytest.raises(ConfigError, match=lever.value):
        changed(ASKED, lever, factor)
