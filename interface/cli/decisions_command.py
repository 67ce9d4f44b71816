"""`baton decisions`: read a log of the autoscaler's decisions, and make each of them again from its inputs."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from cluster.errors import ConfigError
from orchestrator.policy.decision_log import replay


def decisions(file: Path, *, every: bool, as_json: bool) -> None:
    """Print the decisions that changed something, or every one, and whether each comes out the same again.

    Raises:
        ConfigError: the file cannot be read or is not a decision log.
    """
    made, changed, different = 0, 0, []
    try:
        with file.open() as lines:
            for found in replay(lines):
                made += 1
                changed += bool(found.entry.actions)
                if not found.agrees:
                    different.append(found.line)
                if as_json or not (every or found.entry.actions or not found.agrees):
                    continue
                mark = " " if found.agrees else "!"
                typer.echo(f"{mark} {found.entry.demand.now_s:10.0f} s  {found.entry.reason}")
                if not found.agrees:
                    typer.echo(f"  made again: {found.again.reason}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the decision log {file}: {error}") from error
    if as_json:
        typer.echo(json.dumps({"decisions": made, "changes": changed, "different_lines": different}))
    else:
        typer.echo(
            f"{made:,} decisions, {changed:,} of them changes; {len(different)} came out otherwise when made again"
        )
    if different:
        raise typer.Exit(1)
