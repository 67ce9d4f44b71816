from dataclasses import replace

import numpy as np
import pytest

from cluster.errors import PlacementInfeasible
from planner.capacity.check import arrivals, check, draw, simulate
from planner.capacity.day import day_shape, simulate_day
from planner.capacity.planner import plan_for
from planner.capacity.spec import Mode

from .plans import problem, workload

SHORT = workload(
    rate_per_s=6.0, input_tokens={"mean": 1500, "cv": 0.8}, reasoning_tokens=0, answer_tokens={"mean": 300, "cv": 0.6}
)
ASKED = problem(
    workload=SHORT, hardware={"gpus": ["H100-SXM"], "tensor_parallel": [1]}, simulate={"requests": 600, "finalists": 2}
)
PLAN = plan_for(ASKED)


def test_the_simulator_agrees_with_the_sizing() -> None:
    for mode in (Mode.COLOCATED, Mode.DISAGGREGATED):
        chosen = PLAN.best_of(mode)
        assert chosen is not None
        found = simulate(ASKED, chosen)
        assert found.requests >= 500 and not found.broken
        assert found.e2e.p50_s == pytest.approx(chosen.e2e.p50_s, rel=0.25)
        assert found.itl.p50_s == pytest.approx(chosen.itl.p50_s, rel=0.3)
        assert found.ttft.p50_s == pytest.approx(chosen.ttft.p50_s, rel=0.4)


def test_checking_puts_a_kept_plan_first_and_repeats_exactly() -> None:
    one, checks = check(PLAN)
    other, again = check(PLAN)
    assert one.best.label == other.best.label
    assert [each.e2e for each in checks] == [each.e2e for each in again]
    assert any(each.candidate.label == one.best.label and not each.broken for each in checks)
    assert len(one.candidates) == len(PLAN.candidates)


def test_no_finalists_no_simulation() -> None:
    asked = problem(simulate={"finalists": 0})
    plan = plan_for(asked)
    assert check(plan) == (plan, [])


def test_an_objective_missed_in_the_simulator_is_never_relaxed() -> None:
    """A fleet sized for one rate and simulated at ten times that, with no GPU left to grow by, is refused by name."""
    fleet = PLAN.best_of(Mode.COLOCATED)
    assert fleet is not None
    busy = replace(
        ASKED,
        spec=ASKED.spec.model_copy(update={"workload": ASKED.spec.workload.model_copy(update={"rate_per_s": 60.0})}),
    )
    found = simulate(busy, fleet)
    assert found.broken
    full = busy.spec.hardware.model_copy(update={"max_gpus": fleet.gpus})
    stuck = replace(
        PLAN, problem=replace(busy, spec=busy.spec.model_copy(update={"hardware": full})), candidates=(fleet,)
    )
    with pytest.raises(PlacementInfeasible, match="simulated") as raised:
        check(stuck)
    assert raised.value.ids["limit"] == found.broken[0]


def test_a_fleet_that_misses_grows_until_it_keeps() -> None:
    fleet = PLAN.best_of(Mode.COLOCATED)
    assert fleet is not None
    short = replace(fleet, pools=(replace(fleet.pools[0], workers=1),))
    found, checks = check(replace(PLAN, candidates=(short,)))
    assert checks[0].added_workers > 0 and not checks[0].broken
    assert found.best.pools[0].workers == 1 + checks[0].added_workers


def test_draws_follow_the_distributions() -> None:
    drawn = draw(ASKED, arrivals(6.0, 1.0, 20_000, 3), 3)
    assert drawn.isl_tokens.mean() == pytest.approx(1500, rel=0.03)
    assert drawn.answer_tokens.mean() == pytest.approx(300, rel=0.03)
    gaps = np.diff(arrivals(6.0, 2.0, 50_000, 3))
    assert gaps.mean() == pytest.approx(1 / 6, rel=0.05) and gaps.std() / gaps.mean() == pytest.approx(2, rel=0.1)
    assert np.allclose(np.diff(arrivals(5.0, 0.0, 10, 0)), 0.2)


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 3.0, 6.0])
def test_a_day_has_the_peak_asked_for(ratio: float) -> None:
    shape = day_shape(ratio)
    rates = [shape(share) for share in (np.arange(2000) + 0.5) / 2000]
    assert max(rates) / np.mean(rates) == pytest.approx(ratio, rel=0.02)


def test_a_day_is_simulated() -> None:
    quiet = plan_for(
        problem(workload=SHORT | {"rate_per_s": 0.05, "peak_to_mean": 2.0}, hardware={"gpus": ["H100-SXM"]})
    )
    day = simulate_day(quiet)
    assert day.time_h[-1] == pytest.approx(24, abs=0.6)  # ends with its last request
    assert max(day.running) >= 1 and "simulated requests" in day.caption
