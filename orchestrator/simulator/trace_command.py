"""`baton trace fit` and `baton trace show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml
from rich.console import Console
from rich.table import Table

from cluster.errors import ConfigError
from orchestrator.simulator import plot
from orchestrator.simulator.fit import fit
from orchestrator.simulator.servegen import ServeGen
from orchestrator.simulator.simulate_command import checked
from orchestrator.simulator.traces import READERS, detect
from orchestrator.simulator.workload import Workload

trace = typer.Typer(help="Look at request traces and turn them into workloads.", no_args_is_help=True)

QuantilesOption = Annotated[
    Path | None, typer.Option("--quantiles", help="Length quantiles beside ServeGen client windows.")
]


@trace.command("fit")
def trace_fit(
    file: Annotated[Path, typer.Argument(help="Trace: Azure CSV, Mooncake JSONL, ServeGen, or a request log.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the block here; else print it.")] = None,
    phases: Annotated[int, typer.Option(min=1, max=96, help="Stretches of time with lengths of their own.")] = 1,
    quantiles: QuantilesOption = None,
    seed: Annotated[int, typer.Option(help="For draws.")] = 0,
) -> None:
    """Fit a trace and write the `workload:` block of scenarios and plans, with how good the fit is."""
    block, report = checked(lambda: fit(_read(file, quantiles, seed), phases=phases, seed=seed))
    text = yaml.safe_dump(block, sort_keys=False, default_flow_style=None, width=118)
    table = Table(title=f"fit of {file.name}: draws against data")
    for name in ("part", "kind", "KS", "mean", "p50", "p95", "p99"):
        table.add_column(name, justify="left" if name in ("part", "kind") else "right")
    for each in report:
        errors = (each.mean_error, each.p50_error, each.p95_error, each.p99_error)
        table.add_row(each.name, each.kind, f"{each.ks:.3f}", *(f"{error:+.1%}" for error in errors))
    Console(stderr=True).print(table)
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text)


@trace.command("show")
def trace_show(
    file: Annotated[Path, typer.Argument(help="Trace file.")],
    png: Annotated[Path | None, typer.Option(help="Draw a picture into this file as well.")] = None,
    quantiles: QuantilesOption = None,
    seed: Annotated[int, typer.Option(help="For draws.")] = 0,
) -> None:
    """Show a trace: rate and lengths over time, and their distributions."""
    workload = checked(lambda: _read(file, quantiles, seed))
    for line in plot.describe(workload):
        typer.echo(line)
    if png is not None:
        checked(lambda: plot.save_workload(workload, png))
        typer.echo(f"wrote {png}")


def _read(file: Path, quantiles: Path | None, seed: int) -> Workload:
    kind = detect(file)
    if kind == "servegen":
        if quantiles is None:
            raise ConfigError("ServeGen client windows need --quantiles, the file of length quantiles")
        return ServeGen.read(file, quantiles).draw(np.random.default_rng(seed))
    return READERS[kind](file)
