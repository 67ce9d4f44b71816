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
from collections.abc import Callable
from pathlib import Path

import psutil

from cluster.errors import ConfigError, ServingError
from cluster.placement import worker_plans
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import ClusterSpec
from orchestrator.controller.controller import Controller
from orchestrator.controller.worker_launch import Progress
from orchestrator.local.gateway_group import GatewayGroup
from orchestrator.local.state_file import ClusterState, ProcessMark, cluster_folder, read_state

log = logging.getLogger("baton.up")

STOP_TIMEOUT_S = 45.0


async def run(
    spec: ClusterSpec,
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
    plans = worker_plans(spec)
    resources = {pool.node_resource: 1.0 for _, pool in spec.pools.items() if pool.node_resource}
    min_cpus = sum(plan.total.get("CPU", 0.0) for plan in plans)
    if spec.autoscaling.enabled:
        min_cpus += sum((pool.most_replicas - pool.replicas) * pool.cpus_per_worker for _, pool in spec.pools.items())
    runtime = RayRuntime(address, local_resources=resources, min_cpus=min_cpus)
    folder = cluster_folder(spec.name)
    controller = Controller(spec, runtime, on_progress=on_progress, log_folder=folder)
    gateways: GatewayGroup | None = None
    try:
        on_progress("ray", "joining" if address else "starting", address or "on this machine")
        await asyncio.to_thread(runtime.start)
        state.ray_folder = str(runtime.session_folder or "")
        state.node_address = runtime.own_address
        state.processes = _marks(runtime.pids)
        state.save()
        on_progress("ray", "ready", "")
        registry = await controller.serve_registry(spec.gateway.host if address else "127.0.0.1")
        state.registry = registry
        gateways = GatewayGroup(spec.gateway, spec_path, registry, folder, on_progress)
        await gateways.start()
        await _until(stop, controller.start())
        await _until(stop, gateways.ready())
        state.gateways = gateways.ports
        state.phase = "ready"

        def note_processes() -> None:
            assert gateways is not None
            state.processes = _marks([*gateways.pids, *_descendants([*runtime.pids, *controller.worker_pids])])
            state.save()

        note_processes()
        on_progress("gateway", "ready", f"gRPC {state.callers_grpc_address}, HTTP {state.callers_http_url}")
        on_ready(state)
        await _until(stop, gateways.watch(note_processes))
    except _Stopped:
        pass
    except BaseExceptionGroup as group:
        raise _first(group) from group
    finally:
        state.phase = "stopping"
        state.save()
        on_progress("cluster", "stopping", "")
        pids = _descendants([*runtime.pids, *controller.worker_pids])
        if gateways is not None:
            await gateways.stop()
        await controller.stop()
        await asyncio.to_thread(runtime.stop)
        # Ray's agents and a killed engine core may outlive their parents by some seconds.
        _end_processes(_marks(pids), grace_s=3)
        _remove_openmp_segments(pids)
        state.remove()
        on_progress("cluster", "stopped", "")


class _Stopped(Exception):
    """A signal came while starting."""


async def _until(stop: asyncio.Event, work):  # type: ignore[no-untyped-def]
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
    return task.result()


def _first(group: BaseExceptionGroup) -> BaseException:
    """The most telling error of a group."""
    errors = [error for error in _leaves(group) if not isinstance(error, asyncio.CancelledError)]
    return next((error for error in errors if isinstance(error, ServingError)), errors[0] if errors else group)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


# --- the end ----------------------------------------------------------------------------------------------------


def _marks(pids: list[int]) -> list[ProcessMark]:
    return [mark for pid in dict.fromkeys(pids) if (mark := ProcessMark.of(pid))]


def _descendants(pids: list[int]) -> list[int]:
    """The processes and all their children: an engine core is a child of its worker."""
    found: list[int] = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found += [pid, *(child.pid for child in process.children(recursive=True))]
    return found


def _end_processes(marks: list[ProcessMark], *, grace_s: float) -> None:
    """End exactly these processes: asked first, then forced."""
    alive = [process for mark in marks if (process := mark.process())]
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, rest = psutil.wait_procs(alive, timeout=grace_s)
    for process in rest:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(rest, timeout=grace_s)


def _remove_openmp_segments(pids: list[int]) -> None:
    """Intel's OpenMP registers each process in shared memory and forgets that when the process is killed."""
    for pid in pids:
        if not psutil.pid_exists(pid):
            for path in Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{pid}_*"):
                path.unlink(missing_ok=True)


def end(state: ClusterState) -> bool:
    """End a cluster from another process; returns whether there was anything to end.

    The controller is asked first and cleans up itself. What is left after that, or after the controller was killed,
    is ended by the process marks in the state file.
    """
    controller = state.controller.process()
    something = controller is not None
    if controller is not None:
        controller.terminate()
        psutil.wait_procs([controller], timeout=STOP_TIMEOUT_S)
    left = [mark for mark in [state.controller, *state.processes] if mark.process()]
    if left:
        something = True
        _end_processes(_marks(_descendants([mark.pid for mark in left])), grace_s=5)
    _remove_openmp_segments([mark.pid for mark in state.processes])
    if state.ray_folder:
        shutil.rmtree(state.ray_folder, ignore_errors=True)
    state.remove()
    return something
