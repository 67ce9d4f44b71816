"""What a cluster leaves on disk, read back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from orchestrator.local.state_file import ClusterState, ProcessMark, cluster_folder, read_state, running_state


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_CACHE", str(tmp_path))


def saved(name: str = "here") -> ClusterState:
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    state = ClusterState(
        name,
        "ready",
        mark,
        "spec.yaml",
        gateways=[{"grpc_port": 1, "http_port": 2, "metrics_port": 3}],
        processes=[mark],
    )
    state.save()
    return state


def rewritten(change: dict[str, object], name: str = "here") -> None:
    path = cluster_folder(name) / "state.json"
    tree = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def test_reads_what_it_wrote_and_keeps_it_from_others() -> None:
    state = saved()
    assert read_state("here") == state
    assert (cluster_folder("here") / "state.json").stat().st_mode & 0o077 == 0


def test_a_field_of_a_later_version_is_passed_over() -> None:
    state = saved()
    rewritten({"colour": "red"})
    assert read_state("here") == state


@pytest.mark.parametrize("change", [{"controller": None}, {"controller": {"pid": 1}}, {"phase": None}])
def test_a_form_that_cannot_be_read_says_what_to_do(change: dict[str, object]) -> None:
    saved()
    rewritten(change)
    with pytest.raises(ConfigError, match="another version of Baton"):
        read_state("here")


def test_a_broken_file_is_no_state() -> None:
    saved()
    (cluster_folder("here") / "state.json").write_text("{")
    assert read_state("here") is None


def test_a_process_id_that_was_used_again_is_another_process() -> None:
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    assert mark.process() is not None
    assert ProcessMark(mark.pid, mark.created_s - 1).process() is None


def test_the_one_running_cluster_is_found_by_itself_and_two_must_be_named() -> None:
    with pytest.raises(ConfigError, match="baton up"):
        running_state()
    saved("a")
    assert running_state().name == "a"
    saved("b")
    with pytest.raises(ConfigError, match="a, b"):
        running_state()
    assert running_state("b").name == "b"


@pytest.mark.parametrize(
    ("host", "here", "for_callers"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("10.0.0.7", "10.0.0.7", "10.0.0.7"),
        ("0.0.0.0", "127.0.0.1", "10.0.0.9"),
        ("::", "127.0.0.1", "10.0.0.9"),
        ("::1", "[::1]", "[::1]"),
    ],
)
def test_callers_are_given_an_address_that_they_can_reach(host: str, here: str, for_callers: str) -> None:
    state = saved()
    state.host, state.node_address = host, "10.0.0.9"
    assert (state.grpc_address, state.http_url) == (f"{here}:1", f"http://{here}:2")
    assert (state.callers_grpc_address, state.callers_http_url) == (f"{for_callers}:1", f"http://{for_callers}:2")
