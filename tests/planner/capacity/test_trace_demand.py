"""A plan's demand out of a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cluster.errors import ConfigError
from planner.capacity.emit import cluster_spec
from planner.capacity.lock import lock, reproduce
from planner.capacity.planner import plan_for
from planner.capacity.resolve import resolve
from planner.capacity.spec import PlanSpec, load
from planner.capacity.view import assumptions

from .plans import tree


def planned(folder: Path, **workload: Any) -> PlanSpec:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(tree(name="llama_plain", workload={"trace": "trace.jsonl", **workload})))
    return load(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trace of four hours at 0.25 requests a second, the second hour twice as busy."""
    rng = np.random.default_rng(0)
    at_s = np.sort(np.concatenate([rng.uniform(0, 14_400, 2880), rng.uniform(3600, 7200, 720)]))
    isl, osl = rng.integers(100, 3000, len(at_s)), rng.integers(10, 400, len(at_s))
    keys = ("timestamp", "input_length", "output_length")
    rows = zip((at_s * 1000).tolist(), isl.tolist(), osl.tolist(), strict=True)
    (tmp_path / "trace.jsonl").write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    return tmp_path


def test_rate_peak_and_lengths_come_from_the_trace(folder: Path) -> None:
    workload = planned(folder).workload
    assert workload.mean_rate_per_s == pytest.approx(0.25, rel=0.01)
    assert workload.peak_to_mean == pytest.approx(1.6, rel=0.06)
    lengths = workload.lengths()
    assert lengths.isl.mean == pytest.approx(1550, rel=0.03) and lengths.osl.mean == pytest.approx(205, rel=0.03)
    assert lengths.isl.quantile(0.95) == pytest.approx(2855, rel=0.03) and lengths.reasoning.mean == 0


def test_what_the_plan_says_goes_before(folder: Path) -> None:
    workload = planned(folder, rate_per_s=7.0, peak_to_mean=3, answer_tokens={"mean": 50, "cv": 0}).workload
    assert (workload.mean_rate_per_s, workload.peak_to_mean) == (7.0, 3)
    assert workload.lengths().answer.mean == 50 and workload.lengths().isl.mean == pytest.approx(1550, rel=0.03)
    assert planned(folder, users={"per_month": 100, "queries_per_user_month": 9}).workload.rate_per_s is None


def test_a_lock_needs_no_trace_and_the_plan_says_what_was_read(folder: Path) -> None:
    plan = plan_for(resolve(planned(folder)))
    assert any("mooncake, 3,600 requests in 4 h" in line for line in assumptions(plan))
    (folder / "plan.lock.json").write_text(json.dumps(lock(plan)))
    (folder / "trace.jsonl").unlink()
    again, differences = reproduce(folder / "plan.lock.json")
    assert differences == [] and again.best.label == plan.best.label
    assert cluster_spec(plan.problem, plan.best)["name"] == "llama-plain"


def test_lengths_without_times_need_a_rate(folder: Path) -> None:
    (folder / "trace.jsonl").write_text(json.dumps({"input_lens": [100] * 9, "output_lens": [20] * 9}))
    with pytest.raises(ConfigError, match=r"holds no span of time: say workload\.rate_per_s or users"):
        planned(folder)
    assert planned(folder, rate_per_s=2).workload.mean_rate_per_s == 2


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        ({"path": "none"}, "cannot read the trace"),
        ({"path": "trace.jsonl", "format": "azure"}, "column TIMESTAMP is missing"),
        ({"path": "trace.jsonl", "colour": 1}, "workload.trace.colour: unknown key"),
        (5, "workload.trace"),
    ],
)
def test_what_is_wrong_with_the_trace_is_one_sentence(folder: Path, trace: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        planned(folder, trace=trace)
    assert "\n" not in str(raised.value)


def test_shared_prefixes_are_reported_and_not_counted_on(folder: Path) -> None:
    rows = [{"timestamp": at * 1000, "input_length": 1024, "output_length": 9, "hash_ids": [1, 2]} for at in range(99)]
    (folder / "trace.jsonl").write_text("\n".join(map(json.dumps, rows)))
    workload = planned(folder).workload
    assert workload.prefix_hit_share == 0 and workload.trace is not None
    assert "prefix_hit_share is not taken from it: a cache without end would find 99%" in workload.trace.summary
