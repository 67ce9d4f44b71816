"""`baton model add`, `remove` and `list`: the models of a cluster that runs."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from baton.internal.v1 import registry_pb2
from cluster.errors import ConfigError, WorkerDraining
from cluster.spec import portfolio
from cluster.spec.config import SecuritySettings
from interface.cli.drain_command import follow
from orchestrator.controller import model_orders
from orchestrator.local.state_file import running_state


def add(
    name: str, entry: Path, cluster: str | None, controller: str | None, spec: Path | None, *, as_json: bool
) -> None:
    """Add a model; see `baton model add --help`.

    Raises:
        ConfigError: the entry cannot be read, or the controller refused; the text says why.
    """
    try:
        text = entry.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the entry {entry}: {error}") from error
    address, security = _controller(cluster, controller, spec)
    console = Console(stderr=as_json, highlight=False)
    with console.status(f"starting the workers of {name}"):
        added = asyncio.run(model_orders.add_model(address, name, text, security))
    if as_json:
        tree = {"model": added.served_name, "workers": list(added.worker_ids), "elapsed_s": added.elapsed_s}
        print(json.dumps(tree))
    else:
        workers = ", ".join(added.worker_ids)
        console.print(f"[green]✓[/] {added.served_name} is served after {added.elapsed_s:.0f} s by {workers}")


def remove(
    model: str,
    cluster: str | None,
    controller: str | None,
    spec: Path | None,
    *,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Remove a model; see `baton model remove --help`.

    Raises:
        ConfigError: the controller refused; the text says why.
        WorkerDraining: a worker was stopped before it was empty, or died.
    """
    address, security = _controller(cluster, controller, spec)
    console = Console(stderr=as_json, highlight=False)
    last = asyncio.run(follow(model_orders.remove_model(address, model, timeout_s or 0.0, security), console))
    bad = [row.worker_id for row in last.workers if row.stage != registry_pb2.DRAIN_STAGE_DRAINED]
    if as_json:
        print(json.dumps({"model": model, "elapsed_s": last.elapsed_s, "not_empty": bad}))
    elif not bad:
        console.print(f"[green]✓[/] {model} is removed after {last.elapsed_s:.0f} s")
    if bad:
        raise WorkerDraining(f"{model} is removed; not empty when stopped: {', '.join(bad)}")


def list_models(cluster: str | None, controller: str | None, spec: Path | None, *, as_json: bool) -> None:
    """List models; see `baton model list --help`.

    Raises:
        ConfigError: the controller is not there.
    """
    address, security = _controller(cluster, controller, spec)
    found = asyncio.run(model_orders.list_models(address, security))
    ready: dict[str, Counter[str]] = {entry.served_name: Counter() for entry in found.models}
    for member in found.members:
        if member.state == "ready" and member.model in ready:
            ready[member.model][member.role] += 1
    states = {entry.served_name: "leaving" if entry.leaving else "served" for entry in found.models}
    if as_json:
        print(json.dumps([{"model": name, "state": states[name], "ready": ready[name]} for name in states]))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("model", "state", "ready workers"):
        table.add_column(heading)
    for name, state in states.items():
        counts = ", ".join(f"{count} {role}" for role, count in sorted(ready[name].items()))
        table.add_row(name, state, counts or "none")
    Console(highlight=False).print(table)


def _controller(cluster: str | None, controller: str | None, spec: Path | None) -> tuple[str, SecuritySettings | None]:
    """Where the controller is, and how it is reached."""
    state = None if controller else running_state(cluster)
    path = spec or (Path(state.spec_path) if state else None)
    security = portfolio.load(path).first.security if path else None
    return (state.registry if state else str(controller)), security
