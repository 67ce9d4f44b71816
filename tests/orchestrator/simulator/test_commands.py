"""The command line: fit, show, simulate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from orchestrator.simulator import commands
from orchestrator.simulator.block import WorkloadBlock
from orchestrator.simulator.scenario import load
from orchestrator.simulator.traces import write_log
from orchestrator.simulator.workload import Workload

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "scenarios"

app = typer.Typer()
app.add_typer(commands.trace, name="trace")
app.command("simulate")(commands.simulate)


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
