"""Parts of the planner alone: least squares, searches, queues, trust, what is emitted, exits of its commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError, PlacementInfeasible
from planner.capacity import lock, plots
from planner.capacity.console import exits
from planner.capacity.emit import accelerator_type, cluster_spec, helm_values
from planner.capacity.explain import decode_step, dollars, prefill
from planner.capacity.least_squares import fit
from planner.capacity.plan import Plan
from planner.capacity.planner import plan_for
from planner.capacity.pools import MOST_WORKERS, size_prefill, smallest
from planner.capacity.queueing import Wait, erlang_c
from planner.capacity.shape import Shape
from planner.capacity.spec import Mode
from planner.capacity.trust import ANALYTIC_EXPERTS_BAND, BANDS, Tag, trust_of
from planner.capacity.whatif import Lever, changed, resize, trace_of
from planner.capacity.worker_model import WorkerModel

from .plans import problem, workload

# Beyond the contexts that the constants were fitted on.
LONG = workload(rate_per_s=1.0, reasoning_tokens={"mean": 20_000, "cv": 0.5})


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_for(problem(hardware={"gpus": ["H100-SXM"], "tensor_parallel": [2]}))


# --- searches -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_smallest_that_fits_is_found_in_few_tries(start: int, least: int) -> None:
    tried: list[int] = []

    def fits(workers: int) -> bool:
        tried.append(workers)
        return workers >= least

    assert smallest(fits, start) == max(start, least)
    assert len(tried) <= 2 * max(1, least.bit_length()) + 2
    assert min(tried) >= start


def test_what_never_fits_is_given_up() -> None:
    assert smallest(lambda workers: False, 1) is None
    assert smallest(lambda workers: workers > MOST_WORKERS * 3, 1) is None


@settings(max_examples=40)
@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(3, 12))
def test_a_line_is_found_exactly(slope: float, offset: float, count: int) -> None:
    x = np.arange(float(count))
    found = fit(lambda p: p[0] * x + p[1] - (slope * x + offset), [0.0, 0.0], [-9.0, -9.0], [9.0, 9.0])
    np.testing.assert_allclose(found, [slope, offset], atol=2e-3)


@settings(max_examples=40)
@given(st.floats(-20, 20), st.floats(-5, 0), st.floats(0, 5))
def test_what_lies_outside_the_bounds_ends_at_the_nearer_one(wanted: float, low: float, high: float) -> None:
    found = fit(lambda p: p - wanted, [0.0], [low], [high], steps=400)
    assert low <= found[0] <= high
    if not low < wanted < high:
        assert found[0] == pytest.approx(min(max(wanted, low), high), abs=1e-6)


def test_a_parameter_that_is_held_stays() -> None:
    found = fit(lambda p: np.array([p[0] + p[1] - 3.0]), [0.0, 1.0], [-9.0, 1.0], [9.0, 1.0])
    assert found[1] == 1.0
    assert found[0] == pytest.approx(2.0, abs=1e-3)


# --- queues ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.floats(0.01, 10))
def test_more_servers_at_the_same_load_wait_less_and_chances_are_chances(
    servers: int, load: float, service_s: float
) -> None:
    one = Wait.before(servers, load * servers / service_s, service_s, 1.0)
    more = Wait.before(servers + 1, load * (servers + 1) / service_s, service_s, 1.0)
    assert 0 <= more.chance <= one.chance <= 1
    assert more.mean_s <= one.mean_s * (1 + 1e-9)


@given(st.integers(1, 40), st.floats(0.0, 1.2), st.floats(0.0, 1.2))
def test_a_higher_load_waits_more_often(servers: int, one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert erlang_c(servers, low * servers) <= erlang_c(servers, high * servers) + 1e-12


@settings(max_examples=40)
@given(st.floats(0.05, 0.95), st.floats(0.5, 0.999), st.lists(st.floats(0.01, 5), min_size=1, max_size=6))
def test_a_quantile_of_wait_and_service_is_no_less_than_of_service(
    load: float, probability: float, service_s: list[float]
) -> None:
    weights = np.full(len(service_s), 1 / len(service_s))
    wait = Wait.before(2, 2 * load, 1.0, 1.0)
    found = wait.quantile_with(probability, service_s, weights)
    alone = Wait(0.0, 0.0).quantile_with(probability, service_s, weights)
    assert found >= alone - 1e-6
    assert alone in [pytest.approx(each, abs=1e-5) for each in service_s]
    assert wait.quantile_with(min(0.9999, probability * 1.0005), service_s, weights) >= found - 1e-6


# --- sizing ---------------------------------------------------------------------------------------------------------


def test_a_prompt_that_alone_takes_too_long_names_the_limit_and_how_far_it_is(plan: Plan) -> None:
    best = plan.best_of(Mode.DISAGGREGATED)
    assert best is not None
    strict = problem(hardware={"gpus": ["H100-SXM"], "tensor_parallel": [2]}, slo={"ttft_s": 0.001})
    pool = best.pools[0].worker
    worker = WorkerModel(strict, pool.gpu, pool.shape)
    with pytest.raises(PlacementInfeasible, match=r"a prompt alone takes .* 0\.001 s asked") as refused:
        size_prefill(worker, 1.0)
    assert refused.value.ids["limit"] == "ttft"


# --- trust ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "tag"),
    [
        ({}, Tag.CALIBRATED),
        ({"engine": {"scales": {"source": "points.json"}}}, Tag.MEASURED),
        ({"hardware": {"gpus": ["A100-SXM-80"], "tensor_parallel": [2]}}, Tag.ANALYTIC),
        ({"workload": LONG}, Tag.EXTRAPOLATED),
        ({"workload": LONG, "engine": {"scales": {"source": "points.json"}}}, Tag.EXTRAPOLATED),
        ({"engine": {"speculative": {"method": "ngram", "tokens": 3, "acceptance": 0.7}}}, Tag.ANALYTIC),
    ],
)
def test_a_figure_is_trusted_as_far_as_it_was_measured(changes: dict[str, Any], tag: Tag) -> None:
    asked = problem(**({"hardware": {"gpus": ["H100-SXM"], "tensor_parallel": [2]}} | changes))
    best = plan_for(asked).best
    assert best.trust.tag is tag
    assert best.trust.band == BANDS[tag]


def test_experts_without_a_fit_have_a_wide_band() -> None:
    hardware = {"gpus": ["A100-SXM-80"], "tensor_parallel": [4]}
    asked = problem(model={"name": "Qwen3-30B-A3B", "precision": "bf16"}, hardware=hardware)
    best = plan_for(asked).best
    assert best.trust.tag is Tag.ANALYTIC
    assert best.trust.band == ANALYTIC_EXPERTS_BAND
    assert trust_of(asked, best.pools, best.load) == best.trust


# --- what is emitted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "label"),
    [("H100-SXM", "H100"), ("H200-SXM", "H200"), ("A100-SXM-80", "A100-80G"), ("MI300X", "AMD-Instinct-MI300X-OAM")],
)
def test_kinds_of_gpu_have_rays_labels(gpu: str, label: str) -> None:
    assert accelerator_type(gpu) == label


@pytest.mark.parametrize(
    ("changes", "where", "expected"),
    [
        ({"slo": {"ttft_s": 2, "itl_s": 0.05, "percentile": 95}}, ("slo",), {"ttft_p95_s": 2, "itl_p95_s": 0.05}),
        ({"slo": {"ttft_s": 2, "percentile": 99}}, ("slo",), {}),  # the cluster's objectives are of the 95th
        ({"model": {"name": "Qwen3-32B", "precision": "bf16"}}, ("model", "quantization"), None),
        ({"model": {"name": "Qwen3-32B", "precision": "fp8"}}, ("model", "quantization"), "fp8"),
        ({"hardware": {"link": "tcp"}}, ("transfer", "transports"), ["tcp"]),
        ({"hardware": {"link": "rdma"}}, ("transfer", "transports"), ["rdma", "tcp"]),
        ({"name": "My_Plan.2"}, ("name",), "my-plan-2"),
        ({"workload": workload(reasoning_tokens=0)}, ("model", "reasoning"), None),
    ],
)
def test_the_cluster_spec_says_what_the_plan_says(
    changes: dict[str, Any], where: tuple[str, ...], expected: object
) -> None:
    hardware = {"gpus": ["H100-SXM"], "tensor_parallel": [2]} | changes.get("hardware", {})
    found = plan_for(problem(**(changes | {"hardware": hardware})))
    value: Any = cluster_spec(found.problem, found.best)
    for key in where:
        value = value.get(key)
    assert value == expected


def test_a_reasoning_budget_covers_all_but_the_longest_traces(plan: Plan) -> None:
    budgets = cluster_spec(plan.problem, plan.best)["model"]["reasoning"]["effort_budgets_tokens"]
    assert budgets["none"] == 0
    assert plan.problem.lengths.reasoning.share_above(budgets["high"]) == pytest.approx(0.01, abs=0.001)


def test_groups_of_the_other_mode_are_switched_off(plan: Plan) -> None:
    together, apart = plan.best_of(Mode.COLOCATED), plan.best_of(Mode.DISAGGREGATED)
    assert together is not None
    assert apart is not None
    values = helm_values(plan.problem, together)
    assert values["prefillWorkers"] == values["decodeWorkers"] == {"replicas": 0}
    assert values["colocatedWorkers"]["replicas"] > 0
    assert "colocatedWorkers" not in helm_values(plan.problem, apart)


def test_a_shape_that_a_cluster_spec_cannot_say_is_refused(plan: Plan) -> None:
    pool = plan.best.pools[-1]
    wide = replace(pool, worker=WorkerModel(plan.problem, pool.worker.gpu, Shape(2, pp=2)))
    candidate = replace(plan.best, pools=(*plan.best.pools[:-1], wide))
    with pytest.raises(ConfigError, match=r"pipeline_parallel and data_parallel of 1"):
        cluster_spec(plan.problem, candidate)


# --- explanations ---------------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(st.floats(1, 4), st.floats(0, 0.5), st.integers(0, 2), st.sampled_from([Mode.COLOCATED, Mode.DISAGGREGATED]))
def test_every_dollar_and_second_is_explained(peak: float, headroom: float, spares: int, mode: Mode) -> None:
    asked = problem(
        hardware={"gpus": ["H100-SXM"], "tensor_parallel": [2]},
        workload=workload(peak_to_mean=peak),
        headroom=headroom,
        survive_failures=spares,
        extras=[{"name": "people", "usd_per_month": 1000.0, "usd_per_query": 0.001}],
    )
    chosen = plan_for(asked).best_of(mode)
    assert chosen is not None
    terms = dollars(chosen, asked)
    assert sum(term.value for term in terms) == pytest.approx(chosen.cost.usd_month, rel=1e-6)
    for each in (terms, decode_step(chosen), prefill(chosen, asked)):
        assert sum(term.share for term in each) == pytest.approx(1.0)
    named = {term.name: term.value for term in terms}
    assert ("spares for failures" in named) == (spares > 0)
    assert named.get("headroom", 0.0) >= 0
    assert named.get("peak over mean", 0.0) >= -1e-6


# --- levers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lever", [Lever.RATE, Lever.PRICE, Lever.TRACE_LENGTH, Lever.SPREAD])
def test_a_factor_of_one_changes_nothing(plan: Plan, lever: Lever) -> None:
    (same,) = resize(plan.problem, lever, [1.0])
    assert same.plan is not None
    assert same.plan.best.cost.usd_month == pytest.approx(plan.best.cost.usd_month)


def test_without_reasoning_the_answer_is_the_trace() -> None:
    plain = problem(workload=workload(reasoning_tokens=0))
    assert trace_of(plain.lengths) is plain.lengths.answer
    longer = changed(plain, Lever.TRACE_LENGTH, 2.0)
    assert longer.lengths.answer.mean == pytest.approx(2 * plain.lengths.answer.mean)
    thinking = problem()
    longer = changed(thinking, Lever.TRACE_LENGTH, 2.0)
    assert longer.lengths.answer.mean == thinking.lengths.answer.mean
    assert longer.lengths.reasoning.mean == pytest.approx(2 * thinking.lengths.reasoning.mean)


# --- locks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: "{", id="no JSON"),
        pytest.param(lambda text: "[]", id="a list"),
        pytest.param(lambda text: json.dumps(json.loads(text) | {"format": 99}), id="another format"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "inputs": {}}), id="no inputs"),
        pytest.param(lambda text: text.replace('"rate_per_s": 10.0', '"rate_per_s": 11.0'), id="changed by hand"),
    ],
)
def test_a_damaged_lock_names_its_file(plan: Plan, tmp_path: Path, damage: Callable[[str], str]) -> None:
    path = tmp_path / "plan.lock.json"
    lock.write(plan, path)
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    with pytest.raises(ConfigError, match=r"plan\.lock\.json"):
        lock.reproduce(path)


def test_a_lock_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        lock.reproduce(tmp_path / "missing")


# --- console and plots ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("plan.slo: [ttft] is odd"), 2, "baton: plan.slo: [ttft] is odd"),
        (PlacementInfeasible("too slow", limit="itl"), 3, "baton: too slow; binding limit: itl"),
        (PlacementInfeasible("too slow"), 3, "binding limit: unknown"),
    ],
)
def test_an_error_is_a_sentence_and_a_code(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, words: str
) -> None:
    with pytest.raises(typer.Exit) as ended, exits():
        raise error
    assert ended.value.exit_code == code
    assert ended.value.__cause__ is error
    assert words in capsys.readouterr().err


def test_a_bug_is_no_bad_input() -> None:
    with pytest.raises(ZeroDivisionError), exits():
        raise ZeroDivisionError


def test_without_matplotlib_the_report_says_what_to_install(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        plots.lengths(plan)
