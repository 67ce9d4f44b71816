"""What `baton doctor` makes of the answers of a running cluster's workers."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from baton.internal.v1 import registry_pb2
from cluster.errors import ConfigError
from cluster.spec.config import SecuritySettings, load
from doctor import answers_check, command
from orchestrator.local.state_file import ClusterState, ProcessMark

Row = registry_pb2.CheckAnswersResponse

RIGHT = Row(worker_id="decode-0", right=True, deviation_nat=0.01, against="the reference", prompt="short", duration_s=1)
WRONG = Row(
    worker_id="decode-1", prefill_id="prefill-0", deviation_nat=1.25, against="the reference", prompt="long",
    sentence="its link is not used", duration_s=2,
)  # fmt: skip
SILENT = Row(worker_id="prefill-1", sentence="it did not answer in 10 s")


def test_wrong_and_missing_answers_are_problems_and_right_ones_are_not() -> None:
    assert answers_check.problems([RIGHT, WRONG, SILENT]) == [
        "prefill-0 -> decode-1: off by 1.25 nat from the reference (prompt long); its link is not used",
        "prefill-1: no answer: it did not answer in 10 s",
    ]


def test_the_table_has_a_row_for_each() -> None:
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(answers_check.table([RIGHT, WRONG, SILENT]))
    rows = [
        line for line in console.export_text().splitlines() if ("│" in line and "decode" in line) or "prefill" in line
    ]
    assert ["right" in row for row in rows] == [True, False, False]
    assert "prefill-0 -> decode-1" in rows[1]
    assert "no answer" in rows[2]
    assert "0.0000" not in rows[2]  # no deviation where nothing was compared


def test_json_has_every_field() -> None:
    (row,) = json.loads(json.dumps(answers_check.to_dict([SILENT])))
    assert row["right"] is False
    assert row["deviation_nat"] == 0
    assert row["worker_id"] == "prefill-1"


# --- which cluster is asked -----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    addresses: list[str] = []

    def answers_of(registry: str, security: SecuritySettings | None = None) -> list[Row]:
        addresses.append(registry)
        return [RIGHT]

    monkeypatch.setenv("BATON_CACHE", str(tmp_path))
    monkeypatch.setattr(answers_check, "answers_of", answers_of)
    return addresses


def saved(pid: int, created_s: float) -> None:
    ClusterState("local", "ready", ProcessMark(pid, created_s), "spec.yaml", registry="127.0.0.1:7").save()


def test_where_no_cluster_runs_nobody_is_asked(asked: list[str]) -> None:
    assert command._answers(load(None), None) == ([], ())
    saved(2**22 + 1, 0.0)  # one that was killed: its file is still there
    assert command._answers(load(None), None) == ([], ())
    assert not asked


def test_the_cluster_of_this_machine_is_asked_or_the_one_that_is_named(asked: list[str]) -> None:
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    saved(mark.pid, mark.created_s)
    assert command._answers(load(None), None) == ([RIGHT], ())
    assert command._answers(load(None), "far:9") == ([RIGHT], ())
    assert asked == ["127.0.0.1:7", "far:9"]


def test_a_controller_that_does_not_answer_is_a_note_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(registry: str, security: SecuritySettings | None = None) -> list[Row]:
        raise ConfigError(f"the controller at {registry} did not ask its workers: down")

    monkeypatch.setattr(answers_check, "answers_of", refused)
    rows, notes = command._answers(load(None), "far:9")
    assert rows == []
    assert notes == ("the controller at far:9 did not ask its workers: down",)


def test_nobody_at_the_registrys_address() -> None:
    with pytest.raises(ConfigError, match=r"the controller at 127\.0\.0\.1:1 did not ask its workers"):
        answers_check.answers_of("127.0.0.1:1")
