"""`baton up` in one process, over a Ray, a controller and gateways of the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.errors import ConfigError, EngineFailed, WorkerDied
from cluster.spec.config import ClusterSpec, parse
from cluster.spec.portfolio import Portfolio
from orchestrator.local import local_cluster, process_end
from orchestrator.local.local_cluster import end, run
from orchestrator.local.state_file import ClusterState, ProcessMark, read_state

SPEC = """
name: faked
model: {path: m, served_name: m, max_model_len_tokens: 1024}
pools: {prefill: {replicas: 1, cpus_per_worker: 1, max_replicas: 3}, decode: {replicas: 2, cpus_per_worker: 2}}
"""
PORTS = {"grpc_port": 1, "http_port": 2, "metrics_port": 3}


@dataclass
class Stage:
    """What the parts do, and what was done with them."""

    calls: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    fail: BaseException | None = None
    watched: asyncio.Event = field(default_factory=asyncio.Event)
    death: BaseException | None = None
    min_cpus: float = 0.0
    held: asyncio.Event | None = None
    """The workers start once this is set."""


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    found = Stage()
    monkeypatch.setenv("BATON_CACHE", str(tmp_path))

    class Ray:
        own_address = "10.0.0.1"

        def __init__(self, address: str | None, *, local_resources: dict[str, float], min_cpus: float) -> None:
            found.min_cpus = min_cpus
            self.session_folder = tmp_path / "ray"
            self.pids = found.pids

        def start(self) -> None:
            found.calls.append("ray")
            self.session_folder.mkdir(exist_ok=True)

        def stop(self) -> None:
            found.calls.append("ray ends")

    class Controlled:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.worker_pids: list[int] = []

        async def serve_registry(self, host: str) -> str:
            found.calls.append(f"registry on {host}")
            return f"{host}:7"

        async def start(self) -> None:
            found.calls.append("workers")
            if found.held is not None:
                await found.held.wait()
            if found.fail is not None:
                raise found.fail

        async def stop(self) -> None:
            found.calls.append("workers end")

    class Gateways:
        def __init__(self, settings: Any, spec_path: Path, registry: str, *_: Any) -> None:
            self.pids: list[int] = []
            self.ports = [PORTS]
            found.calls.append(f"gateways follow {registry}")

        async def start(self) -> None:
            pass

        async def ready(self) -> None:
            found.calls.append("gateways ready")

        async def watch(self, on_restart: Callable[[], None]) -> None:
            on_restart()
            found.watched.set()
            if found.death is not None:
                raise found.death
            await asyncio.Event().wait()

        async def stop(self) -> None:
            found.calls.append("gateways end")

    monkeypatch.setattr(local_cluster, "RayRuntime", Ray)
    monkeypatch.setattr(local_cluster, "Controller", Controlled)
    monkeypatch.setattr(local_cluster, "GatewayGroup", Gateways)
    return found


ENDED = ["gateways end", "workers end", "ray ends"]


async def up(spec: ClusterSpec, **more: Any) -> list[ClusterState]:
    """The states that were ready."""
    ready: list[ClusterState] = []
    settings = {"address": None, "on_progress": lambda *_: None, "on_ready": ready.append, **more}
    async with asyncio.timeout(60):
        await run(Portfolio.of(spec), Path("spec.yaml"), **settings)
    return ready


async def test_a_signal_ends_what_was_started_in_order(stage: Stage) -> None:
    seen: list[ClusterState | None] = []

    async def stop() -> None:
        await stage.watched.wait()
        seen.append(read_state("faked"))
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = asyncio.create_task(stop())
    (ready,) = await up(parse(SPEC))
    await stopper
    assert stage.calls == [
        "ray", "registry on 127.0.0.1", "gateways follow 127.0.0.1:7", "workers", "gateways ready", *ENDED
    ]  # fmt: skip
    (written,) = seen
    assert written is not None
    assert (written.phase, written.gateways, written.registry) == ("ready", [PORTS], "127.0.0.1:7")
    assert (written.node_address, written.controller.pid) == ("10.0.0.1", os.getpid())
    assert ready.phase == "stopping"
    assert read_state("faked") is None


async def test_a_joined_ray_has_the_registry_where_other_machines_reach_it(stage: Stage) -> None:
    stage.fail = EngineFailed("no memory")
    spec = parse(SPEC + "gateway: {host: 0.0.0.0}\n")
    with pytest.raises(EngineFailed):
        await up(spec, address="10.0.0.9:6379")
    assert "registry on 0.0.0.0" in stage.calls


async def test_the_error_that_says_most_is_raised_and_everything_ends(stage: Stage) -> None:
    failed = EngineFailed("no memory")
    stage.fail = BaseExceptionGroup("", [asyncio.CancelledError(), ExceptionGroup("", [ValueError("x"), failed])])
    with pytest.raises(EngineFailed, match="no memory"):
        await up(parse(SPEC))
    assert stage.calls[-3:] == ENDED
    assert read_state("faked") is None


async def test_a_gateway_that_dies_again_and_again_ends_the_cluster(stage: Stage) -> None:
    stage.death = WorkerDied("gateway-0 ended again and again")
    with pytest.raises(WorkerDied):
        await up(parse(SPEC))
    assert stage.calls[-3:] == ENDED


async def test_a_start_that_nobody_waits_for_any_more_is_stopped(stage: Stage) -> None:
    stage.held = asyncio.Event()
    read, write = os.pipe()
    asyncio.get_running_loop().call_later(0.01, os.close, write)
    try:
        assert await up(parse(SPEC), starter_fd=read) == []
    finally:
        os.close(read)
    assert stage.calls[-3:] == ENDED
    assert "gateways ready" not in stage.calls


async def test_a_started_ray_has_cpus_for_what_the_autoscaler_may_add(stage: Stage) -> None:
    stage.fail = EngineFailed("no memory")
    for more, cpus in (("", 5.0), ("autoscaling: {enabled: true}\n", 7.0)):
        with pytest.raises(EngineFailed):
            await up(parse(SPEC + more))
        assert stage.min_cpus == cpus + local_cluster.SPARE_CPUS


# --- end of processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ignores SIGTERM, and has a child."""
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = psutil.Process(process.pid).children()
        try:
            yield process
        finally:
            for child in children:
                if child.is_running():
                    child.kill()
            process.kill()


def over(mark: ProcessMark) -> bool:
    """Whether the process has ended, or ends within some seconds; reaping it is not this test's task."""
    process = mark.process()
    if process is None:
        return True
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(20)
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_what_ignores_a_signal_is_killed_with_its_children(sleeper: subprocess.Popen[bytes]) -> None:
    pids = process_end.descendants([sleeper.pid, 1 << 22])
    assert len(pids) == 2
    marks = process_end.marks_of([*pids, *pids])
    assert [mark.pid for mark in marks] == pids
    process_end.end_processes(marks, grace_s=0.1)
    assert all(over(mark) for mark in marks)


def test_a_later_process_of_the_same_id_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    process_end.end_processes([ProcessMark(sleeper.pid, 1.0)], grace_s=0.1)
    assert sleeper.poll() is None


def test_down_ends_what_a_killed_up_left_behind(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BATON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(process_end, "SHARED_MEMORY", tmp_path)
    ray_folder = tmp_path / "ray"
    ray_folder.mkdir()
    gone = 1 << 22  # above every process id
    segments = [tmp_path / f"__KMP_REGISTERED_LIB_{pid}_0" for pid in (gone, os.getpid())]
    for segment in segments:
        segment.touch()
    mark = ProcessMark.of(sleeper.pid)
    assert mark is not None
    marks = [mark, ProcessMark(gone, 1.0), ProcessMark(os.getpid(), 1.0)]
    state = ClusterState("faked", "ready", ProcessMark(gone, 1.0), "spec.yaml", processes=marks)
    state.ray_folder = str(ray_folder)
    state.save()
    assert end(state)
    assert over(mark)
    assert not ray_folder.exists()
    assert [segment.exists() for segment in segments] == [False, True]
    assert read_state("faked") is None
    assert not end(state)


async def test_a_cluster_that_runs_is_not_started_again(stage: Stage, sleeper: subprocess.Popen[bytes]) -> None:
    mark = ProcessMark.of(sleeper.pid)
    assert mark is not None
    ClusterState("faked", "ready", mark, "spec.yaml").save()
    with pytest.raises(ConfigError, match="runs already"):
        await up(parse(SPEC))
    assert stage.calls == []
