"""`baton simulate`: a scenario in virtual time, under one scaling policy or several side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cluster.errors import ConfigError
from planner.simulator import plot
from planner.simulator.policies import PolicyMaker, policies_named
from planner.simulator.records import Outcome
from planner.simulator.result import Result
from planner.simulator.scenario import Scenario, load
from planner.simulator.simulation import Hooks
from planner.simulator.trace_formats import summary
from planner.simulator.trace_formats.reading import TraceReading
from planner.simulator.workload import Workload

PROGRESS_AFTER_S = 2.0


def simulate(
    file: Annotated[Path, typer.Option("--file", "-f", help="Scenario.")],
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", help="Scaling policy; several, with commas or repeated, run side by side."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures as JSON; by policy where there are several.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write one line per request; for one policy.")] = None,
    png: Annotated[
        Path | None, typer.Option(help="Draw the run, or the policies side by side, into this file.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the scenario's.")] = None,
) -> None:
    """Run a scenario in virtual time and print what its users would have seen."""
    scenario: Scenario = checked(lambda: load(file))
    makers: dict[str, PolicyMaker] = checked(lambda: policies_named(",".join(policy or ["static"])))
    if csv is not None and len(makers) > 1:
        checked(lambda: _refuse("--csv takes one --policy; write a file for each"))
    if seed is not None:
        scenario = scenario.model_copy(
            update={"seed": seed, "workload": scenario.workload.model_copy(update={"seed": seed})}
        )
    started_s = time.perf_counter()
    # Read or drawn once, whatever the number of policies.
    workload: Workload = checked(lambda: scenario.requests(file.parent, print_reading))
    results: dict[str, Result] = checked(
        lambda: {name: run(scenario, file.parent, make, workload) for name, make in makers.items()}
    )
    wall_s = time.perf_counter() - started_s
    first = next(iter(results.values()))
    if csv is not None:
        csv.write_bytes(first.records.to_csv())
    if png is not None:
        checked(
            lambda: (
                plot.save_result(first, png)
                if len(results) == 1
                else plot.save_policies(results, png, ttft_s=scenario.slo.ttft_p95_s)
            )
        )
    if as_json:
        by_name = {name: figures(scenario, result) for name, result in results.items()}
        typer.echo(json.dumps(by_name if len(results) > 1 else by_name[next(iter(by_name))], indent=2))
    elif len(results) == 1:
        _print(scenario, first)
    else:
        _print_policies(scenario, results)
    if not as_json:
        Console().print(f"simulated in {wall_s:.1f} s", highlight=False)


def print_reading(reading: TraceReading) -> None:
    """Print what was read from a trace, beside the results."""
    for line in summary.lines(reading):
        Console(stderr=True).print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def run(
    scenario: Scenario, folder: Path, policy: PolicyMaker | None = None, workload: Workload | None = None
) -> Result:
    """Run a scenario, with a progress bar once it has taken two seconds.

    Args:
        scenario: What to run.
        folder: What its relative paths start from.
        policy: Makes the scaling policy.
        workload: Its requests, where they have been read or drawn.

    Raises:
        ConfigError: as for `Scenario.build`.
    """
    simulation = scenario.build(folder, policy(scenario) if policy is not None else None, workload)
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


def _print(scenario: Scenario, result: Result) -> None:
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


def _print_policies(scenario: Scenario, results: dict[str, Result]) -> None:
    console, table = Console(), Table()
    table.add_column("policy")
    for name in ("GPU-hours", "good", "TTFT p50/p95", "ITL p95", "E2E p50/p95", "rejected", "preempted", "moved"):
        table.add_column(name, justify="right")
    for name, result in results.items():
        summary = figures(scenario, result)
        table.add_row(
            name,
            f"{summary['gpu_hours']:,.1f}",
            f"{summary['good']:.2%}",
            f"{_seconds(summary['ttft_p50_s'])} / {_seconds(summary['ttft_p95_s'])}",
            _seconds(summary["itl_p95_s"]),
            f"{_seconds(summary['e2e_p50_s'])} / {_seconds(summary['e2e_p95_s'])}",
            *(f"{summary[key]:,}" for key in ("rejected", "preemptions", "moves")),
        )
    console.print(table)
    for name, result in results.items():
        gpus = sum(result.timeline[f"{role}_gpus"] for role in ("prefill", "decode", "colocated"))
        top = float(np.max(gpus))
        console.print(f"GPUs, {name:20} |{plot.bars(np.asarray(gpus))}| most {top:,.0f}", highlight=False)


def _refuse(text: str) -> None:
    raise ConfigError(text)


def _seconds(value: float) -> str:
    return f"{value * 1000:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def checked(call: Callable[[], Any]) -> Any:
    """Bad input is one sentence and exit 2."""
    try:
        return call()
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
