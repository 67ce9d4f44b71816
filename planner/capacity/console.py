"""What the planner's commands share: consoles, options, and how they exit. 2: bad input; 3: no plan keeps the goals."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.errors import ConfigError, PlacementInfeasible

EXIT_BAD_INPUT = 2
EXIT_INFEASIBLE = 3

# A file or pipe has no width to fold at.
CONSOLE = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 160)
ERRORS = Console(stderr=True, soft_wrap=True, highlight=False)

PlanFile = Annotated[Path, typer.Option("--file", "-f", help="Plan file (YAML) or plan.lock.json.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


@contextmanager
def exits() -> Iterator[None]:
    """Turn errors into one sentence and an exit code."""
    try:
        yield
    except ConfigError as error:
        ERRORS.print(f"baton: {error}", style="red", markup=False)
        raise typer.Exit(EXIT_BAD_INPUT) from error
    except PlacementInfeasible as error:
        limit = error.ids.get("limit", "unknown")
        ERRORS.print(f"baton: {error.message}; binding limit: {limit}", style="red", markup=False)
        raise typer.Exit(EXIT_INFEASIBLE) from error
