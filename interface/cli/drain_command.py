"""`baton drain`: empty workers and stop them, with a bar for each."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from baton.internal.v1 import registry_pb2
from cluster.errors import ConfigError, WorkerDraining
from cluster.spec import portfolio
from interface.cli.kube_target import KubeTarget
from orchestrator.controller.worker_drain import drain_workers
from orchestrator.local.state_file import running_state
from orchestrator.policy.readiness import LOADED

_COLOURS = {"draining": "yellow", "drained": "green", "timed_out": "red", "lost": "red"}
_BAR_CHARS = 24


def drain(
    workers: Sequence[str],
    name: str | None,
    controller: str | None,
    file: Path | None,
    *,
    local: bool,
    replace: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Drain; see `baton drain --help`.

    Raises:
        WorkerDraining: a worker was stopped before it was empty, or died.
    """
    if bool(workers) == local:
        raise ConfigError("name the workers to drain, or give --local for all on this machine")
    state = None if controller else running_state(name)
    address = state.registry if state else str(controller)
    spec_path = file or (Path(state.spec_path) if state else None)
    security = portfolio.load(spec_path).first.security if spec_path else None
    console = Console(stderr=as_json, highlight=False)
    progress = drain_workers(
        address,
        (lambda members: on_this_machine(members)) if local else (lambda _: list(workers)),
        timeout_s=timeout_s or 0.0,
        replace=replace or local,
        node_leaves=local,
        security=security,
    )
    last = asyncio.run(follow(progress, console))
    if as_json:
        tree = MessageToDict(last, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print(json.dumps(tree))
    elif not last.workers:
        console.print("no worker of the cluster runs on this machine")
    bad = [worker for worker in last.workers if worker.stage != registry_pb2.DRAIN_STAGE_DRAINED]
    if bad:
        texts = [f"{worker.worker_id} {_stage(worker)} with {worker.requests} requests" for worker in bad]
        raise WorkerDraining(f"not empty when stopped: {', '.join(texts)}; they go on elsewhere where they can")


def drain_release(
    target: KubeTarget,
    workers: Sequence[str],
    *,
    local: bool,
    replace: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Drain workers of a release on Kubernetes: the same command, run in its head's pod. It exits as that one does.

    Raises:
        ServingError: it cannot be run there.
    """
    if local or not workers:
        raise ConfigError("name the workers to drain; with --release there is no --local")
    command = ["drain"]
    if replace:
        command.append("--replace")
    if timeout_s is not None:
        command += ["--timeout-s", f"{timeout_s:g}"]
    if as_json:
        command.append("--json")
    target.baton_on_head([*command, "--", *workers], tty=not as_json and sys.stdout.isatty())


async def follow(progress: AsyncIterator[registry_pb2.DrainResponse], console: Console) -> registry_pb2.DrainResponse:
    """Show how far drains are until they end; the last of it."""
    last = registry_pb2.DrainResponse()
    shown = ""
    with Live(console=console, refresh_per_second=8, transient=False) as live:
        async for last in progress:
            if console.is_terminal:
                live.update(render(last))
                continue
            # A line for each change, as a pod's log wants it.
            line = ", ".join(
                f"{worker.worker_id} {_stage(worker)} {worker.requests} requests" for worker in last.workers
            )
            if line != shown:
                shown = line
                console.print(f"[{last.elapsed_s:5.1f} s] {line}", markup=False)
    return last


def on_this_machine(members: Sequence[registry_pb2.Member]) -> list[str]:
    """Workers, ready or on standby, that listen on an address of this machine (of this pod, in Kubernetes)."""
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    return [
        member.worker_id
        for member in members
        if member.state in LOADED and member.address.rpartition(":")[0].strip("[]") in own
    ]


def render(progress: registry_pb2.DrainResponse) -> Table:
    """A bar for each worker: full when it is empty."""
    table = Table.grid(padding=(0, 2))
    for worker in progress.workers:
        stage = _stage(worker)
        gone = worker.requests_at_start - worker.requests
        done = stage == "drained"
        share = 1.0 if done else gone / worker.requests_at_start if worker.requests_at_start else 0.0
        filled = round(share * _BAR_CHARS)
        colour = _COLOURS[stage]
        bar = Text.assemble(("█" * filled, colour), ("░" * (_BAR_CHARS - filled), "dim"))
        left = f"{worker.requests} requests, {worker.used_blocks} KV blocks left" if not done else "empty"
        clock = f"{progress.elapsed_s:.1f} of {progress.timeout_s:.0f} s"
        table.add_row(
            worker.worker_id, bar, Text(stage.replace("_", " "), style=colour), left, Text(clock, style="dim")
        )
    return table


def _stage(worker: registry_pb2.WorkerDrain) -> str:
    return registry_pb2.DrainStage.Name(worker.stage).removeprefix("DRAIN_STAGE_").lower()
