"""`baton node`: what runs in a pod of the Ray cluster. Starts Ray, answers the probes, passes on the workers' metrics;
on the head it runs the controller, too.

When one of its processes ends, all end, and the pod with them: Kubernetes starts a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
from aiohttp import web

from baton.internal.v1 import registry_pb2
from cluster.errors import ConfigError, WorkerDied
from cluster.internal_rpc import InternalRpc
from cluster.spec.portfolio import load
from orchestrator.node.node_health import Answers, Engine, Member, NodeHealth
from orchestrator.registry import watch

log = logging.getLogger("baton.node")

LOOK_INTERVAL_S = 2.0
STOP_TIMEOUT_S = 30.0
SCRAPE_TIMEOUT_S = 5.0
WORKER_TITLES = ("ray::PrefillWorker", "ray::DecodeWorker", "ray::ColocatedWorker")
"""How Ray names the processes of Baton's actors."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """The options of `baton node`. ``controller`` is ``host:port`` of the registry; on the head, where to serve it."""

    spec: Path
    controller: str
    probe_host: str
    probe_port: int
    head: bool = False
    lease: bool = False
    stall_timeout_s: float = 300.0
    placement_timeout_s: float = 1800.0
    remove_drained_pods: bool = False
    node_labels: bool = False
    domain_label: str = ""


class Node:
    """One pod.

    Args:
        settings: See `NodeSettings`.
        ray_command: ``ray start ... --block``.
    """

    def __init__(self, settings: NodeSettings, ray_command: Sequence[str]) -> None:
        self._settings = settings
        self._ray_command = list(ray_command)
        self._health = NodeHealth(settings.probe_host, settings.stall_timeout_s)
        self._rpc = InternalRpc(load(settings.spec).first.security)
        self._members: list[registry_pb2.Member] = []
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._answers = Answers(False, False, True, "starting")

    async def run(self) -> None:
        """Run until SIGTERM.

        Raises:
            ConfigError: the command is not `ray start ... --block`, or the probe port is taken.
            WorkerDied: Ray or the controller ended by itself.
        """
        if self._ray_command[:2] != ["ray", "start"] or "--block" not in self._ray_command:
            raise ConfigError("expected `-- ray start ... --block` after the options")
        stop = asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, stop.set)
        runner = await self._serve()
        tasks = [asyncio.create_task(self._watch())]
        try:
            await self._start("ray", self._ray_command)
            if self._settings.head:
                await self._until_ray_answers()
                await self._start("controller", self._controller_command())
            else:
                tasks.append(asyncio.create_task(watch(self._settings.controller, self._take_members, self._rpc)))
            ended = [asyncio.create_task(child.wait(), name=name) for name, child in self._children.items()]
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([*ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                first = next(task for task in ended if task.done())
                raise WorkerDied(f"{first.get_name()} ended with status {first.result()}; its output is above")
        finally:
            for task in tasks:
                task.cancel()
            await self._stop_children()
            await runner.cleanup()

    # --- processes ------------------------------------------------------------------------------------------

    async def _start(self, name: str, command: Sequence[str]) -> None:
        log.info("starting %s: %s", name, " ".join(command))
        self._children[name] = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL)

    def _controller_command(self) -> list[str]:
        settings = self._settings
        command = [
            sys.executable, "-m", "orchestrator.controller.controller_main",
            "--spec", str(settings.spec), "--listen", settings.controller, "--address", self._head_address(),
            "--placement-timeout-s", f"{settings.placement_timeout_s:g}",
        ]  # fmt: skip
        for flag, on in (
            ("--lease", settings.lease),
            ("--remove-drained-pods", settings.remove_drained_pods),
            ("--node-labels", settings.node_labels),
        ):
            command += [flag] if on else []
        return [*command, "--domain-label", settings.domain_label] if settings.domain_label else command

    def _head_address(self) -> str:
        port = next((word.split("=")[1] for word in self._ray_command if word.startswith("--port=")), "6379")
        return f"{self._settings.probe_host}:{port}"

    async def _until_ray_answers(self) -> None:
        host, port = self._head_address().rsplit(":", 1)
        while self._children["ray"].returncode is None:
            with contextlib.suppress(OSError):
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            await asyncio.sleep(0.5)

    async def _stop_children(self) -> None:
        """The controller first: it stops its workers politely. `ray start --block` ends its own children."""
        for name in ("controller", "ray"):
            child = self._children.get(name)
            if child is None or child.returncode is not None:
                continue
            child.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await child.wait()
            except TimeoutError:
                log.error("%s did not end within %g s", name, STOP_TIMEOUT_S)
                child.kill()
                await child.wait()

    # --- probes ---------------------------------------------------------------------------------------------

    async def _serve(self) -> web.AppRunner:
        app = web.Application()
        for path, key in (("/startupz", "started"), ("/readyz", "ready"), ("/livez", "alive")):
            app.router.add_get(path, self._probe(key))
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._settings.probe_host, self._settings.probe_port).start()
        except OSError as error:
            raise ConfigError(f"--probe-port {self._settings.probe_port}: cannot listen: {error}") from error
        return runner

    def _probe(self, key: str):  # type: ignore[no-untyped-def]
        async def answer(_: web.Request) -> web.Response:
            good = getattr(self._answers, key)
            return web.Response(text=self._answers.why + "\n", status=200 if good else 503)

        return answer

    async def _watch(self) -> None:
        while True:
            try:
                self._answers = await asyncio.to_thread(self._answer)
            except psutil.Error as error:
                log.warning("processes could not be read: %s", error)
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _answer(self) -> Answers:
        running = bool(self._children) and all(child.returncode is None for child in self._children.values())
        if self._settings.head:
            serving = running and "controller" in self._children and _listens(self._settings.controller)
            return Answers(serving, serving, running or not self._children, "serving" if serving else "starting")
        if not self._children:
            return Answers(False, False, True, "starting")
        members = [Member(member.worker_id, member.address.rsplit(":", 1)[0], member.state) for member in self._members]
        ray = self._children.get("ray")
        engines = worker_processes(ray.pid) if ray is not None else []
        return self._health.see(engines, members, now_s=time.monotonic(), ray=running)

    def _take_members(self, message: registry_pb2.WatchMembersResponse) -> None:
        self._members = list(message.members)

    async def _metrics(self, request: web.Request) -> web.Response:
        """Metrics of this pod's workers, one after another: they carry pool and worker as labels.

        Workers see the scraper's own ``Authorization``: this port opens nothing that they keep closed.
        """
        headers = {name: value for name, value in request.headers.items() if name == "Authorization"}
        addresses = [
            member.metrics_address
            for member in self._members
            if member.metrics_address and member.address.rsplit(":", 1)[0] == self._settings.probe_host
        ]
        texts: list[str] = []
        timeout = aiohttp.ClientTimeout(total=SCRAPE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for address in addresses:
                try:
                    async with session.get(f"http://{address}/metrics", headers=headers) as reply:
                        if reply.status != 200:
                            return web.Response(status=reply.status, text=await reply.text())
                        texts.append(await reply.text())
                except (aiohttp.ClientError, TimeoutError) as error:
                    log.warning("no metrics from %s: %s", address, error)
        return web.Response(text="".join(texts), content_type="text/plain")


def _listens(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def worker_processes(ray_pid: int) -> list[Engine]:
    """Baton's actors below a Ray node's process, with the activity of each one's process tree."""
    found = []
    for process in psutil.Process(ray_pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith(WORKER_TITLES):
                tree = [process, *process.children(recursive=True)]
                found.append(Engine(process.pid, sum(_activity(each) for each in tree)))
    return found


def _activity(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
        # Bytes that read() returned, the page cache's included: weights come from there on a second start.
        read_bytes = getattr(process.io_counters(), "read_chars", 0)
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + read_bytes / 2**20)


async def run_node(settings: NodeSettings, ray_command: Sequence[str]) -> None:
    """Run a pod; see `Node`."""
    logging.basicConfig(
        level=os.environ.get("BATON_LOG_LEVEL", "INFO"),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    await Node(settings, ray_command).run()
