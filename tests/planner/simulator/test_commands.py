"""The command line: fit, show, simulate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from cluster.spec.config import Role
from orchestrator.policy.scaling_policy import StartWorker
from planner.simulator import policies, simulate_command, trace_command, traces
from planner.simulator.block import WorkloadBlock
from planner.simulator.scenario import load
from planner.simulator.traces import write_log
from planner.simulator.workload import Workload

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "scenarios"

app = typer.Typer()
app.add_typer(trace_command.trace, name="trace")
app.command("simulate")(simulate_command.simulate)


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.output


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "log.jsonl"
    lengths = np.maximum(1, rng.lognormal(5, 0.5, 500)).astype(int)
    write_log(Workload(np.sort(rng.uniform(0, 60, 500)), lengths, lengths, lengths), path)
    return path


def test_fit_writes_a_block_that_builds(log: Path, tmp_path: Path) -> None:
    code, output = call("trace", "fit", log, "-o", tmp_path / "block.yaml", "--phases", 2)
    assert code == 0, output
    block = yaml.safe_load((tmp_path / "block.yaml").read_text())
    assert 400 < len(WorkloadBlock.model_validate(block["workload"]).build()) < 600


def test_show(log: Path, tmp_path: Path) -> None:
    code, output = call("trace", "show", log, "--png", tmp_path / "log.png")
    assert code == 0 and "500 requests" in output
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")


def test_show_says_what_was_read_and_asks_about_units(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": at, "input_length": 900, "output_length": 9, "hash_ids": [2**64 - 1]} for at in range(200)]
    path.write_text("\n".join(map(json.dumps, rows)))
    code, output = call("trace", "show", path)
    assert code == 2 and "200 requests in 0 s: are these seconds? use --unit s" in output
    code, output = call("trace", "show", path, "--unit", "s")
    assert code == 0 and "mooncake, 200 requests in 3.32 min, 1 a second (times are seconds: 0 to 199 s)" in output
    assert "prefixes   57% of prompt tokens came before, in blocks of 512 tokens" in output
    code, output = call("trace", "show", path, "--unit", "weeks")
    assert code == 2 and "--unit weeks: expected one of auto, s, ms, us, ns" in output
    code, output = call("trace", "show", path, "--format", "parquet")
    assert code == 2 and "format parquet: expected auto or one of azure" in output
    code, output = call("trace", "show", path, "--format", "azure")
    assert code == 2 and "column TIMESTAMP is missing" in output
    code, output = call("trace", "show", path, "--format", "servegen")
    assert code == 2 and "is mooncake, not servegen" in output


def test_lengths_without_times_take_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"input_lens": [50] * 200, "output_lens": [20] * 200}))
    code, output = call("trace", "show", path)
    assert code == 0 and "vllm_bench, 200 requests, no times" in output and "rate/s" not in output
    code, output = call("trace", "fit", path)
    assert code == 2 and "holds lengths and no times: say --rate" in output
    code, output = call("trace", "fit", path, "--rate", "4")
    assert code == 0 and "arrivals are drawn at 4 a second (Poisson)" in output
    scenario = SMALL[: SMALL.index("workload:")] + "workload: {trace: {path: result.json}}\n"
    (tmp_path / "open.yaml").write_text(scenario)
    code, output = call("simulate", "-f", tmp_path / "open.yaml")
    assert code == 2 and "no times: say --rate (`rate_per_s:`) for arrivals" in output
    (tmp_path / "closed.yaml").write_text(scenario + "closed_loop: {clients: 3}\n")
    code, output = call("simulate", "-f", tmp_path / "closed.yaml")
    assert code == 0 and "200 of 200 requests finished" in output


def test_simulate_reads_a_trace_once_and_reports_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"session_id": "a", "timestamp": 0, "input_length": 500, "output_length": 20},
        {"session_id": "a", "delay": 2500, "input_length": 600, "output_length": 20},
        {"timestamp": 1000, "input_length": 300, "output_length": 10},
    ]
    (tmp_path / "trace.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scenario = SMALL[: SMALL.index("workload:")] + "workload: {trace: {path: trace.jsonl}}\n"
    (tmp_path / "small.yaml").write_text(scenario)
    opened: list[Path] = []
    load = traces.load

    def counted(path: Path, *arguments: Any, **named: Any) -> Any:
        opened.append(path)
        return load(path, *arguments, **named)

    monkeypatch.setattr(traces, "load", counted)
    code, output = call("simulate", "-f", tmp_path / "small.yaml", "--policy", "static,requests")
    assert code == 0, output
    assert len(opened) == 1
    assert "1 turns come after the answer before them, median pause 2.5 s" in output
    text = scenario.replace("{path: trace.jsonl}", "{path: trace.jsonl, rate_per_s: 3}")
    (tmp_path / "small.yaml").write_text(text)
    code, output = call("simulate", "-f", tmp_path / "small.yaml")
    assert code == 2 and "has times of its own: leave rate_per_s out" in output
    (tmp_path / "small.yaml").write_text(scenario.replace("trace.jsonl}", "trace.jsonl, start_s: 900}"))
    code, output = call("simulate", "-f", tmp_path / "small.yaml")
    assert code == 2 and "no request between start_s and end_s: the last comes at 2 s" in output


def test_simulate(tmp_path: Path) -> None:
    code, output = call("simulate", "-f", EXAMPLES / "closed-loop.yaml", "--csv", tmp_path / "a.csv", "--json")
    assert code == 0, output
    summary = json.loads(output)
    assert summary["finished"] == summary["requests"] > 500
    assert len((tmp_path / "a.csv").read_text().splitlines()) == summary["requests"] + 1


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_load(path: Path) -> None:
    assert load(path).fleet.build().pools


def test_bad_input_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("fleet: {pools: [], colour: red}")
    code, output = call("simulate", "-f", path)
    assert code == 2 and "fleet.colour" in output and output.count("\n") == 1
    assert call("trace", "show", tmp_path / "none.csv")[0] == 2


class OneMore:
    """Starts one decode worker at its first tick."""

    interval_s = 60.0

    def __init__(self) -> None:
        self.done = False

    def decide(self, now_s: float, fleet: object) -> list[StartWorker]:
        actions = [] if self.done else [StartWorker(Role.DECODE)]
        self.done = True
        return actions


SMALL = """
fleet:
  model: Qwen3-32B
  pools:
    - {role: prefill, replicas: 1, gpu: H100-SXM, tensor_parallel: 2}
    - {role: decode, replicas: 1, gpu: H100-SXM, tensor_parallel: 2}
workload:
  phases:
    - duration_s: 120
      arrivals: {rate_per_s: 1}
      isl_tokens: {kind: fixed, tokens: 500}
      answer_tokens: {kind: mean, mean_tokens: 200}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_policies_run_side_by_side(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policies.POLICIES, "one_more", lambda scenario: OneMore())
    path = small
    code, output = call("simulate", "-f", path, "--policy", "static,one_more", "--json", "--png", tmp_path / "a.png")
    assert code == 0, output
    found = json.loads(output)
    assert list(found) == ["static", "one_more"]
    assert found["one_more"]["gpu_hours"] > found["static"]["gpu_hours"]
    assert found["one_more"]["requests"] == found["static"]["requests"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    code, output = call("simulate", "-f", path, "--policy", "static", "--policy", "one_more")
    assert code == 0 and "one_more" in output


def test_a_policy_that_is_not_known_is_refused(small: Path) -> None:
    code, output = call("simulate", "-f", small, "--policy", "statik")
    assert code == 2 and "static" in output
    assert call("simulate", "-f", small, "--policy", "static,static")[0] == 2


def test_every_named_policy_runs_from_a_scenario(small: Path) -> None:
    code, output = call("simulate", "-f", small, "--policy", "static,baton,requests,means,kv", "--json")
    assert code == 0, output
