"""A cluster's whole life: started by one command, ended by Ctrl-C or `baton down`, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.model_path import cache_folder
from tests.support.live_cluster import (
    START_TIMEOUT_S,
    marked_processes,
    read_state,
    run_baton,
    shared_memory_segments,
    start_cluster,
)

pytestmark = [pytest.mark.engine, pytest.mark.ray]

SPEC = """
name: {name}
model: {{path: {model}, served_name: m, max_model_len_tokens: 1024}}
pools: {{colocated: {{replicas: 1}}}}
gateway: {{grpc_port: 0, http_port: 0, metrics_port: 0}}
"""


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """The demo's model, in one colocated worker: it answers, and Ctrl-C ends everything."""
    segments = shared_memory_segments()
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(name="ctrl-c", model=cache_folder() / "models" / "SmolLM2-135M-Instruct"))
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "up", "-f", str(spec)],
        env=os.environ | {"BATON_CACHE": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "is ready" in line:
            break
    else:
        raise AssertionError("".join(lines))
    answer = run_baton(
        tmp_path, "generate", "What is the capital of France?", "--max-tokens", "24", "--temperature", "0"
    )
    assert "Paris" in answer.stdout, answer.stdout + answer.stderr
    ray_folder = read_state(tmp_path, "ctrl-c").ray_folder
    assert Path(ray_folder).is_dir()
    ports = [
        connection.laddr.port
        for found in psutil.process_iter()
        if found.pid in {int(text.split()[0]) for text in marked_processes(tmp_path, wait_s=0)}
        for connection in found.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert ports
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=90)
    assert process.returncode == 0, rest
    assert not marked_processes(tmp_path)
    assert not (tmp_path / "clusters" / "ctrl-c" / "state.json").exists()
    assert not Path(ray_folder).exists()
    left = shared_memory_segments() - segments
    assert not {name for name in left if not name.startswith("__KMP")}, left
    listening = {c.laddr.port for c in psutil.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN}
    assert not listening & set(ports)


def test_down_cleans_up_after_a_killed_up(tmp_path: Path, test_model: Path) -> None:
    live = start_cluster(tmp_path, SPEC.format(name="killed", model=test_model))
    controller = psutil.Process(live.state.controller.pid)
    # Neither the end of the terminal nor Ctrl-C in it reaches a detached cluster, though it is in our session (ADR 15).
    controller.send_signal(signal.SIGHUP)
    assert os.getpgid(controller.pid) != os.getpgid(0)
    marked = [int(text.split()[0]) for text in marked_processes(tmp_path, wait_s=0)]
    assert {os.getsid(pid) for pid in marked} == {os.getsid(0)}
    assert run_baton(tmp_path, "status", "--json").returncode == 0
    controller.kill()
    controller.wait(10)
    result = run_baton(tmp_path, "down", "--json", timeout_s=START_TIMEOUT_S)
    assert result.returncode == 0, result.stderr
    assert not marked_processes(tmp_path)
    assert not Path(live.state.ray_folder).exists()
    again = run_baton(tmp_path, "down")
    assert again.returncode == 0
    assert "no cluster runs" in again.stdout
