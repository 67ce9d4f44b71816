"""`baton node` and `baton gateway`: the containers' entrypoints."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.node.node import NodeSettings, run_node


def node(settings: NodeSettings, ray_command: Sequence[str]) -> None:
    """Run a node; see `baton node --help`."""
    asyncio.run(run_node(settings, ray_command))


def gateway(spec: Path, controller: str, *, host: str | None, probe_port: int | None, grace_s: float) -> None:
    """Become a gateway process; see `baton gateway --help`."""
    command = [sys.executable, "-m", "interface.gateway_main", "--spec", str(spec), "--controller", controller]
    if host is not None:
        command += ["--host", host]
    if probe_port is not None:
        command += ["--probe-port", str(probe_port)]
    os.execv(sys.executable, [*command, "--grace-s", f"{grace_s:g}"])
