"""`baton trace fit` and `baton trace show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from planner.simulator import plot
from planner.simulator.fit import fit
from planner.simulator.simulate_command import checked, print_reading
from planner.simulator.trace_formats import summary
from planner.simulator.trace_formats.reading import TraceReading, trace_options
from planner.simulator.traces import load, need_times

trace = typer.Typer(help="Look at request traces and turn them into workloads.", no_args_is_help=True)

TraceFile = Annotated[
    Path,
    typer.Argument(help="Trace or load generator's result of any known format, packed or not.", show_default=False),
]
FormatOption = Annotated[str, typer.Option("--format", help="Name of the format; auto finds it.")]
UnitOption = Annotated[
    str, typer.Option("--unit", help="Of times that are numbers: s, ms, us, ns; auto: the format's.")
]
TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", help="tokenizer.json or a model's folder, for files that hold text.")
]
CharsOption = Annotated[
    float | None, typer.Option("--chars-per-token", help="In place of a tokenizer: an estimate, such as 4.")
]
BlockOption = Annotated[
    int | None, typer.Option("--block-tokens", help="Prompt tokens to one of hash_ids; else found by their number.")
]
RateOption = Annotated[
    float | None, typer.Option("--rate", min=1e-9, help="Requests a second, Poisson, for a file without times.")
]
QuantilesOption = Annotated[
    Path | None, typer.Option("--quantiles", help="Length quantiles beside ServeGen client windows.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="For draws.")]


@trace.command("fit")
def trace_fit(
    file: TraceFile,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the block here; else print it.")] = None,
    phases: Annotated[int, typer.Option(min=1, max=96, help="Stretches of time with lengths of their own.")] = 1,
    form: FormatOption = "auto",
    unit: UnitOption = "auto",
    rate: RateOption = None,
    tokenizer: TokenizerOption = None,
    chars_per_token: CharsOption = None,
    block_tokens: BlockOption = None,
    quantiles: QuantilesOption = None,
    seed: SeedOption = 0,
) -> None:
    """Fit a trace and write the `workload:` block of scenarios and plans, with how good the fit is."""
    errors = Console(stderr=True)

    def read() -> TraceReading:
        options = trace_options(unit, tokenizer, chars_per_token, block_tokens)
        reading = load(file, options, form=form, quantiles=quantiles, rate_per_s=rate, seed=seed)
        return need_times(file, reading)

    reading = checked(read)
    print_reading(reading)
    if reading.workload.follows.any():
        errors.print("a fit has no sessions: turns are taken at the earliest they can come", style="dim")
    block, report = checked(lambda: fit(reading.workload, phases=phases, seed=seed))
    text = yaml.safe_dump(block, sort_keys=False, default_flow_style=None, width=118)
    table = Table(title=f"fit of {file.name}: draws against data")
    for name in ("part", "kind", "KS", "mean", "p50", "p95", "p99"):
        table.add_column(name, justify="left" if name in ("part", "kind") else "right")
    for each in report:
        errors_of = (each.mean_error, each.p50_error, each.p95_error, each.p99_error)
        table.add_row(each.name, each.kind, f"{each.ks:.3f}", *(f"{error:+.1%}" for error in errors_of))
    errors.print(table)
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text)


@trace.command("show")
def trace_show(
    file: TraceFile,
    png: Annotated[Path | None, typer.Option(help="Draw a picture into this file as well.")] = None,
    form: FormatOption = "auto",
    unit: UnitOption = "auto",
    rate: RateOption = None,
    tokenizer: TokenizerOption = None,
    chars_per_token: CharsOption = None,
    block_tokens: BlockOption = None,
    quantiles: QuantilesOption = None,
    seed: SeedOption = 0,
) -> None:
    """Show a trace: what was read, rate and lengths over time, and their distributions."""

    def read() -> TraceReading:
        options = trace_options(unit, tokenizer, chars_per_token, block_tokens)
        return load(file, options, form=form, quantiles=quantiles, rate_per_s=rate, seed=seed)

    reading = checked(read)
    for line in (*summary.lines(reading), *plot.describe(reading.workload)):
        typer.echo(line)
    if png is not None:
        checked(lambda: plot.save_workload(reading.workload, png))
        typer.echo(f"wrote {png}")
