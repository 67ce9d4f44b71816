"""The gateway processes of a cluster on this machine: started together, each started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.errors import ConfigError, WorkerDied
from cluster.spec.config import GatewaySettings

log = logging.getLogger("baton.up")

START_TIMEOUT_S = 60.0
MAX_RESTARTS = 5
RESTART_WINDOW_S = 60.0
"""A gateway that dies more often than `MAX_RESTARTS` times within this has a reason that a restart does not fix."""
PORT_NAMES = ("grpc_port", "http_port", "metrics_port")


def ports_of(settings: GatewaySettings, index: int) -> dict[str, int]:
    """Ports of the ``index``-th gateway: each takes the ports after the last one's; 0 stays 0.

    Raises:
        ConfigError: one is past 65535.

    Example:
        >>> ports_of(GatewaySettings(grpc_port=50051, http_port=0), 2)
        {'grpc_port': 50053, 'http_port': 0, 'metrics_port': 9092}
    """
    ports = {name: port + index if (port := getattr(settings, name)) else 0 for name in PORT_NAMES}
    if max(ports.values()) > 65535:
        raise ConfigError(f"gateway.replicas={settings.replicas}: no ports left; choose lower ones, or 0")
    return ports


class GatewayGroup:
    """Gateways 0 to ``settings.replicas`` - 1.

    Args:
        settings: The spec's section.
        spec_path: The spec, for the processes to read.
        registry: Address of the controller's registry.
        folder: For logs and the files in which gateways tell their ports.
        on_progress: Called with subject, stage and detail.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        spec_path: Path,
        registry: str,
        folder: Path,
        on_progress: Callable[[str, str, str], None],
    ) -> None:
        self.ports = [ports_of(settings, index) for index in range(settings.replicas)]
        self._spec_path = spec_path
        self._registry = registry
        self._folder = folder
        self._say = on_progress
        self._processes: list[asyncio.subprocess.Process] = []
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """Processes that run."""
        return [process.pid for process in self._processes if process.returncode is None]

    async def start(self) -> None:
        """Start all; `ready` waits for them."""
        for index in range(len(self.ports)):
            self._processes.append(await self._spawn(index))

    async def ready(self) -> None:
        """Wait until all serve; from then on `ports` are those they have.

        Raises:
            ConfigError: one did not start; the text says why.
        """
        for index, process in enumerate(self._processes):
            self.ports[index] = await self._ports_of(index, process)

    async def watch(self, on_restart: Callable[[], None]) -> None:
        """Start again what dies, with the ports it had. Runs until cancelled.

        Raises:
            WorkerDied: one dies again and again.
        """
        async with asyncio.TaskGroup() as group:
            for index in range(len(self._processes)):
                group.create_task(self._keep(index, on_restart))

    async def stop(self) -> None:
        """End all, politely first; from here on none is started again."""
        self._stopping = True
        running = [process for process in self._processes if process.returncode is None]
        for process in running:
            process.terminate()
        for process in running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()

    # --- one gateway ----------------------------------------------------------------------------------------

    async def _keep(self, index: int, on_restart: Callable[[], None]) -> None:
        deaths_s: list[float] = []
        while True:
            process = self._processes[index]
            await process.wait()
            if self._stopping:
                return
            now_s = time.monotonic()
            deaths_s = [death_s for death_s in deaths_s if now_s - death_s < RESTART_WINDOW_S] + [now_s]
            status = f"gateway-{index} ended with status {process.returncode}"
            if len(deaths_s) > MAX_RESTARTS:
                raise WorkerDied(f"{status} again and again; its log is {self._log(index)}")
            log.error("%s; a new one starts", status)
            self._say(f"gateway-{index}", "lost", "a new one starts")
            self._processes[index] = await self._spawn(index)
            try:
                self.ports[index] = await self._ports_of(index, self._processes[index])
            except ConfigError as error:
                log.error("%s", error)
                continue
            self._say(f"gateway-{index}", "ready", "")
            on_restart()

    async def _spawn(self, index: int) -> asyncio.subprocess.Process:
        ports_file = self._ports_file(index)
        ports_file.unlink(missing_ok=True)
        ports = ",".join(str(self.ports[index][name]) for name in PORT_NAMES)
        again = index < len(self._processes)
        with self._log(index).open("a" if again else "w") as log_file:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "interface.gateway_main",
                "--spec", str(self._spec_path), "--controller", self._registry, "--ports-file", str(ports_file),
                "--ports", ports, "--with-parent", str(os.getpid()),
                stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file,
                # Ctrl-C goes to `up` alone, which ends the gateway in order. A group, not a session: ADR 15.
                process_group=0,
            )  # fmt: skip

    async def _ports_of(self, index: int, process: asyncio.subprocess.Process) -> dict[str, int]:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                ports = json.loads(self._ports_file(index).read_text())
                return {name: int(ports[name]) for name in PORT_NAMES}
            if process.returncode is not None:
                lines = self._log(index).read_text().strip().splitlines()
                last = lines[-1] if lines else "no output"
                raise ConfigError(f"the gateway did not start: {last} ({self._log(index)})")
            await asyncio.sleep(0.1)
        raise ConfigError(f"the gateway did not start within {START_TIMEOUT_S:g} s; see {self._log(index)}")

    def _ports_file(self, index: int) -> Path:
        return self._folder / ("ports.json" if index == 0 else f"ports-{index}.json")

    def _log(self, index: int) -> Path:
        return self._folder / ("gateway.log" if index == 0 else f"gateway-{index}.log")
