"""The command line: fit, show, simulate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from cluster.config import Role
from orchestrator.policy.scaling import StartWorker
from orchestrator.simulator import policies, simulate_command, trace_command
from orchestrator.simulator.block import WorkloadBlock
from orchestrator.simulator.scenario import load
from orchestrator.simulator.traces import write_log
from orchestrator.simulator.workload import Workload

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
    """Starts one decode worker at its first look."""

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
