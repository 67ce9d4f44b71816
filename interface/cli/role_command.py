"""`baton role`: let a worker do another pool's work, with no restart."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from rich.console import Console

from cluster.errors import ConfigError
from cluster.spec import portfolio
from cluster.spec.config import Role
from orchestrator.controller.role_change import change_role
from orchestrator.local.state_file import running_state


def role(
    worker_id: str, wanted: str, name: str | None, controller: str | None, file: Path | None, *, as_json: bool
) -> None:
    """Change a role; see `baton role --help`.

    Raises:
        ConfigError: no such worker or role, or it cannot take it.
    """
    if wanted not in (Role.PREFILL, Role.DECODE):
        raise ConfigError(f"role {wanted!r}: expected prefill or decode")
    state = None if controller else running_state(name)
    address = state.registry if state else str(controller)
    spec_path = file or (Path(state.spec_path) if state else None)
    security = portfolio.load(spec_path).first.security if spec_path else None
    answer = asyncio.run(change_role(address, worker_id, Role(wanted), security=security))
    if as_json:
        print(json.dumps({"worker": worker_id, "role": wanted, "elapsed_s": answer.elapsed_s, "pid": answer.pid}))
    else:
        Console(highlight=False).print(
            f"[green]✓[/] {worker_id} is a {wanted} worker after {answer.elapsed_s:.2f} s, in process {answer.pid} as "
            "before"
        )
