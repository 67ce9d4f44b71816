"""``baton plan`` with ``emit`` and ``explain``: what they print, write, and exit with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.progress import Progress
from rich.table import Table

from cluster.errors import ConfigError
from planner.capacity import emit as emitting
from planner.capacity import explain as explaining
from planner.capacity import lock as locking
from planner.capacity.check import Checked, check
from planner.capacity.console import CONSOLE, ERRORS, AsJson, PlanFile, exits
from planner.capacity.day import Day, simulate_day
from planner.capacity.plan import Candidate, Plan
from planner.capacity.planner import plan_for
from planner.capacity.resolve import resolve
from planner.capacity.spec import Mode, kubernetes_name, load
from planner.capacity.view import assumptions, check_record, check_table, plan_record, tables

plan_app = typer.Typer(help="Plan capacity: how many GPUs, at what cost, and why.", no_args_is_help=False)

Simulate = Annotated[bool, typer.Option("--simulate/--no-simulate", help="Check the finalists in the simulator.")]


def _plan(path: Path) -> Plan:
    if path.suffix == ".json":
        found, differences = locking.reproduce(path)
        for line in differences:
            ERRORS.print(f"not as locked: {line}", markup=False)
        return found
    return plan_for(resolve(load(path)))


def _checked(plan: Plan, quiet: bool) -> tuple[Plan, list[Checked]]:
    if quiet:
        return check(plan)
    with Progress(console=ERRORS, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def progressed(label: str, share: float) -> None:
            if label not in tasks:
                tasks[label] = progress.add_task(f"simulating {label}", total=1.0)
            progress.update(tasks[label], completed=share)

        return check(plan, progressed)


@plan_app.callback(invoke_without_command=True)
def plan(
    context: typer.Context,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Plan file (YAML) or plan.lock.json.")] = None,
    as_json: AsJson = False,
    simulate: Simulate = True,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report here.")] = None,
    lock: Annotated[
        Path | None, typer.Option("--lock", help="Write all inputs, constants and versions here (plan.lock.json).")
    ] = None,
) -> None:
    """Size a fleet for a plan file and say in one line what to deploy and what it costs."""
    if context.invoked_subcommand is not None:
        return
    with exits():
        if file is None:
            raise ConfigError("give a plan file: baton plan -f plan.yaml")
        found, checks = _plan(file), list[Checked]()
        if simulate:
            found, checks = _checked(found, as_json)
        if lock is not None:
            locking.write(found, lock)
        if html is not None:
            from planner.capacity import report

            day: Day | None = simulate_day(found) if simulate else None
            report.write(found, html, day)
        if as_json:
            record = plan_record(found) | {"simulated": [check_record(each) for each in checks]}
            typer.echo(json.dumps(record, indent=2))
            return
        CONSOLE.print(found.headline(), style="bold", markup=False, highlight=False, soft_wrap=True)
        for each in tables(found, CONSOLE.width):
            CONSOLE.print(each)
        if checks:
            CONSOLE.print(check_table(checks))
        for line in assumptions(found):
            CONSOLE.print(f"assumed: {line}", style="dim", markup=False, highlight=False, soft_wrap=True)


@plan_app.command()
def emit(
    file: PlanFile,
    spec: Annotated[Path | None, typer.Option("--spec", help="Write the cluster spec here.")] = None,
    values: Annotated[Path | None, typer.Option("--values", help="Write Helm values here.")] = None,
    mode: Annotated[
        Mode | None, typer.Option("--mode", help="The best plan of this mode, not the best of all.")
    ] = None,
    simulate: Simulate = False,
) -> None:
    """Write the chosen plan as a cluster spec and as Helm values; without an option, print the values."""
    with exits():
        found = _plan(file)
        if simulate:
            found, _ = _checked(found, False)
        chosen = _chosen(found, mode)
        if spec is not None:
            spec.write_text(_yaml(emitting.cluster_spec(found.problem, chosen), found, chosen))
        text = _yaml(emitting.helm_values(found.problem, chosen), found, chosen)
        if values is not None:
            values.write_text(text)
        if spec is None and values is None:
            typer.echo(text, nl=False)


def _chosen(plan: Plan, mode: Mode | None) -> Candidate:
    chosen = plan.best if mode is None else plan.best_of(mode)
    if chosen is None:
        raise ConfigError(f"--mode {mode.value if mode else ''}: no plan of this mode keeps the objectives")
    return chosen


def _yaml(tree: dict[str, Any], plan: Plan, chosen: Candidate) -> str:
    head = f"# {chosen.label}: {chosen.gpus} GPUs, ${chosen.cost.usd_month:,.0f} a month. Written by baton plan emit.\n"
    given = plan.problem.spec.name
    if (name := kubernetes_name(given)) != given:
        head += f"# The plan's name {given} is {name} here, as Kubernetes takes names.\n"
    return head + yaml.safe_dump(tree, sort_keys=False)


@plan_app.command()
def explain(file: PlanFile, as_json: AsJson = False) -> None:
    """Show the milliseconds and dollars of the chosen plan, term by term."""
    with exits():
        found = _plan(file)
        best, problem = found.best, found.problem
        parts = {
            "decode step": (explaining.decode_step(best), "s"),
            "first token of a mean prompt": (explaining.prefill(best, problem), "s"),
            "dollars a month": (explaining.dollars(best, problem), "usd"),
        }
        if as_json:
            record = {
                name: [{"term": each.name, unit: each.value, "share": each.share} for each in terms]
                for name, (terms, unit) in parts.items()
            }
            typer.echo(json.dumps({"fleet": best.label} | record, indent=2))
            return
        CONSOLE.print(found.headline(), style="bold", markup=False, highlight=False, soft_wrap=True)
        batch = f"{best.load.batch_size:.1f} requests, {best.pools[-1].worker.context:,.0f} tokens of context each"
        for name, (terms, unit) in parts.items():
            shown = Table(title=f"{name} ({batch})" if name == "decode step" else name, title_justify="left")
            shown.add_column("term")
            shown.add_column("ms" if unit == "s" else "$", justify="right")
            shown.add_column("share", justify="right")
            for each in terms:
                value = f"{1e3 * each.value:.3f}" if unit == "s" else f"{each.value:,.0f}"
                shown.add_row(each.name, value, f"{100 * each.share:.1f} %")
            total = sum(each.value for each in terms)
            shown.add_row("total", f"{1e3 * total:.3f}" if unit == "s" else f"{total:,.0f}", "")
            CONSOLE.print(shown)
