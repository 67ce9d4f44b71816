"""`baton up` and `baton down`, without a cluster: the plan, progress, and a process that plays one."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import ConfigError, WorkerDied
from cluster.spec.config import ClusterSpec, load
from interface.cli import main as cli
from interface.cli import up_command
from interface.cli.up_command import ProgressBoard, endpoint_of
from orchestrator.local.state_file import ClusterState, ProcessMark, cluster_folder, read_state

SPEC = """
name: here
model: {{path: {model}, served_name: m, max_model_len_tokens: 1024}}
pools: {{{pools}}}
gateway: {{grpc_port: 0, http_port: 0, metrics_port: 0}}
cost: {{usd_per_cpu_hour: 0.04, usd_per_accelerator_hour: 2.5}}
"""
ON_CPU = "prefill: {replicas: 1, cpus_per_worker: 2}, decode: {replicas: 2, cpus_per_worker: 3}"
ON_GPU = "colocated: {replicas: 2, accelerators_per_worker: 4, accelerator_type: H100}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_CACHE", str(tmp_path / "cache"))


def spec_file(folder: Path, pools: str = ON_CPU) -> Path:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    path = folder / "spec.yaml"
    path.write_text(SPEC.format(model=model, pools=pools))
    return path


def baton(*arguments: str) -> None:
    cli.app(list(arguments), standalone_mode=False)


def saved(name: str, mark: ProcessMark, phase: str = "ready", **more: Any) -> ClusterState:
    ports = [{"grpc_port": 1, "http_port": 2, "metrics_port": 3}]
    state = ClusterState(name, phase, mark, "spec.yaml", gateways=ports, **more)
    state.save()
    return state


def mine() -> ProcessMark:
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    return mark


GONE = ProcessMark(2**22 + 1, 0.0)  # above the highest id that Linux gives


# --- the plan -------------------------------------------------------------------------------------------------------


def test_the_plan_counts_cpus_and_what_they_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baton("up", "-f", str(spec_file(tmp_path)), "--dry-run", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert plan["cluster"] == "here"
    assert [row["worker"] for row in plan["workers"]] == ["prefill-0", "decode-0", "decode-1"]
    assert plan["total"] == {"GPU": 0, "CPU": 8}
    assert plan["usd_per_hour"] == pytest.approx(8 * 0.04)


def test_with_accelerators_their_price_counts_and_their_cpus_are_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baton("up", "-f", str(spec_file(tmp_path, ON_GPU)), "--dry-run", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert plan["total"]["GPU"] == 8
    assert plan["usd_per_hour"] == pytest.approx(8 * 2.5)
    assert {row["accelerator_type"] for row in plan["workers"]} == {"H100"}


def test_the_plan_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baton("up", "-f", str(spec_file(tmp_path, ON_GPU)), "--dry-run")
    out = capsys.readouterr().out
    assert "colocated-1" in out
    assert "4 × H100" in out
    assert "2 workers, 8 accelerators" in out
    assert "about $20.00 an hour" in out


def test_a_plan_needs_no_model_and_starts_nothing(tmp_path: Path) -> None:
    path = spec_file(tmp_path)
    (tmp_path / "model" / "config.json").unlink()
    baton("up", "-f", str(path), "--dry-run")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ConfigError, match="model"):
        baton("up", "-f", str(path))


# --- progress -------------------------------------------------------------------------------------------------------


def test_on_a_pipe_there_is_a_line_for_each_change() -> None:
    out = io.StringIO()
    with ProgressBoard(Console(file=out, width=100)) as board:
        board.say("decode-0", "starting", "[red]not markup[/red]")
        board.say("decode-0", "ready", "")
    first, second = out.getvalue().splitlines()
    assert first.endswith("s] decode-0: starting [red]not markup[/red]")
    assert second.endswith("s] decode-0: ready")


def test_the_board_has_a_row_for_each_subject_with_its_last_stage() -> None:
    console = Console(file=io.StringIO(), width=100)
    board = ProgressBoard(console)
    for subject, stage in (("prefill-0", "starting"), ("decode-0", "loading"), ("prefill-0", "ready")):
        board.say(subject, stage, "")
    board.say("decode-1", "failed", "no memory")
    shown = Console(file=io.StringIO(), width=100, record=True)
    shown.print(board)
    rows = [line.split() for line in shown.export_text().splitlines()]
    assert rows == [
        ["✓", "prefill-0", "ready", "0", "s"],
        ["…", "decode-0", "loading", "0", "s"],
        ["✗", "decode-1", "failed", "0", "s", "no", "memory"],
    ]


# --- up --detach ----------------------------------------------------------------------------------------------------

PLAYER = """#!{python} -SE
import json, os, pathlib, signal, sys
folder = pathlib.Path(os.environ["BATON_CACHE"]) / "clusters" / "here"
progress = pathlib.Path(os.environ["BATON_PROGRESS_FILE"])
(folder / "seen.json").write_text(json.dumps({{
    "arguments": sys.argv[1:],
    "hup": signal.getsignal(signal.SIGHUP) == signal.SIG_IGN,
    "group": os.getpgrp() == os.getpid(),
    "session": os.getsid(0),
    "progress": str(progress),
}}))
def say(*row):
    with progress.open("a") as out:
        print(json.dumps(row), file=out)
def state(phase):
    mark = {{"pid": os.getpid(), "created_s": 0}}
    tree = {{"name": "here", "phase": phase, "controller": mark, "spec_path": "s",
            "gateways": [{{"grpc_port": 7, "http_port": 8, "metrics_port": 9}}]}}
    (folder / "state.part").write_text(json.dumps(tree))
    (folder / "state.part").rename(folder / "state.json")
print("a line for the log")
sys.stdout.flush()
{play}
"""


@pytest.fixture
def plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `baton up --detach` start a program that does what the lines say."""

    def play(lines: str) -> None:
        program = tmp_path / "player"
        program.write_text(PLAYER.format(python=sys.executable, play=lines))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(up_command.sys, "executable", str(program))

    return play


def seen() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((cluster_folder("here") / "seen.json").read_text())
    return tree


def test_detached_it_returns_when_the_cluster_is_ready(
    plays: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved("here", GONE)  # of an earlier run, that was killed when ready: not the one that starts
    plays('say("decode-0", "loading", ""); say("decode-0", "ready", ""); state("ready")')
    path = spec_file(tmp_path)
    before = signal.getsignal(signal.SIGHUP)
    baton("up", "-f", str(path), "--detach", "--json", "--address", "10.0.0.1:6379")
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "cluster": "here",
        "grpc": "127.0.0.1:7",
        "http": "http://127.0.0.1:8",
        "metrics_port": 9,
        "pid": json.loads(out)["pid"],
    }
    assert [line.partition("] ")[2] for line in err.splitlines()] == ["decode-0: loading", "decode-0: ready"]
    found = seen()
    assert found["arguments"] == [
        "-m", "interface.cli.main", "up", "-f", str(path.resolve()), "--address", "10.0.0.1:6379"
    ]  # fmt: skip
    assert found["hup"], "the end of the terminal would end the cluster"
    assert found["group"], "Ctrl-C would reach the cluster"
    assert found["session"] == os.getsid(0)
    assert signal.getsignal(signal.SIGHUP) == before
    assert not Path(found["progress"]).exists()
    assert (cluster_folder("here") / "up.log").read_text() == "a line for the log\n"


def test_a_failure_that_the_cluster_reports_is_the_error(plays: Any, tmp_path: Path) -> None:
    plays('say("cluster", "failed", "port 7 is taken"); sys.exit(1)')
    with pytest.raises(WorkerDied, match="port 7 is taken"):
        baton("up", "-f", str(spec_file(tmp_path)), "--detach")
    assert not Path(seen()["progress"]).exists()


def test_a_cluster_that_says_nothing_leaves_its_log(plays: Any, tmp_path: Path) -> None:
    plays("os.abort()")
    with pytest.raises(WorkerDied, match=rf"did not start; see {cluster_folder('here')}/up.log"):
        baton("up", "-f", str(spec_file(tmp_path)), "--detach")


def test_a_cluster_of_this_name_that_runs_is_left_alone(plays: Any, tmp_path: Path) -> None:
    plays("")
    saved("here", mine())
    with pytest.raises(ConfigError, match=rf"here runs already \(process {os.getpid()}\); `baton down`"):
        baton("up", "-f", str(spec_file(tmp_path)), "--detach")
    assert not (cluster_folder("here") / "seen.json").exists()


def test_without_a_file_the_demos_spec_is_kept_for_the_other_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Path] = []

    def detach(spec: ClusterSpec, path: Path, *_: object) -> ClusterState:
        given.append(path)
        return saved(spec.name, mine())

    monkeypatch.setattr(up_command.model_path, "check", lambda path: Path(path))
    monkeypatch.setattr(up_command, "_detach", detach)
    baton("up", "--detach")
    assert given == [cluster_folder("local") / "spec.yaml"]
    assert load(given[0]) == load(None)


# --- down -----------------------------------------------------------------------------------------------------------


def test_where_nothing_runs_there_is_nothing_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    baton("down", "--json")
    assert json.loads(capsys.readouterr().out) == {"cluster": None, "stopped": False}
    baton("down")
    assert "no cluster runs on this machine" in capsys.readouterr().out


def test_several_clusters_must_be_distinguished(tmp_path: Path) -> None:
    saved("b", GONE)
    saved("a", GONE)
    with pytest.raises(ConfigError, match=r"several clusters are here \(a, b\); name one with --name"):
        baton("down")
    baton("down", "--name", "b")
    assert read_state("b") is None
    assert read_state("a") is not None


def test_what_a_killed_cluster_left_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ray_folder = tmp_path / "ray"
    ray_folder.mkdir()
    saved("here", GONE, ray_folder=str(ray_folder))
    baton("down", "--json")
    assert json.loads(capsys.readouterr().out) == {"cluster": "here", "stopped": False}
    assert read_state("here") is None
    assert not ray_folder.exists()


# --- the gateway to call --------------------------------------------------------------------------------------------


def test_an_endpoint_goes_before_the_cluster_here() -> None:
    assert endpoint_of(None, "far:1") == "far:1"
    saved("here", mine())
    assert endpoint_of("here", None) == "127.0.0.1:1"
    assert endpoint_of(None, None) == "127.0.0.1:1"
    with pytest.raises(ConfigError, match="no cluster there runs"):
        endpoint_of("there", None)
