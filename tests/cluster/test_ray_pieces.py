"""What the Ray runtime does around Ray, with Ray played by the test."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from cluster import ray_runtime
from cluster.engine.nixl_progress import PROGRESS_DELAY_ENV
from cluster.errors import EngineFailed, PlacementInfeasible, WorkerDied
from cluster.placement import WorkerPlan
from cluster.ray_runtime import RayRuntime, WorkerHandle, engine_env, kill_processes
from cluster.spec.config import Role
from cluster.topology import NodeView

NODE = NodeView("n", "10.0.0.1", {})


class Group:
    """A placement group. It is placed from the ``placed_at``-th wait on."""

    def __init__(self, placed_at: int | None = 1, *, on_wait: Any = lambda: None) -> None:
        self.waited: list[float] = []
        self._placed_at = placed_at
        self._on_wait = on_wait

    def wait(self, timeout_s: float) -> bool:
        self.waited.append(timeout_s)
        self._on_wait()
        return self._placed_at is not None and len(self.waited) >= self._placed_at


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Ray's functions as far as a worker's placement and end use them."""
    state = SimpleNamespace(
        group=Group(), removed=[], killed=[], options={}, made=[], node=NODE, strategies=[], bundles={0: "n"}
    )

    def placement_group(bundles: Any, **named: Any) -> Group:
        state.strategies.append((bundles, named))
        return state.group  # type: ignore[no-any-return]

    def remote(actor_class: type) -> Any:
        def options(**named: Any) -> Any:
            state.options = named
            return SimpleNamespace(remote=lambda *arguments: state.made.append(arguments) or actor_class(*arguments))

        return SimpleNamespace(options=options)

    monkeypatch.setattr(ray_runtime, "placement_group", placement_group)
    monkeypatch.setattr(ray_runtime, "remove_placement_group", state.removed.append)
    monkeypatch.setattr(ray_runtime, "placement_group_table", lambda _: {"bundles_to_node_id": state.bundles})
    monkeypatch.setattr(ray_runtime, "PlacementGroupSchedulingStrategy", lambda **named: named)
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "kill", state.killed.append)
    monkeypatch.setattr(RayRuntime, "nodes", lambda _: [state.node])
    return state


class Actor:
    def __init__(self, host: str) -> None:
        self.host = host


def create(runtime: RayRuntime, plan: WorkerPlan | None = None, **more: Any) -> WorkerHandle:
    plan = plan or WorkerPlan("decode-0", Role.DECODE, ({"CPU": 2.0},), "STRICT_PACK")
    return runtime.create(plan, Actor, lambda host: (host,), env={"A": "1"}, **more)


@pytest.mark.parametrize(("address", "host"), [(None, "127.0.0.1"), ("10.0.0.9:6379", "10.0.0.1")])
def test_a_worker_listens_on_loopback_where_the_cluster_is_this_machine(
    fake: SimpleNamespace, address: str | None, host: str
) -> None:
    handle = create(RayRuntime(address), node_id="n")
    assert handle.actor.host == host
    assert (handle.node, handle.hosts) == (NODE, ("10.0.0.1",))
    assert fake.options["runtime_env"] == {"env_vars": {"A": "1"}}
    assert fake.options["max_restarts"] == 0  # the controller replaces workers
    assert fake.strategies[0][1]["_soft_target_node_id"] == "n"


def test_a_worker_over_several_nodes_takes_its_gpus_by_the_group(fake: SimpleNamespace) -> None:
    plan = WorkerPlan("decode-0", Role.DECODE, ({"CPU": 2.0, "GPU": 1.0}, {"GPU": 1.0}), "PACK")
    create(RayRuntime(), plan, node_id="n")
    assert fake.options["num_gpus"] == 0  # vLLM's Ray executor takes them, bundle by bundle
    assert fake.strategies[0][1]["_soft_target_node_id"] is None
    single = WorkerPlan("decode-1", Role.DECODE, ({"CPU": 2.0, "GPU": 2.0},), "STRICT_PACK")
    create(RayRuntime(), single)
    assert fake.options["num_gpus"] == 2.0


def test_a_group_that_no_node_takes_is_given_back_and_says_what_it_wanted(fake: SimpleNamespace) -> None:
    fake.group = Group(placed_at=None)
    with pytest.raises(PlacementInfeasible, match=r"no node gave 2 CPU within 7 s; add nodes or lower"):
        create(RayRuntime(placement_timeout_s=7.0))
    assert fake.removed == [fake.group]
    assert not fake.made


def test_a_wait_that_is_not_wanted_any_more_ends(fake: SimpleNamespace) -> None:
    cancelled = threading.Event()
    fake.group = Group(placed_at=None, on_wait=cancelled.set)
    with pytest.raises(PlacementInfeasible, match="not wanted any more"):
        create(RayRuntime(placement_timeout_s=3600.0), cancelled=cancelled)
    assert fake.removed == [fake.group]
    assert len(fake.group.waited) == 1


def test_a_wait_that_may_be_given_up_goes_in_pieces(fake: SimpleNamespace) -> None:
    fake.group = Group(placed_at=3)
    create(RayRuntime(placement_timeout_s=3600.0), cancelled=threading.Event())
    assert fake.group.waited == [ray_runtime.CANCEL_POLL_S] * 3


def test_a_node_that_went_while_its_group_was_placed_is_an_error_of_placement(fake: SimpleNamespace) -> None:
    fake.bundles = {0: "gone"}
    with pytest.raises(PlacementInfeasible, match="try again"):
        create(RayRuntime())


async def test_errors_of_a_call_say_whether_the_worker_is_gone() -> None:
    class Call:
        def __init__(self, error: Exception) -> None:
            self._error = error

        async def remote(self, *_: Any) -> None:
            raise self._error

    def handle(error: Exception) -> WorkerHandle:
        return WorkerHandle("decode-0", SimpleNamespace(start=Call(error)), None, NODE, ())

    runtime = RayRuntime()
    ours = EngineFailed("no weights")
    task_error = ray.exceptions.RayTaskError("start", "traceback", ours)
    with pytest.raises(EngineFailed, match="no weights"):
        await runtime.call(handle(task_error), "start")
    with pytest.raises(WorkerDied, match="process is gone"):
        await runtime.call(handle(ray.exceptions.RayActorError()), "start")
    with pytest.raises(TimeoutError, match="cannot be reached"):
        await runtime.call(handle(ray.exceptions.ActorUnavailableError("later", b"0" * 16)), "start")


def test_a_worker_is_ended_with_its_processes_and_its_group_whatever_happens(
    fake: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Sequence[tuple[int, float]]] = []
    monkeypatch.setattr(ray_runtime, "kill_processes", killed.append)
    runtime = RayRuntime()
    first = create(runtime)
    second = create(runtime)  # its successor of the same name
    runtime.remove(first, [(1, 2.0)])
    assert (fake.killed, killed) == ([first.actor], [[(1, 2.0)]])

    def broken(_: Any) -> None:
        raise RuntimeError("Ray is gone")

    monkeypatch.setattr(ray, "kill", broken)
    with pytest.raises(RuntimeError):
        runtime.remove(second)
    assert len(fake.removed) == 2


def test_only_the_process_that_was_meant_is_killed() -> None:
    """Ids are used again: the start time differs."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        try:
            started_s = psutil.Process(child.pid).create_time()
            kill_processes([(child.pid, started_s + 60)])
            assert child.poll() is None
        finally:
            child.kill()


def test_a_process_that_does_not_end_by_itself_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runtime, "KILL_GRACE_S", 0.0)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        try:
            kill_processes([(child.pid, psutil.Process(child.pid).create_time()), (2**22 + 1, 0.0)])
            assert child.wait(60) == -9
        finally:
            child.kill()


def test_cpu_engines_get_threads_and_a_patient_progress_thread_and_gpu_engines_keep_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_runtime, "_preload", lambda: "/lib/fast.so")
    settings: dict[str, Any] = {"omp_threads": 3, "kv_cache_gib": 2, "ucx_tls": "self,tcp"}
    on_cpu, on_gpu = engine_env(on_cpu=True, **settings), engine_env(on_cpu=False, **settings)
    assert (on_cpu["OMP_NUM_THREADS"], on_cpu["VLLM_CPU_KVCACHE_SPACE"], on_cpu["LD_PRELOAD"]) == (
        "3",
        "2",
        "/lib/fast.so",
    )
    assert int(on_cpu[PROGRESS_DELAY_ENV]) > 0
    assert not {"OMP_NUM_THREADS", "LD_PRELOAD", PROGRESS_DELAY_ENV} & on_gpu.keys()
    assert on_cpu["UCX_TLS"] == on_gpu["UCX_TLS"] == "self,tcp"


def test_only_libraries_that_are_there_are_preloaded() -> None:
    assert all(Path(name).is_file() for name in ray_runtime._preload().split(":") if name)
