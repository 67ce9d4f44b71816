"""What a plan is turned into: cluster spec, Helm values, lock file, explanation, report."""

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cluster.errors import ConfigError
from cluster.spec.config import parse as parse_cluster
from planner.capacity import explain, lock, report
from planner.capacity.emit import cluster_spec, gpus_of, helm_values
from planner.capacity.plan import Plan
from planner.capacity.planner import plan_for
from planner.capacity.spec import Mode
from planner.capacity.view import candidate_record, tables, triple

from .plans import problem, workload

PLAN: Plan = plan_for(
    problem(hardware={"gpus": ["H100-SXM", "H200-SXM"], "tensor_parallel": [2, 4]}, survive_failures=1)
)


@pytest.mark.parametrize("mode", list(Mode))
def test_what_is_emitted_is_what_was_costed(mode: Mode) -> None:
    chosen = PLAN.best_of(mode)
    assert chosen is not None
    spec = parse_cluster(yaml.safe_dump(cluster_spec(PLAN.problem, chosen)))
    assert gpus_of(spec) == chosen.gpus
    usd_month = gpus_of(spec) * spec.cost.usd_per_accelerator_hour * 730.5
    assert usd_month == pytest.approx(chosen.cost.gpu_usd_month, rel=1e-4)
    for role, pool in spec.pools.items():
        sized = next(each for each in chosen.pools if each.role is role)
        assert (pool.replicas, pool.tensor_parallel_size) == (sized.workers, sized.worker.shape.tp)
    values = helm_values(PLAN.problem, chosen)
    for name, pool in values["config"]["pools"].items():
        assert pool.pop("node_resource") == name
    assert values["config"] == cluster_spec(PLAN.problem, chosen)
    groups = [values[key] for key in ("prefillWorkers", "decodeWorkers", "colocatedWorkers") if key in values]
    assert sum(group["replicas"] * group.get("gpusPerWorker", 0) for group in groups) == chosen.gpus


def test_a_lock_reproduces_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.lock.json"
    lock.write(PLAN, path)
    again, differences = lock.reproduce(path)
    assert differences == []
    assert candidate_record(again.best) == candidate_record(PLAN.best)
    lock.write(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()


def test_a_lock_changed_by_hand_is_refused_and_a_changed_answer_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "plan.lock.json"
    tree = lock.lock(PLAN)
    tree["inputs"]["gpus"][0]["price_usd_h"] = 0.01
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="digest"):
        lock.reproduce(path)
    tree = lock.lock(PLAN)
    tree["chosen"]["gpus"] += 1
    path.write_text(json.dumps(tree))
    _, differences = lock.reproduce(path)
    assert len(differences) == 1 and differences[0].startswith("gpus:")
    path.write_text("{}")
    with pytest.raises(ConfigError, match="not a plan lock"):
        lock.reproduce(path)


@pytest.mark.parametrize("mode", list(Mode))
def test_terms_sum_to_what_they_explain(mode: Mode) -> None:
    chosen = PLAN.best_of(mode)
    assert chosen is not None
    assert sum(term.value for term in explain.dollars(chosen, PLAN.problem)) == pytest.approx(chosen.cost.usd_month)
    worker = chosen.pools[-1].worker
    batch = max(1, round(chosen.load.batch_size))
    step_s = worker.cost.step_s(batch, int(batch * worker.context))
    assert sum(term.value for term in explain.decode_step(chosen)) == pytest.approx(step_s)
    assert sum(term.share for term in explain.prefill(chosen, PLAN.problem)) == pytest.approx(1)


def test_dollars_of_a_peaked_plan_show_the_peak() -> None:
    found = plan_for(problem(workload=workload(peak_to_mean=3.0), extras=[{"name": "egress", "usd_per_query": 0.0001}]))
    terms = {term.name: term.value for term in explain.dollars(found.best, found.problem)}
    work = sum(value for name, value in terms.items() if name.endswith("work"))
    assert terms["peak over mean"] == pytest.approx(2 * work)
    assert terms["headroom"] == pytest.approx(0.1 * 3 * work)
    assert terms["egress"] == pytest.approx(0.0001 * 10 * 730.5 * 3600)


def test_the_report_is_one_file_with_its_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.write(PLAN, tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text()
    assert text.count("data:image/png;base64,") == 3
    assert PLAN.headline().replace("&", "&amp;") in text
    assert "http://" not in text and "https://" not in text


@pytest.mark.parametrize(("width", "count"), [(80, 2), (100, 2), (160, 1)])
def test_the_table_is_whole_at_any_width(width: int, count: int) -> None:
    plan = plan_for(problem())
    found = tables(plan, width)
    assert len(found) == count
    out = io.StringIO()
    console = Console(file=out, width=width)
    for each in found:
        console.print(each)
    text = out.getvalue()
    assert "\u2026" not in text, text
    assert f"{plan.best.cost.usd_month:,.0f}" in text and triple(plan.best.ttft) in text
