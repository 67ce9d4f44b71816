"""`baton trace fit`, `baton trace show` and `baton simulate`; the main command mounts `trace` and `simulate`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cluster.errors import ConfigError
from orchestrator.simulator import plot
from orchestrator.simulator.fit import fit
from orchestrator.simulator.records import Outcome
from orchestrator.simulator.result import Result
from orchestrator.simulator.scenario import Scenario, load
from orchestrator.simulator.servegen import ServeGen
from orchestrator.simulator.simulation import Hooks
from orchestrator.simulator.traces import READERS, detect
from orchestrator.simulator.workload import Workload

PROGRESS_AFTER_S = 2.0

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
    block, report = _checked(lambda: fit(_read(file, quantiles, seed), phases=phases, seed=seed))
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
    workload = _checked(lambda: _read(file, quantiles, seed))
    for line in plot.describe(workload):
        typer.echo(line)
    if png is not None:
        _checked(lambda: plot.save_workload(workload, png))
        typer.echo(f"wrote {png}")


def simulate(
    file: Annotated[Path, typer.Option("--file", "-f", help="Scenario.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write one line per request.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the run into this file.")] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the scenario's.")] = None,
) -> None:
    """Run a scenario in virtual time and print what its users would have seen."""
    scenario = _checked(lambda: load(file))
    if seed is not None:
        scenario = scenario.model_copy(
            update={"seed": seed, "workload": scenario.workload.model_copy(update={"seed": seed})}
        )
    started_s = time.perf_counter()
    result = _checked(lambda: run(scenario, file.parent))
    if csv is not None:
        csv.write_bytes(result.records.to_csv())
    if png is not None:
        _checked(lambda: plot.save_result(result, png))
    if as_json:
        typer.echo(json.dumps(figures(scenario, result), indent=2))
    else:
        _print(scenario, result, time.perf_counter() - started_s)


def run(scenario: Scenario, folder: Path) -> Result:
    """Run a scenario, with a progress bar once it has taken two seconds.

    Raises:
        ConfigError: as for `Scenario.build`.
    """
    simulation = scenario.build(folder)
    begun_s = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task: list[Any] = []

        def show(share: float) -> None:
            if not task and time.monotonic() - begun_s > PROGRESS_AFTER_S:
                task.append(progress.add_task("simulating", total=1.0))
            if task:
                progress.update(task[0], completed=share)

        simulation.hooks = Hooks(action=simulation.hooks.action, progress=show)
        return simulation.run()


def figures(scenario: Scenario, result: Result) -> dict[str, Any]:
    """The summary under the scenario's objectives, with how many requests met them."""
    return result.summary(ttft_s=scenario.slo.ttft_p95_s)


def _print(scenario: Scenario, result: Result, wall_s: float) -> None:
    summary, console = figures(scenario, result), Console()
    console.print(
        f"{summary['finished']:,} of {summary['requests']:,} requests finished in {summary['end_s']:,.0f} s "
        f"({summary['rejected']:,} rejected, {summary['failed']:,} failed, {summary['open']:,} open); "
        f"{summary['good']:.2%} met the objectives; {summary['gpu_hours']:.1f} GPU-hours"
    )
    table = Table()
    for name in ("", "mean", "p50", "p95", "p99"):
        table.add_column(name, justify="left" if not name else "right")
    for name in ("queue", "ttft", "ttfat", "itl", "tpot", "e2e"):
        values = [summary[f"{name}_{part}_s"] for part in ("mean", "p50", "p95", "p99")]
        table.add_row(name.upper() if name != "queue" else "queue", *(_seconds(value) for value in values))
    console.print(table)
    console.print(
        f"{summary['output_tokens_per_s']:,.0f} output tokens/s, {summary['transferred_gb']:,.1f} GB of KV moved in "
        f"{summary['transfers']:,} transfers, prefix hits {summary['hit_share']:.1%}, "
        f"{summary['preemptions']:,} preemptions, {summary['moves']:,} moves, {summary['retries']:,} retries"
    )
    for role in ("prefill", "decode", "colocated"):
        if f"{role}_kv_peak_share" in summary:
            peak, mean = summary[f"{role}_kv_peak_share"], summary[f"{role}_kv_mean_share"]
            used = result.timeline[f"{role}_used_blocks"] / np.maximum(1, result.timeline[f"{role}_total_blocks"])
            console.print(f"KV of {role:9} |{plot.bars(used)}| mean {mean:.0%}, peak {peak:.0%}", highlight=False)
    if (result.records["outcome"] == Outcome.OPEN).any():
        console.print("some requests never ended: no worker that could take them came up")
    console.print(f"simulated in {wall_s:.1f} s", highlight=False)


def _seconds(value: float) -> str:
    return f"{value * 1000:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _read(file: Path, quantiles: Path | None, seed: int) -> Workload:
    kind = detect(file)
    if kind == "servegen":
        if quantiles is None:
            raise ConfigError("ServeGen client windows need --quantiles, the file of length quantiles")
        return ServeGen.read(file, quantiles).draw(np.random.default_rng(seed))
    return READERS[kind](file)


def _checked(call: Callable[[], Any]) -> Any:
    """Bad input is one sentence and exit 2."""
    try:
        return call()
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
