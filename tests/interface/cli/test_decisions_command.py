"""`baton decisions`: a log is shown and replayed; a changed line is found; nonsense is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from cluster.errors import ConfigError
from cluster.spec.config import Role
from interface.cli.decisions_command import decisions
from orchestrator.policy.decision_log import entry_line
from orchestrator.policy.demand import Demand
from orchestrator.policy.scaling_decision import DecisionSettings, Memory, WorkerRow, decide


def log(tmp_path: Path) -> Path:
    asked = Demand(5.0, 1e5, (0.0, 80.0), (1e5, 4e5), 0, 0, 0, 1.0, 1.0, 10, 1000, 100, 0, 1e5, 40.0, 1.0)
    rows = [WorkerRow(f"{role}-0", role, "k", "ready", 0, 1, 0) for role in (Role.PREFILL, Role.DECODE)]
    settings, memory = DecisionSettings(), Memory()
    path = tmp_path / "decisions.jsonl"
    path.write_text(entry_line(settings, memory, asked, rows, decide(settings, memory, asked, rows)) + "\n")
    return path


def test_a_log_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decisions(log(tmp_path), every=False, as_json=False)
    said = capsys.readouterr().out
    assert "decode 1 -> 4: KV 0.10 M tokens" in said
    assert "1 decisions, 1 of them changes; 0 came out otherwise" in said


def test_a_changed_line_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log(tmp_path)
    tree = json.loads(path.read_text())
    tree["reason"] = "because"
    path.write_text(json.dumps(tree))
    with pytest.raises(typer.Exit):
        decisions(path, every=False, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"decisions": 1, "changes": 1, "different_lines": [1]}


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.jsonl"
    path.write_text("no\n")
    with pytest.raises(ConfigError, match="line 1 is not a decision"):
        decisions(path, every=False, as_json=False)
    with pytest.raises(ConfigError, match="cannot read"):
        decisions(tmp_path / "missing", every=False, as_json=False)
