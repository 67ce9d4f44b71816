"""Ray as Baton uses it: nodes, one placement group per worker, actors. Only this file and its `ray_token` import Ray.

Ray is the control plane. No token and no KV passes through it: calls start, check and stop workers, nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.engine.nixl_progress import CPU_PROGRESS_DELAY_US, PROGRESS_DELAY_ENV
from cluster.errors import PlacementInfeasible, ServingError, WorkerDied
from cluster.placement import WorkerPlan
from cluster.ray_token import own_token, token_of
from cluster.topology import NodeView, node_view

log = logging.getLogger("baton.ray")

PLACEMENT_TIMEOUT_S = 60.0
CANCEL_POLL_S = 1.0

HostLabels = Callable[[Sequence[str]], Mapping[str, Mapping[str, str]]]
"""Labels by node address."""


@dataclass(slots=True)
class WorkerHandle:
    """A worker's actor and its placement group."""

    worker_id: str
    actor: Any
    group: Any
    node: NodeView
    hosts: tuple[str, ...]
    """Addresses of all nodes that it takes; `node` is the first."""


class RayRuntime:
    """A Ray cluster, started here or joined.

    Args:
        address: Address of a running cluster; None starts one on this machine that ends with this process.
        local_resources: Custom resources of the machine when one is started.
        min_cpus: Logical CPUs a started cluster must have at least; workers share the real ones.
        placement_timeout_s: Seconds a worker may wait for its node. Long where nodes are started on demand.
        host_labels: Further labels of nodes, from the addresses of those that are alive; a node's own go before them.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        local_resources: Mapping[str, float] | None = None,
        min_cpus: float = 0,
        placement_timeout_s: float = PLACEMENT_TIMEOUT_S,
        host_labels: HostLabels | None = None,
    ) -> None:
        self._address = address
        self._local_resources = dict(local_resources or {})
        self._min_cpus = min_cpus
        self._placement_timeout_s = placement_timeout_s
        self._host_labels = host_labels or (lambda _: {})
        self._folder: Path | None = None
        self._workers: dict[str, WorkerHandle] = {}
        self._token = contextlib.ExitStack()
        """What the environment says of Ray's token, while this runs."""

    def start(self) -> None:
        """Start or join Ray.

        Raises:
            ConfigError: there is no cluster at the address, or the token it asks for is not here.
        """
        # Ray starts workers at niceness 15; engines are the point of the machine (FACTS section 2).
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not self._address:
            # Ray's own metrics and its resource reports every 0.1 s are half of an idle cluster's use of the CPU.
            os.environ.setdefault("RAY_enable_metrics_collection", "0")
            os.environ.setdefault("RAY_raylet_report_resources_period_milliseconds", "1000")
            os.environ.setdefault("RAY_metrics_report_interval_ms", "60000")
        common: dict[str, Any] = {"log_to_driver": False, "namespace": "baton", "logging_level": logging.ERROR}
        if self._address:
            self._token.enter_context(token_of(self._address))
            ray.init(address=self._address, **common)
            return
        # A short path: Unix socket names end at 107 bytes. Removed in `stop`, so that no session stays behind.
        self._folder = Path(tempfile.mkdtemp(prefix="baton-ray-"))
        self._token.enter_context(own_token(self._folder))
        ray.init(
            num_cpus=max(int(self._min_cpus + 0.999), os.cpu_count() or 1),
            resources=self._local_resources,
            include_dashboard=False,
            _temp_dir=str(self._folder),
            object_store_memory=80 << 20,  # the least Ray takes: nothing goes through it
            **common,
        )
        # It ships logs to drivers that want them (log_to_driver); this one does not, and it polls all day.
        node = ray._private.worker._global_node
        node.kill_log_monitor(check_alive=False)
        node.kill_dashboard(check_alive=False)  # without its pages it has nothing to serve

    @property
    def own_address(self) -> str:
        """This node's address, by which other machines reach it."""
        return str(ray.util.get_node_ip_address())

    @property
    def session_folder(self) -> Path | None:
        """Folder of a cluster started here; None for a joined one."""
        return self._folder

    @property
    def pids(self) -> list[int]:
        """Processes of a cluster started here, for a clean-up that must not depend on Ray."""
        node = ray._private.worker._global_node
        if self._address or node is None:
            return []
        return [info.process.pid for infos in node.all_processes.values() for info in infos]

    def nodes(self) -> list[NodeView]:
        """Nodes that are alive, with what is free on them."""
        free = ray._private.state.available_resources_per_node()
        alive = [node for node in ray.nodes() if node["Alive"]]
        known = self._host_labels([node["NodeManagerAddress"] for node in alive])
        return [
            node_view(
                node["NodeID"],
                node["NodeManagerAddress"],
                free.get(node["NodeID"], {}),
                {**known.get(node["NodeManagerAddress"], {}), **(node.get("Labels") or {})},
            )
            for node in alive
        ]

    def create(
        self,
        plan: WorkerPlan,
        actor_class: type,
        arguments: Callable[[str], Sequence[Any]],
        *,
        env: Mapping[str, str],
        node_id: str | None = None,
        cancelled: threading.Event | None = None,
    ) -> WorkerHandle:
        """Reserve the placement group and create the actor in it. Blocks until the group is placed.

        A group that waits is what makes Ray's autoscaler add a node. ``arguments`` makes the actor's arguments from the
        address that it is to listen on; ``cancelled``, once set, ends the wait.

        Raises:
            PlacementInfeasible: the group did not get its resources in time, or is not wanted any more.
        """
        target = node_id if plan.strategy == "STRICT_PACK" else None
        group = placement_group(
            [dict(bundle) for bundle in plan.bundles],
            strategy=plan.strategy,
            name=f"baton-{plan.worker_id}",
            _soft_target_node_id=target,
        )
        timeout_s = self._placement_timeout_s
        if not _placed(group, timeout_s, cancelled):
            remove_placement_group(group)
            if cancelled is not None and cancelled.is_set():
                raise PlacementInfeasible("not wanted any more", worker_id=plan.worker_id)
            wanted = ", ".join(f"{amount:g} {name}" for name, amount in plan.total.items())
            raise PlacementInfeasible(
                f"no node gave {wanted} within {timeout_s:g} s; add nodes or lower the pool's demands",
                worker_id=plan.worker_id,
            )
        nodes = self._nodes_of(group)
        node = nodes[0]
        first = plan.bundles[0]
        options: dict[str, Any] = {
            "num_cpus": first.get("CPU", 0),
            "num_gpus": first.get("GPU", 0) if len(plan.bundles) == 1 else 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            ),
            "runtime_env": {"env_vars": dict(env)},
            "max_concurrency": 64,
            "max_restarts": 0,  # the controller replaces a worker under a new incarnation
        }
        actor = ray.remote(actor_class).options(**options).remote(*arguments(self.host_of(node)))
        handle = WorkerHandle(plan.worker_id, actor, group, node, tuple(view.host for view in nodes))
        self._workers[plan.worker_id] = handle
        return handle

    def host_of(self, node: NodeView) -> str:
        """Address that a worker on the node listens on: loopback where the cluster is this machine alone."""
        return node.host if self._address else "127.0.0.1"

    def _nodes_of(self, group: Any) -> list[NodeView]:
        """The group's nodes, that of its first bundle first."""
        bundles = placement_group_table(group)["bundles_to_node_id"]
        views = {view.node_id: view for view in self.nodes()}
        node_ids = list(dict.fromkeys(bundles[index] for index in sorted(bundles)))
        if not views.keys() >= set(node_ids):
            raise PlacementInfeasible("a node of the placement group is gone; try again")
        return [views[node_id] for node_id in node_ids]

    async def call(self, handle: WorkerHandle, method: str, *arguments: Any) -> Any:
        """Await a method of the worker.

        Raises:
            WorkerDied: the actor is gone.
            TimeoutError: it cannot be reached at present.
            ServingError: what the method raised.
        """
        try:
            return await getattr(handle.actor, method).remote(*arguments)
        except ray.exceptions.ActorUnavailableError as error:
            raise TimeoutError(f"worker {handle.worker_id} cannot be reached: {error}") from error
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except RayError as error:
            raise WorkerDied(f"the worker's process is gone: {error}", worker_id=handle.worker_id) from error

    @contextlib.contextmanager
    def visitor(self, node: NodeView, actor_class: type, *arguments: Any) -> Iterator[Callable[..., Any]]:
        """A short-lived helper on a node that takes no resources, such as one end of a link probe.

        Yields a blocking call: ``call(method, timeout_s, *arguments)``. It raises what the method raised, and
        `WorkerDied` when the helper's process is gone or did not answer in time. GPUs of the node stay visible to it.
        """
        actor = (
            ray.remote(actor_class)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
                runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
            )
            .remote(*arguments)
        )

        def call(method: str, timeout_s: float, *values: Any) -> Any:
            try:
                return ray.get(getattr(actor, method).remote(*values), timeout=timeout_s)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            except RayError as error:
                raise WorkerDied(f"the helper on node {node.host} is gone or silent: {error}") from error

        try:
            yield call
        finally:
            ray.kill(actor)

    def remove(self, handle: WorkerHandle, processes: Sequence[ProcessId] = ()) -> None:
        """End the actor and give its resources back.

        ``processes`` are its own on its node; those that live on are killed there. A stopped process hears no one, and
        an engine core whose actor was killed may hold its memory for ever.
        """
        if self._workers.get(handle.worker_id) is handle:
            self._workers.pop(handle.worker_id)
        try:
            ray.kill(handle.actor)
            if processes:
                self._kill(handle.node, processes)
        finally:
            remove_placement_group(handle.group)

    def _kill(self, node: NodeView, processes: Sequence[ProcessId]) -> None:
        if not self._address:
            kill_processes(processes)
            return
        try:
            with self.visitor(node, _Killer) as call:
                call("kill", 30.0, list(processes))
        except ServingError as error:
            log.warning("processes on node %s not ended: %s", node.host, error)  # most likely with their node

    def stop(self) -> None:
        """End all workers; end Ray and remove its session if it was started here."""
        for handle in list(self._workers.values()):
            try:
                self.remove(handle)
            except RayError as error:
                log.warning("worker %s not removed: %s", handle.worker_id, error)
        ray.shutdown()
        self._token.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _placed(group: Any, timeout_s: float, cancelled: threading.Event | None) -> bool:
    """Wait for the group, in pieces where the wait may be given up."""
    if cancelled is None:
        return bool(group.wait(timeout_s))
    deadline_s = time.monotonic() + timeout_s
    while not cancelled.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
        if group.wait(min(CANCEL_POLL_S, left_s)):
            return True
    return False


ProcessId = tuple[int, float]
"""Process id and start time (unix seconds): ids are used again."""
KILL_GRACE_S = 3.0


def kill_processes(processes: Sequence[ProcessId]) -> None:
    """Kill what still lives of these processes of this machine, after a moment in which they may end by themselves."""
    found = []
    for pid, created_s in processes:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if abs(process.create_time() - created_s) < 0.01:
                found.append(process)
    _, alive = psutil.wait_procs(found, timeout=KILL_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()


class _Killer:
    """`kill_processes` on another node."""

    def kill(self, processes: list[ProcessId]) -> None:
        kill_processes(processes)


def engine_env(*, on_cpu: bool, omp_threads: int, kv_cache_gib: int, ucx_tls: str) -> dict[str, str]:
    """Environment of a worker process. Read by vLLM, UCX, OpenMP and the loader, so it is set before the start."""
    env = {
        "UCX_TLS": ucx_tls,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    if on_cpu:
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(omp_threads),
            # Else vLLM overrules the single-process executor on CPU: one more process per engine, which polls
            # shared memory and costs half a core when idle. AsyncLLM keeps its engine core process all the same.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # GPU engines keep NIXL's spinning thread: they have cores to spare, and
            # cuda_ipc gives UCX no event to wait for.
            PROGRESS_DELAY_ENV: str(CPU_PROGRESS_DELAY_US),
        }
        if preload := _preload():
            env["LD_PRELOAD"] = preload
    return env


def _preload() -> str:
    """Faster allocator and OpenMP runtime for CPU engines, where installed (38 to 31 ms a token, FACTS section 2)."""
    candidates = [
        next(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"), None),
        Path(sysconfig.get_paths()["purelib"]).parents[1] / "libiomp5.so",
    ]
    return ":".join(str(path) for path in candidates if path is not None and path.is_file())
