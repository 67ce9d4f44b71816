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

from cluster.errors import ConfigError, ServingError
from cluster.model.model_path import cache_folder
from cluster.ray_runtime import HostLabels, RayRuntime
from cluster.spec.portfolio import Portfolio, load
from orchestrator.controller.controller import Controller
from orchestrator.controller.worker_drain import GiveBack

log = logging.getLogger("baton.controller")


async def serve(portfolio: Portfolio, listen: str, runtime: RayRuntime, give_back: GiveBack | None = None) -> None:
    """Start the workers of all models, keep them, and stop them at SIGTERM. ``give_back``: see `Controller`.

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
    controller = Controller(
        portfolio, runtime, on_progress=say, log_folder=cache_folder() / "logs", give_back=give_back
    )
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


async def serve_alone(
    portfolio: Portfolio, listen: str, runtime: RayRuntime, *, lease: bool, give_back: GiveBack | None = None
) -> None:
    """As `serve`; with ``lease`` only while this process holds the cluster's Lease, so that one controller acts.

    Raises:
        ServingError: as for `serve`, or the lease went to another.
    """
    if not lease:
        await serve(portfolio, listen, runtime, give_back)
        return
    from cluster.kubernetes.api import in_cluster
    from cluster.kubernetes.lease import Lease

    namespace, cluster = own_cluster()
    held = Lease(in_cluster(), namespace, f"{cluster}-controller", holder=os.environ["POD_NAME"])
    await held.acquire()
    keeping = asyncio.create_task(held.keep())
    serving = asyncio.create_task(serve(portfolio, listen, runtime, give_back))
    try:
        done, _ = await asyncio.wait([keeping, serving], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (serving, keeping):
            task.cancel()
        await asyncio.gather(serving, keeping, return_exceptions=True)
        await held.release()


def own_cluster() -> tuple[str, str]:
    """Namespace and name of the RayCluster that this pod belongs to, as the chart says them.

    Raises:
        ConfigError: this is no pod of the chart.
    """
    try:
        return os.environ["POD_NAMESPACE"], os.environ["BATON_RAY_CLUSTER"]
    except KeyError as error:
        raise ConfigError(
            f"{error} is not set; --lease, --node-labels and --remove-drained-pods are for pods"
        ) from None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="baton-controller")
    parser.add_argument("--spec", type=Path, required=True, help="cluster spec")
    parser.add_argument("--listen", required=True, help="host:port on which to serve the registry")
    parser.add_argument("--address", required=True, help="host:port of Ray's head")
    parser.add_argument("--placement-timeout-s", type=float, default=1800, help="how long a worker may wait for a node")
    parser.add_argument("--lease", action="store_true", help="act only while holding the cluster's Kubernetes Lease")
    parser.add_argument(
        "--remove-drained-pods", action="store_true", help="have KubeRay take the pods of drained workers"
    )
    parser.add_argument("--node-labels", action="store_true", help="read topology, GPU kind and spot from node labels")
    parser.add_argument("--domain-label", default="", help="with --node-labels: label of the rack or zone")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("BATON_LOG_LEVEL", "INFO"),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        asyncio.run(run(arguments))
    except* ServingError as group:
        for error in group.exceptions:
            log.error("%s", error)
        sys.exit(1)


async def run(arguments: argparse.Namespace) -> None:
    """Run with the arguments of the command line.

    Raises:
        ServingError: see `serve_alone`.
    """
    give_back: GiveBack | None = None
    host_labels: HostLabels | None = None
    if arguments.remove_drained_pods or arguments.node_labels:
        from cluster.kubernetes.api import in_cluster
        from cluster.kubernetes.nodes import NodeLabels
        from cluster.kubernetes.provisioner import KubernetesProvisioner

        provisioner = KubernetesProvisioner(in_cluster(), *own_cluster())
        if arguments.remove_drained_pods:
            give_back = provisioner.remove_hosts
        if arguments.node_labels:
            host_labels = NodeLabels(provisioner, arguments.domain_label)
    runtime = RayRuntime(arguments.address, placement_timeout_s=arguments.placement_timeout_s, host_labels=host_labels)
    await serve_alone(load(arguments.spec), arguments.listen, runtime, lease=arguments.lease, give_back=give_back)


if __name__ == "__main__":
    main()
