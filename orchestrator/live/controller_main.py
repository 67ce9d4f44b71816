"""The controller as a process of its own, in the head's pod, where `baton node --head` starts it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from cluster.config import ClusterSpec, load
from cluster.errors import ServingError
from cluster.model_path import cache_folder
from cluster.ray_runtime import RayRuntime
from orchestrator.live.controller import Controller

log = logging.getLogger("baton.controller")


async def serve(spec: ClusterSpec, listen: str, runtime: RayRuntime) -> None:
    """Start the workers of the spec, keep them, and stop them at SIGTERM.

    Raises:
        ServingError: they could not be started.
    """
    stop = asyncio.Event()

    def catch_signals() -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, stop.set)

    def say(subject: str, stage: str, detail: str) -> None:
        log.info("%s: %s %s", subject, stage, detail)

    catch_signals()
    await asyncio.to_thread(runtime.start)
    # Again: Ray's own handler of SIGTERM kills the process after 3 s, before workers and lease are given up (seen).
    catch_signals()
    controller = Controller(spec, runtime, on_progress=say, log_folder=cache_folder() / "logs")
    host, port = listen.rsplit(":", 1)
    try:
        await controller.serve_registry(host, int(port))
        starting = asyncio.create_task(controller.start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopping
        else:
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await starting
    finally:
        await controller.stop()
        await asyncio.to_thread(runtime.stop)


async def serve_alone(spec: ClusterSpec, listen: str, runtime: RayRuntime, *, lease: bool) -> None:
    """As `serve`; with ``lease`` only while this process holds the cluster's Lease, so that one controller acts.

    Raises:
        ServingError: as for `serve`, or the lease went to another.
    """
    if not lease:
        await serve(spec, listen, runtime)
        return
    from cluster.kubernetes_api import in_cluster
    from cluster.kubernetes_lease import Lease

    namespace, cluster = os.environ["POD_NAMESPACE"], os.environ["BATON_RAY_CLUSTER"]
    held = Lease(in_cluster(), namespace, f"{cluster}-controller", holder=os.environ["POD_NAME"])
    await held.acquire()
    keeping = asyncio.create_task(held.keep())
    serving = asyncio.create_task(serve(spec, listen, runtime))
    try:
        done, _ = await asyncio.wait([keeping, serving], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (serving, keeping):
            task.cancel()
        await asyncio.gather(serving, keeping, return_exceptions=True)
        await held.release()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="baton-controller")
    parser.add_argument("--spec", type=Path, required=True, help="cluster spec")
    parser.add_argument("--listen", required=True, help="host:port on which to serve the registry")
    parser.add_argument("--address", required=True, help="host:port of Ray's head")
    parser.add_argument("--placement-timeout-s", type=float, default=1800, help="how long a worker may wait for a node")
    parser.add_argument("--lease", action="store_true", help="act only while holding the cluster's Kubernetes Lease")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("BATON_LOG_LEVEL", "INFO"),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    runtime = RayRuntime(arguments.address, placement_timeout_s=arguments.placement_timeout_s)
    try:
        asyncio.run(serve_alone(load(arguments.spec), arguments.listen, runtime, lease=arguments.lease))
    except* ServingError as group:
        for error in group.exceptions:
            log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
