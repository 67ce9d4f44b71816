"""A cluster run by one process on this machine: Ray, controller and gateway, and their clean end.

`run` is what `baton up` does; `end` is what `baton down` does, and it works when the process of `up` was killed, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import ConfigError, ServingError
from cluster.placement import worker_plans
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import ClusterSpec
from cluster.spec.portfolio import Portfolio
from orchestrator.controller.controller import Controller
from orchestrator.controller.worker_launch import Progress
from orchestrator.local.gateway_group import GatewayGroup
from orchestrator.local.process_end import descendants, end_processes, marks_of, remove_openmp_segments
from orchestrator.local.state_file import ClusterState, ProcessMark, cluster_folder, read_state

log = logging.getLogger("baton.up")

STOP_TIMEOUT_S = 45.0
SPARE_CPUS = 16
"""Logical CPUs for models that are added later; workers of one machine share its real ones anyway."""


async def run(
    portfolio: Portfolio,
    spec_path: Path,
    *,
    address: str | None,
    on_progress: Progress,
    on_ready: Callable[[ClusterState], None],
    starter_fd: int | None = None,
) -> None:
    """Start everything, serve until SIGINT or SIGTERM, and stop everything.

    ``starter_fd`` is readable once the process that waits for the start has ended: then nobody wants a cluster that is
    not ready yet.

    Raises:
        ServingError: it could not start; what had started is stopped.
    """
    state = _claim(portfolio.first, spec_path)
    stop = _stop_event(state, starter_fd)
    cluster = _LocalCluster(portfolio, spec_path, state, address, on_progress)
    try:
        # These two start processes, and are not interrupted: one that nobody knows of would stay.
        await cluster.start_ray()
        await cluster.start_gateways()
        await _until(stop, cluster.serve())
        on_ready(state)
        await _until(stop, cluster.keep_gateways())
    except _Stopped:
        pass
    except BaseExceptionGroup as group:
        raise _first(group) from group
    finally:
        await cluster.stop()


def _claim(spec: ClusterSpec, spec_path: Path) -> ClusterState:
    """Write down that this process runs the cluster; what an earlier one left is ended.

    Raises:
        ConfigError: the cluster runs.
    """
    old = read_state(spec.name)
    if old is not None and old.is_alive():
        raise ConfigError(f"cluster {spec.name} runs already (process {old.controller.pid}); `baton down` ends it")
    if old is not None:
        end(old)
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    state = ClusterState(
        spec.name, "starting", mark, str(spec_path), spec.gateway.host, tls=spec.security.tls is not None
    )
    state.save()
    return state


def _stop_event(state: ClusterState, starter_fd: int | None) -> asyncio.Event:
    """Set at SIGINT and SIGTERM, and once ``starter_fd`` is readable before the cluster is ready."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    if starter_fd is not None:

        def starter_ended() -> None:
            loop.remove_reader(starter_fd)
            if state.phase == "starting":
                log.error("`baton up` was ended before the cluster was ready; it is stopped")
                stop.set()

        loop.add_reader(starter_fd, starter_ended)
    return stop


class _LocalCluster:
    """Owns Ray, controller and gateways of one cluster, and the state file that says what to end.

    Args:
        portfolio: The models, and the cluster.
        spec_path: Its file, for the gateways to read.
        state: Of the file; kept up to date.
        address: Ray cluster to join; None starts one.
        on_progress: Called at each stage.
    """

    def __init__(
        self,
        portfolio: Portfolio,
        spec_path: Path,
        state: ClusterState,
        address: str | None,
        on_progress: Progress,
    ) -> None:
        self._spec = spec = portfolio.first
        self._spec_path = spec_path
        self._state = state
        self._address = address
        self._progress = on_progress
        self._folder = cluster_folder(spec.name)
        specs = portfolio.models.values()
        pools = [pool for each in specs for _, pool in each.pools.items()]
        resources = {pool.node_resource: 1.0 for pool in pools if pool.node_resource}
        self._runtime = RayRuntime(address, local_resources=resources, min_cpus=sum(map(_min_cpus, specs)) + SPARE_CPUS)
        self._controller = Controller(portfolio, self._runtime, on_progress=on_progress, log_folder=self._folder)
        self._gateways: GatewayGroup | None = None

    async def start_ray(self) -> None:
        """Start Ray, or join it."""
        state, runtime = self._state, self._runtime
        self._progress("ray", "joining" if self._address else "starting", self._address or "on this machine")
        await asyncio.to_thread(runtime.start)
        state.ray_folder = str(runtime.session_folder or "")
        state.node_address = runtime.own_address
        state.processes = marks_of(runtime.pids)
        state.save()
        self._progress("ray", "ready", "")

    async def start_gateways(self) -> None:
        """Start the registry, and the gateways that follow it."""
        spec = self._spec
        registry = await self._controller.serve_registry(spec.gateway.host if self._address else "127.0.0.1")
        self._state.registry = registry
        self._gateways = GatewayGroup(spec.gateway, self._spec_path, registry, self._folder, self._progress)
        await self._gateways.start()

    async def serve(self) -> None:
        """Start the workers; return once requests can be served."""
        assert self._gateways is not None
        state = self._state
        await self._controller.start()
        await self._gateways.ready()
        state.gateways = self._gateways.ports
        state.phase = "ready"
        self._note_processes()
        self._progress("gateway", "ready", f"gRPC {state.callers_grpc_address}, HTTP {state.callers_http_url}")

    async def keep_gateways(self) -> None:
        """Start gateways again that die, for ever.

        Raises:
            WorkerDied: one dies again and again.
        """
        assert self._gateways is not None
        await self._gateways.watch(self._note_processes)

    async def stop(self) -> None:
        """Stop everything; what does not end by itself is ended."""
        self._state.phase = "stopping"
        self._state.save()
        self._progress("cluster", "stopping", "")
        pids = self._pids()
        if self._gateways is not None:
            await self._gateways.stop()
        await self._controller.stop()
        await asyncio.to_thread(self._runtime.stop)
        # Ray's agents and a killed engine core may outlive their parents by some seconds.
        end_processes(marks_of(pids), grace_s=3)
        remove_openmp_segments(pids)
        self._state.remove()
        self._progress("cluster", "stopped", "")

    def _pids(self) -> list[int]:
        """Processes of Ray and the workers."""
        return descendants([*self._runtime.pids, *self._controller.worker_pids])

    def _note_processes(self) -> None:
        assert self._gateways is not None
        self._state.processes = marks_of([*self._gateways.pids, *self._pids()])
        self._state.save()


def _min_cpus(spec: ClusterSpec) -> float:
    """Logical CPUs that a model may ask for, those of workers that the autoscaler may start included."""
    cpus = sum(plan.total.get("CPU", 0.0) for plan in worker_plans(spec))
    if spec.autoscaling.enabled:
        cpus += sum((pool.most_replicas - pool.replicas) * pool.cpus_per_worker for _, pool in spec.pools.items())
    return cpus


class _Stopped(Exception):
    """A signal came while starting or serving."""


async def _until(stop: asyncio.Event, work: Awaitable[Any]) -> None:
    """Await ``work`` unless a signal comes first."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
        raise _Stopped
    task.result()


def _first(group: BaseExceptionGroup) -> BaseException:
    """The error of a group that says most."""
    errors = [error for error in _leaves(group) if not isinstance(error, asyncio.CancelledError)]
    return next((error for error in errors if isinstance(error, ServingError)), errors[0] if errors else group)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def end(state: ClusterState) -> bool:
    """End a cluster from another process; returns whether there was anything to end.

    The controller gets a signal first and cleans up itself. What is left after that, or after the controller was
    killed, is ended by the process marks in the state file.
    """
    controller = state.controller.process()
    something = controller is not None
    if controller is not None:
        controller.terminate()
        psutil.wait_procs([controller], timeout=STOP_TIMEOUT_S)
    left = [mark for mark in [state.controller, *state.processes] if mark.process()]
    if left:
        something = True
        end_processes(marks_of(descendants(mark.pid for mark in left)), grace_s=5)
    remove_openmp_segments(mark.pid for mark in state.processes)
    if state.ray_folder:
        shutil.rmtree(state.ray_folder, ignore_errors=True)
    state.remove()
    return something
