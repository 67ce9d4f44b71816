"""`baton up` and `baton down`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.errors import ConfigError, ServingError, WorkerDied
from cluster.model import model_path
from cluster.placement import worker_plans
from cluster.spec import config, portfolio
from cluster.spec.config import ClusterSpec
from cluster.spec.portfolio import Portfolio
from orchestrator.local.state_file import ClusterState, cluster_folder, read_state, running_state

_DONE = {"ready", "standby", "paired", "stopped"}
_BAD = {"lost", "failed"}
STARTED_BY = "BATON_PROGRESS_FILE"
"""Set for a cluster that `up --detach` starts: where to tell what happens. Its standard input ends with its starter."""


class ProgressBoard:
    """What is being started, a line each, with seconds; on a pipe, a line per change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, tuple[str, str, float, float]] = {}
        self._began_s = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> ProgressBoard:
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=4, transient=False)
            self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def say(self, subject: str, stage: str, detail: str) -> None:
        """Record a stage."""
        now = time.monotonic()
        began = self._rows[subject][2] if subject in self._rows else now
        self._rows[subject] = (stage, detail, began, now)
        if self._live is None:
            text = f"[{now - self._began_s:5.1f} s] {subject}: {stage} {detail}".rstrip()
            self._console.print(text, highlight=False, markup=False)

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for subject, (stage, detail, began, changed) in self._rows.items():
            settled = stage in _DONE
            colour = "green" if settled else "red" if stage in _BAD else "yellow"
            mark = "✓" if settled else "✗" if stage in _BAD else "…"
            took = (changed if settled else now) - began
            table.add_row(
                Text(mark, style=colour), subject, Text(stage, style=colour), f"{took:.0f} s", Text(detail, style="dim")
            )
        return table


def up(file: Path | None, *, dry_run: bool, detach: bool, address: str | None, as_json: bool) -> None:
    """Start a cluster; see `baton up --help`."""
    models = portfolio.load(file)
    spec = models.first
    console = Console(stderr=as_json, highlight=False)
    if dry_run:
        _print_plan(models, as_json)
        return
    for each in models.models.values():
        model_path.check(each.model.path)
    spec_path = _spec_file(file, spec)
    if detach:
        state = _detach(spec, spec_path, address, console)
        _announce(state, console, as_json)
        return
    from orchestrator.local.local_cluster import run

    logging.basicConfig(level=os.environ.get("BATON_LOG_LEVEL", "WARNING"), stream=sys.stderr)
    with ProgressBoard(console) as board:
        progress_file = os.environ.pop(STARTED_BY, None)

        def say(subject: str, stage: str, detail: str) -> None:
            board.say(subject, stage, detail)
            # Removed once the cluster is ready: nobody reads on.
            if progress_file and Path(progress_file).exists():
                with Path(progress_file).open("a") as out:
                    print(json.dumps([subject, stage, detail]), file=out)

        try:
            asyncio.run(
                run(
                    models,
                    spec_path,
                    address=address,
                    on_progress=say,
                    on_ready=lambda state: _announce(state, console, as_json),
                    starter_fd=sys.stdin.fileno() if progress_file else None,
                )
            )
        except ServingError as error:
            if progress_file:
                say("cluster", "failed", str(error))
            raise


def down(name: str | None, *, as_json: bool) -> None:
    """Stop a cluster; see `baton down --help`."""
    from orchestrator.local.local_cluster import end

    console = Console(stderr=as_json, highlight=False)
    if name is None:
        folder = model_path.cache_folder() / "clusters"
        names = [path.name for path in folder.iterdir() if (path / "state.json").is_file()] if folder.is_dir() else []
        if len(names) > 1:
            raise ConfigError(f"several clusters are here ({', '.join(sorted(names))}); name one with --name")
        name = names[0] if names else None
    state = read_state(name) if name else None
    ended = False
    if state is not None:
        with console.status(f"stopping {state.name} …"):
            ended = end(state)
    if as_json:
        print(json.dumps({"cluster": name, "stopped": ended}))
    else:
        console.print(f"[green]✓[/] {name} is stopped" if ended else "no cluster runs on this machine")


def _spec_file(file: Path | None, spec: ClusterSpec) -> Path:
    """The spec as a file that other processes can read."""
    if file is not None:
        return file.resolve()
    folder = cluster_folder(spec.name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.yaml"
    path.write_text((Path(config.__file__).parent / "local.yaml").read_text())
    return path


def _detach(spec: ClusterSpec, spec_path: Path, address: str | None, console: Console) -> ClusterState:
    """Run `baton up` in a process of its own and follow its progress until it is ready."""
    old = read_state(spec.name)
    if old is not None and old.is_alive():
        raise ConfigError(f"cluster {spec.name} runs already (process {old.controller.pid}); `baton down` ends it")
    folder = cluster_folder(spec.name)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix="progress-", dir=folder)
    os.close(descriptor)
    progress = Path(name)
    command = [sys.executable, "-m", "interface.cli.main", "up", "-f", str(spec_path)]
    if address:
        command += ["--address", address]
    with (folder / "up.log").open("w") as log_file:
        process = _start_apart(command, log_file, os.environ | {STARTED_BY: str(progress)})
    failure = ""
    try:
        with ProgressBoard(console) as board, progress.open() as lines:
            while True:
                for line in lines:
                    subject, stage, detail = json.loads(line)
                    board.say(subject, stage, detail)
                    if stage == "failed":
                        failure = detail
                state = read_state(spec.name)
                if state is not None and state.phase == "ready" and state.controller.pid == process.pid:
                    return state
                if process.poll() is not None:
                    raise WorkerDied(failure or f"the cluster did not start; see {folder}/up.log")
                time.sleep(0.2)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        with contextlib.suppress(OSError):
            progress.unlink()


def _start_apart(command: list[str], log_file: IO[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that Ctrl-C and the end of the terminal do not reach, in this session all the same (ADR 15).

    Nothing is ever written to its standard input, which ends when this process does.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # children inherit what is ignored
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log_file, stderr=log_file, process_group=0, env=env
        )
    finally:
        signal.signal(signal.SIGHUP, before)


def _announce(state: ClusterState, console: Console, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                {
                    "cluster": state.name,
                    "grpc": state.callers_grpc_address,
                    "http": state.callers_http_url,
                    "metrics_port": state.metrics_port,
                    "pid": state.controller.pid,
                }
            ),
            flush=True,
        )
        return
    console.print(
        f"[green]✓[/] [bold]{state.name}[/] is ready   gRPC [cyan]{state.callers_grpc_address}[/]   OpenAI HTTP "
        f"[cyan]{state.callers_http_url}/v1[/]   metrics [cyan]:{state.metrics_port}/metrics[/]"
    )


def _print_plan(models: Portfolio, as_json: bool) -> None:
    spec = models.first
    plans = [plan for each in models.models.values() for plan in worker_plans(each)]
    rows: list[dict[str, Any]] = [
        {
            "worker": plan.worker_id,
            "role": plan.role.value,
            "standby": plan.standby,
            "strategy": plan.strategy,
            "bundles": [dict(bundle) for bundle in plan.bundles],
            "accelerator_type": plan.accelerator_type,
        }
        for plan in plans
    ]
    total = {key: sum(plan.total.get(key, 0.0) for plan in plans) for key in ("GPU", "CPU")}
    usd_per_hour = (
        total["GPU"] * spec.cost.usd_per_accelerator_hour
        + (0 if total["GPU"] else total["CPU"] * spec.cost.usd_per_cpu_hour)
    )  # fmt: skip
    if as_json:
        print(json.dumps({"cluster": spec.name, "workers": rows, "total": total, "usd_per_hour": usd_per_hour}))
        return
    table = Table(title=f"{spec.name}: {', '.join(models.models)}", title_justify="left")
    for heading in ("worker", "role", "accelerators", "CPUs", "group", "nodes"):
        table.add_column(heading)
    for plan in plans:
        gpus = plan.total.get("GPU", 0)
        nodes = next((name for name in plan.bundles[0] if name not in ("CPU", "GPU", "memory")), "any")
        kind = f"{gpus:g} × {plan.accelerator_type or 'GPU'}" if gpus else "none (CPU)"
        role = f"{plan.role}, standby" if plan.standby else plan.role.value
        table.add_row(plan.worker_id, role, kind, f"{plan.total['CPU']:g}", plan.strategy, nodes)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{len(plans)} workers, {total['GPU']:g} accelerators, {total['CPU']:g} CPUs; "
        f"transports {', '.join(spec.transfer.transports)}; about ${usd_per_hour:.2f} an hour at the spec's prices"
    )


def endpoint_of(name: str | None, endpoint: str | None) -> str:
    """Address of the gateway to call."""
    return endpoint or running_state(name).grpc_address
