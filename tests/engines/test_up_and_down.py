"""A cluster's whole life: started by one command, ended by Ctrl-C or `baton down`, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.model.model_path import cache_folder
from cluster.spec import config
from interface.client.client import Client
from tests.support.ending import ended
from tests.support.live_cluster import (
    START_TIMEOUT_S,
    marked_processes,
    read_state,
    run_baton,
    shared_memory_segments,
    start_cluster,
)
from tests.support.reference import greedy_reference

pytestmark = [pytest.mark.engine, pytest.mark.ray]

DEMO = Path(config.__file__).with_name("local.yaml")
QUESTIONS = ("Why is the sky blue? Answer in two sentences.", "What is the capital of France?", "What is a KV cache?")
"""The first is what `make demo` asks."""

SPEC = """
name: {name}
model: {{path: {model}, served_name: m, max_model_len_tokens: 1024}}
pools: {{colocated: {{replicas: 1}}}}
gateway: {{grpc_port: 0, http_port: 0, metrics_port: 0}}
"""


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path) -> Iterator[None]:
    with ended(tmp_path):
        yield


def test_the_demo_answers_as_the_model_does_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    segments = shared_memory_segments()
    spec = tmp_path / "spec.yaml"
    demo = yaml.safe_load(DEMO.read_text().replace("${BATON_CACHE}", str(cache_folder())))
    ports_of_any = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    spec.write_text(yaml.safe_dump({**demo, "name": "ctrl-c", "gateway": ports_of_any}))
    process = subprocess.Popen(
        [sys.executable, "-m", "interface.cli.main", "up", "-f", str(spec)],
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
    state = read_state(tmp_path, "ctrl-c")
    model = Path(demo["model"]["path"])
    with Client(state.grpc_address) as client:
        answers = [
            client.complete(messages=[{"role": "user", "content": question}], max_tokens=24, temperature=0)
            for question in QUESTIONS
        ]
    assert all(answer.handoff.bytes for answer in answers), "not handed over"
    assert [list(answer.token_ids) for answer in answers] == greedy_reference(model, QUESTIONS, 24)
    shown = run_baton(tmp_path, "generate", QUESTIONS[0], "--max-tokens", "24", "--temperature", "0")
    assert answers[0].text in shown.stdout, shown.stdout + shown.stderr
    ray_folder = state.ray_folder
    assert Path(ray_folder).is_dir()
    listeners = [
        connection.laddr
        for found in psutil.process_iter()
        if found.pid in {int(text.split()[0]) for text in marked_processes(tmp_path, wait_s=0)}
        for connection in found.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listeners
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=90)
    assert process.returncode == 0, rest
    assert not marked_processes(tmp_path)
    assert not (tmp_path / "clusters" / "ctrl-c" / "state.json").exists()
    assert not Path(ray_folder).exists()
    left = shared_memory_segments() - segments
    assert not {name for name in left if not name.startswith("__KMP")}, left
    # By address, too: another cluster's worker may listen at the same port of another one.
    listening = {c.laddr for c in psutil.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN}
    assert not listening & set(listeners)


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
