import math
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import PlacementInfeasible
from cluster.hardware.catalogue import gpu
from planner.capacity.plan import Plan
from planner.capacity.planner import evaluate, plan_for
from planner.capacity.pools import size_colocated, size_decode, size_prefill
from planner.capacity.resolve import scaled_constants
from planner.capacity.spec import Mode, ScalesPlan
from planner.capacity.worker_model import WorkerModel

from .plans import problem, workload

few = settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
ONE_KIND = {"gpus": ["H200-SXM"], "tensor_parallel": [1, 2]}


def _plan(**changes: Any) -> Plan:
    return plan_for(problem(hardware=changes.pop("hardware", ONE_KIND), **changes))


def _usd_month(**changes: Any) -> float:
    """Cost of the best fleet; without bound where no fleet keeps the objectives, which is the dearest of all."""
    try:
        return _plan(**changes).best.cost.usd_month
    except PlacementInfeasible:
        return math.inf


rates = st.floats(0.5, 100)
isls = st.floats(100, 6000)
osls = st.floats(100, 8000)
factors = st.floats(1.0, 4.0)


@few
@given(rates, isls, osls, factors)
def test_cost_and_gpus_grow_with_the_rate(rate: float, isl: float, osl: float, factor: float) -> None:
    lengths = {"input_tokens": isl, "reasoning_tokens": 0, "answer_tokens": osl}
    low = _plan(workload=workload(rate_per_s=rate, **lengths))
    high = _plan(workload=workload(rate_per_s=rate * factor, **lengths))
    assert high.best.cost.usd_month >= low.best.cost.usd_month
    for mode in Mode:
        one, other = low.best_of(mode), high.best_of(mode)
        if one is not None and other is not None:
            assert other.fractional_usd_h >= one.fractional_usd_h * (1 - 1e-6) or one.label != other.label


@few
@given(rates, isls, osls, factors)
def test_cost_grows_with_length(rate: float, isl: float, osl: float, factor: float) -> None:
    def cost(isl: float, osl: float) -> float:
        lengths = {"input_tokens": isl, "reasoning_tokens": 0, "answer_tokens": osl}
        return _usd_month(workload=workload(rate_per_s=rate, **lengths))

    base = cost(isl, osl)
    assert cost(isl * factor, osl) >= base * (1 - 1e-9)
    assert cost(isl, osl * factor) >= base * (1 - 1e-9)


@few
@given(rates, isls, osls, st.floats(0, 1.2), st.floats(0, 1.2))
def test_more_spread_never_needs_fewer_gpus(rate: float, isl: float, osl: float, cv: float, more: float) -> None:
    def gpus(cv: float) -> float:
        lengths = {
            "input_tokens": {"mean": isl, "cv": cv},
            "reasoning_tokens": 0,
            "answer_tokens": {"mean": osl, "cv": cv},
        }
        return _usd_month(
            workload=workload(rate_per_s=rate, **lengths), hardware={"gpus": ["H200-SXM"], "tensor_parallel": [2]}
        )

    assert gpus(cv + more) >= gpus(cv) * (1 - 1e-9)


@few
@given(st.floats(0.1, 20), factors)
def test_cost_grows_with_price(price: float, factor: float) -> None:
    def cost(price: float) -> float:
        hardware = ONE_KIND | {"overrides": {"H200-SXM": {"price_usd_h": price}}}
        return _plan(hardware=hardware).best.cost.usd_month

    assert cost(price * factor) >= cost(price) * (1 - 1e-9)


@few
@given(st.floats(0.1, 6), factors)
def test_latency_of_a_held_fleet_grows_with_the_rate(rate: float, factor: float) -> None:
    asked = problem(hardware=ONE_KIND)
    for candidate in (_plan().best_of(Mode.COLOCATED), _plan().best_of(Mode.DISAGGREGATED)):
        assert candidate is not None
        low = evaluate(asked, candidate.mode, candidate.pools, rate)
        high = evaluate(asked, candidate.mode, candidate.pools, rate * factor)
        for name in ("ttft", "itl", "e2e", "ttfat"):
            assert getattr(high, name).p95_s >= getattr(low, name).p95_s * (1 - 1e-6)


@few
@given(isls, osls, st.floats(0.02, 0.2))
def test_pd_is_at_least_as_good_with_an_infinite_link_and_no_overhead(isl: float, osl: float, itl: float) -> None:
    lengths = {"input_tokens": isl, "reasoning_tokens": 0, "answer_tokens": osl}
    asked = problem(workload=workload(**lengths), slo={"itl_s": itl}, hardware=ONE_KIND | {"link": "infinite"})
    asked = replace(asked, engine=scaled_constants(asked.engine, ScalesPlan(overhead=0.0501)))
    worker = WorkerModel(asked, gpu("H200-SXM"), 2)
    colocated = size_colocated(worker, asked.rate_per_s, 1e9)
    split = size_prefill(worker, asked.rate_per_s).fractional + size_decode(worker, asked.rate_per_s, 1e9).fractional
    assert split <= colocated.fractional * (1 + 1e-6)


def test_pd_pays_for_long_prompts_and_not_for_long_outputs() -> None:
    def gain(isl: int, osl: int) -> float:
        lengths = {"input_tokens": isl, "reasoning_tokens": 0, "answer_tokens": osl}
        asked = problem(workload=workload(**lengths), hardware={"gpus": ["H200-SXM"]})
        worker = WorkerModel(asked, gpu("H200-SXM"), 4)
        whole = size_colocated(worker, asked.rate_per_s, 1e9).fractional
        return whole / (size_prefill(worker, 11).fractional + size_decode(worker, 11, 1e9).fractional) - 1

    assert gain(1000, 8000) < 0.03
    assert 0.25 < gain(4000, 1000) < 0.45


def test_the_answer_is_one_line_and_says_why() -> None:
    line = _plan().headline()
    assert line.startswith("Deploy ") and "\n" not in line and "P/D" in line and "$" in line
    assert "not compared" in _plan(modes=["colocated"]).headline()


def test_whole_workers_cover_the_fractional_need_and_spares_are_added() -> None:
    plain, spared = _plan(modes=["colocated"]), _plan(modes=["colocated"], survive_failures=2)
    for each in plain.candidates:
        assert each.gpus >= each.fractional_gpus - 1e-9
    assert {c.pools[0].worker.shape.tp: c.pools[0].workers + 2 for c in plain.candidates} == {
        c.pools[0].worker.shape.tp: c.pools[0].workers for c in spared.candidates
    }


def test_objectives_are_kept_at_the_peak_with_workers_lost() -> None:
    found = _plan(survive_failures=1, slo={"ttft_s": 0.5, "itl_s": 0.03})
    for each in found.candidates:
        left = tuple(replace(pool, workers=pool.workers - 1) for pool in each.pools)
        worst = evaluate(found.problem, each.mode, left, found.problem.rate_per_s)
        assert worst.ttft.p95_s <= 0.5 * (1 + 1e-6) and worst.itl.p95_s <= 0.03 * (1 + 1e-6)


def test_latency_objective_and_pareto_front() -> None:
    by_cost, by_time = _plan(), _plan(objective="latency")
    assert by_time.best.e2e.p95_s <= by_cost.best.e2e.p95_s
    front = by_cost.pareto
    assert [c.cost.usd_month for c in front] == sorted(c.cost.usd_month for c in front)
    assert [c.e2e.p95_s for c in front] == sorted((c.e2e.p95_s for c in front), reverse=True)


def test_extras_are_on_the_bill() -> None:
    extra = [{"name": "verifier", "usd_per_month": 100, "usd_per_query": 0.001}]
    plain, dear = _plan(), _plan(extras=extra)
    queries = 10 * 730.5 * 3600
    assert dear.best.cost.usd_month - plain.best.cost.usd_month == pytest.approx(100 + 0.001 * queries)
    assert dear.best.cost.usd_per_query == pytest.approx(dear.best.cost.usd_month / queries)


SLOW_LINK: dict[str, Any] = {
    "hardware": {"link": "tcp"},
    "modes": ["disaggregated"],
    "workload": workload(rate_per_s=2000.0, answer_tokens=10, reasoning_tokens=0),
}


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"slo": {"itl_s": 0.001}}, "itl"),
        ({"slo": {"ttft_s": 0.01}}, "ttft"),
        ({"slo": {"e2e_s": 5.0}}, "e2e"),
        ({"hardware": {"max_gpus": 2}}, "max_gpus"),
        ({"model": {"name": "Llama-3.1-405B"}, "hardware": {"gpus": ["L40S"]}}, "memory"),
        ({"hardware": {"tensor_parallel": [3]}}, "tensor_parallel"),
        (SLOW_LINK, "link"),
    ],
)  # fmt: skip
def test_the_binding_limit_is_named(change: dict[str, Any], limit: str) -> None:
    with pytest.raises(PlacementInfeasible) as raised:
        plan_for(problem(**change))
    assert raised.value.ids["limit"] == limit


def test_tags_say_where_figures_come_from() -> None:
    def tag(**changes: Any) -> str:
        return plan_for(problem(**changes)).best.trust.tag.value

    assert tag(hardware={"gpus": ["H100-SXM"]}) == "calibrated"
    assert tag(hardware={"gpus": ["A100-SXM-80"]}, model={"name": "Qwen3-32B"}) == "analytic"
    assert tag(engine={"scales": {"memory": 1.1, "source": "6 points"}}) == "measured"
    assert tag(workload=workload(reasoning_tokens={"mean": 12000, "cv": 1})) == "extrapolated"


def test_two_kinds_are_joined_only_where_asked() -> None:
    both = plan_for(problem())
    assert both.best_of(Mode.MIXED_GPUS) is not None
    assert plan_for(problem(modes=["disaggregated"])).best_of(Mode.MIXED_GPUS) is None


def test_a_plan_takes_under_a_second() -> None:
    asked = problem(hardware={"gpus": ["H100-SXM", "H200-SXM", "L40S"]})
    best = min(_timed(lambda: plan_for(asked)) for _ in range(3))
    assert best < 1.0


def _timed(run: Any) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started
