"""How plans are shown: units, tables for any width, what was assumed, and records that JSON takes."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from cluster.errors import ConfigError
from planner.capacity.calibrate_command import _loads
from planner.capacity.check import Checked
from planner.capacity.plan import Latency, Plan
from planner.capacity.planner import plan_for
from planner.capacity.spec import Mode
from planner.capacity.view import (
    WIDE,
    assumptions,
    candidate_record,
    check_record,
    check_table,
    plan_record,
    seconds,
    shown,
    tables,
    triple,
)

from .plans import problem, workload


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_for(problem(hardware={"gpus": ["H100-SXM", "H200-SXM"], "tensor_parallel": [2, 4]}))


def text_of(*drawn: Table) -> str:
    console = Console(file=io.StringIO(), width=300, record=True)
    console.print(*drawn)
    return console.export_text()


# --- units ----------------------------------------------------------------------------------------------------------

UNITS_S = {"ms": 1e-3, "s": 1.0}
times = st.floats(1e-3, 1e5)


@given(times, times)
def test_a_longer_time_is_not_shown_shorter(one_s: float, two_s: float) -> None:
    def read_s(text: str) -> float:
        digits, unit = text.split()
        return float(digits) * UNITS_S[unit]

    low_s, high_s = sorted((one_s, two_s))
    assert read_s(seconds(low_s)) <= read_s(seconds(high_s))
    assert read_s(seconds(low_s)) == pytest.approx(low_s, rel=0.06, abs=6e-4)


@given(times, times, times)
def test_three_quantiles_share_the_unit_of_the_longest(one_s: float, two_s: float, three_s: float) -> None:
    given_s = sorted((one_s, two_s, three_s))
    digits, unit = triple(Latency(*given_s)).split()
    assert unit == ("ms" if given_s[-1] < 1 else "s")
    read_s = [float(each) * UNITS_S[unit] for each in digits.split("/")]
    assert read_s == sorted(read_s)
    for shown_s, own_s in zip(read_s, given_s, strict=True):
        assert shown_s == pytest.approx(own_s, rel=0.01, abs=0.06 if unit == "s" else 6e-4)


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "count"), [(WIDE, 1), (WIDE - 1, 2), (400, 1), (20, 2)])
def test_a_narrow_terminal_has_two_tables_with_the_same_columns(plan: Plan, width: int, count: int) -> None:
    found = tables(plan, width)
    assert len(found) == count
    headers = {str(column.header) for table in found for column in table.columns}
    whole = {str(column.header) for table in tables(plan, 400) for column in table.columns}
    assert headers == whole
    for table in found:
        assert table.row_count == len(shown(plan))


def test_the_best_is_first_and_the_best_of_each_mode_is_there(plan: Plan) -> None:
    rows = shown(plan, most=1)
    assert rows[0] == plan.best
    for mode in plan.problem.spec.modes:
        best = plan.best_of(mode)
        assert best is None or best in rows
    assert len(rows) == len(set(map(id, rows)))


def test_of_a_pareto_plan_only_the_front_is_shown() -> None:
    front = plan_for(problem(objective="pareto", hardware={"gpus": ["H100-SXM"], "tensor_parallel": [2, 4]}))
    rows = shown(front)
    assert rows == front.pareto[:10]
    costs = [each.cost.usd_month for each in rows]
    latencies = [each.e2e.p95_s for each in rows]
    assert sorted(costs) == costs
    assert sorted(latencies, reverse=True) == latencies


# --- what was assumed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "assumed"), [(3000, True), ({"mean": 3000}, True), ({"mean": 3000, "cv": 1}, False)]
)
def test_a_bare_mean_is_named_as_an_assumption(tokens: object, assumed: bool) -> None:
    found = assumptions(plan_for(problem(workload=workload(reasoning_tokens=tokens))))
    assert any("workload.reasoning_tokens is a bare mean" in line for line in found) is assumed


def test_prices_say_where_they_come_from(plan: Plan) -> None:
    own = {"gpus": ["H100-SXM"], "tensor_parallel": [2], "overrides": {"H100-SXM": {"price_usd_h": 1.5}}}
    (line,) = assumptions(plan_for(problem(hardware=own)))
    assert line == "H100-SXM at $1.50 an hour (the plan)"
    assert all(" of 20" in each for each in assumptions(plan))


# --- records --------------------------------------------------------------------------------------------------------


def test_a_record_survives_json_and_its_parts_add_up(plan: Plan) -> None:
    record = json.loads(json.dumps(plan_record(plan)))
    assert record["chosen"] == json.loads(json.dumps(candidate_record(plan.best)))
    for each in record["candidates"]:
        sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
        gpus = 0
        for pool in each["pools"]:
            per_worker = 1
            for size in sizes:
                per_worker *= pool[size]
            gpus += per_worker * pool["workers"]
        assert gpus == each["gpus"]
        assert each["gpus"] >= each["gpus_fractional"]
        assert each["usd_month"] == pytest.approx(each["gpu_usd_month"] + each["extra_usd_month"], abs=0.02)
    lengths = record["workload"]
    assert lengths["sized_rate_per_s"] >= lengths["peak_rate_per_s"] >= lengths["mean_rate_per_s"]


@pytest.mark.parametrize(
    ("broken", "added", "words"),
    [((), 0, "kept"), (("ttft",), 0, "missed: ttft"), ((), 2, "kept after 2 more workers")],
)
def test_a_finalists_verdict_is_shown(plan: Plan, broken: tuple[str, ...], added: int, words: str) -> None:
    latency = Latency(0.1, 0.2, 0.3)
    checked = Checked(
        candidate=plan.best, ttft=latency, ttfat=latency, itl=latency, e2e=latency, requests=123,
        decode_full=False, broken=broken, added_workers=added,
    )  # fmt: skip
    text = text_of(check_table([checked]))
    assert words in text
    assert "123" in text
    assert "100/200/300 ms" in text
    record = check_record(checked)
    assert json.loads(json.dumps(record))["broken"] == list(broken)
    assert record["ttft"] == {"p50_s": 0.1, "p95_s": 0.2, "p99_s": 0.3}


# --- options --------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.integers(1, 9999)] * 3), min_size=1, max_size=5))
def test_loads_go_round(loads: list[tuple[int, int, int]]) -> None:
    assert _loads(",".join(":".join(map(str, each)) for each in loads)) == loads


@pytest.mark.parametrize("text", ["", "1:2", "1:2:3:4", "a:2:3", "1:2:3,", "1,2,3"])
def test_loads_of_another_form_are_shown(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--loads: .*: expected clients:input:output"):
        _loads(text)


def test_modes_have_names_that_a_file_takes() -> None:
    for mode in Mode:
        assert plan_for(problem(modes=[mode.value])).best.mode is mode
