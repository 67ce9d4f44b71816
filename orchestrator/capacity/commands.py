"""``baton plan``, ``baton whatif`` and ``baton calibrate``: what they print, write, and exit with.

``baton`` mounts them with ``app.add_typer(plan_app, name="plan")``, ``app.command("whatif")(whatif)`` and
``app.command("calibrate")(calibrate)``. Exit 2: bad input. Exit 3: no plan keeps the objectives; the binding limit
is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cluster.errors import ConfigError, PlacementInfeasible
from cluster.hardware import gpu as gpu_named
from orchestrator.capacity import emit as emitting
from orchestrator.capacity import explain as explaining
from orchestrator.capacity import lock as locking
from orchestrator.capacity.calibrate import calibrate as fit_scales
from orchestrator.capacity.check import Checked, Day, check, simulate_day
from orchestrator.capacity.live_points import measure
from orchestrator.capacity.measured import read_points
from orchestrator.capacity.planner import Candidate, Plan, plan_for
from orchestrator.capacity.resolve import resolve
from orchestrator.capacity.spec import Mode, PlanSpec, load
from orchestrator.capacity.view import assumptions, plan_record, seconds, table
from orchestrator.capacity.whatif import (
    HELD_LEVERS,
    MOST,
    BreakingPoint,
    Lever,
    Resized,
    breaking_point,
    resize,
)

EXIT_BAD_INPUT = 2
EXIT_INFEASIBLE = 3

plan_app = typer.Typer(help="Plan capacity: how many GPUs, at what cost, and why.", no_args_is_help=False)
_out = Console(soft_wrap=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)

PlanFile = Annotated[Path, typer.Option("--file", "-f", help="Plan file (YAML) or plan.lock.json.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
Simulate = Annotated[bool, typer.Option("--simulate/--no-simulate", help="Check the finalists in the simulator.")]


@contextmanager
def _exits() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        _err.print(f"baton: {error}", style="red", markup=False)
        raise typer.Exit(EXIT_BAD_INPUT) from error
    except PlacementInfeasible as error:
        limit = error.ids.get("limit", "unknown")
        _err.print(f"baton: {error.message}; binding limit: {limit}", style="red", markup=False)
        raise typer.Exit(EXIT_INFEASIBLE) from error


def _plan(path: Path) -> Plan:
    if path.suffix == ".json":
        found, differences = locking.reproduce(path)
        for line in differences:
            _err.print(f"not as locked: {line}", markup=False)
        return found
    return plan_for(resolve(load(path)))


def _checked(plan: Plan, quiet: bool) -> tuple[Plan, list[Checked]]:
    if quiet:
        return check(plan)
    with Progress(console=_err, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def told(label: str, share: float) -> None:
            if label not in tasks:
                tasks[label] = progress.add_task(f"simulating {label}", total=1.0)
            progress.update(tasks[label], completed=share)

        return check(plan, told)


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
    with _exits():
        if file is None:
            raise ConfigError("give a plan file: baton plan -f plan.yaml")
        found, checks = _plan(file), list[Checked]()
        if simulate:
            found, checks = _checked(found, as_json)
        if lock is not None:
            locking.write(found, lock)
        if html is not None:
            from orchestrator.capacity import report

            day: Day | None = simulate_day(found) if simulate else None
            report.write(found, html, day)
        if as_json:
            record = plan_record(found) | {"simulated": [_check_record(each) for each in checks]}
            typer.echo(json.dumps(record, indent=2))
            return
        _out.print(found.headline(), style="bold", markup=False, highlight=False, soft_wrap=True)
        _out.print(table(found))
        if checks:
            _out.print(_check_table(checks))
        for line in assumptions(found):
            _out.print(f"assumed: {line}", style="dim", markup=False, highlight=False, soft_wrap=True)


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
    with _exits():
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
    return head + yaml.safe_dump(tree, sort_keys=False)


@plan_app.command()
def explain(file: PlanFile, as_json: AsJson = False) -> None:
    """Show the milliseconds and dollars of the chosen plan, term by term."""
    with _exits():
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
        _out.print(found.headline(), style="bold", markup=False, highlight=False, soft_wrap=True)
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
            _out.print(shown)


def whatif(
    file: PlanFile,
    vary: Annotated[Lever, typer.Option("--vary", help="What to change.")] = Lever.TRACE_LENGTH,
    factors: Annotated[
        str, typer.Option("--factors", help="Values, comma-separated: times the plan's, or shares for prefix_hit.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Change the workload: the fleet sized again, and the fleet held until something breaks."""
    with _exits():
        found = plan_for(resolve(load(file)))
        rows = resize(found.problem, vary, _factors(factors, vary))
        held = [breaking_point(found.best, found.problem, lever) for lever in HELD_LEVERS]
        if as_json:
            typer.echo(json.dumps(_whatif_record(found, vary, rows, held), indent=2))
            return
        _out.print(found.headline(), style="bold", markup=False, highlight=False, soft_wrap=True)
        _out.print(_whatif_table(found, vary, rows))
        for point in held:
            name = point.lever.value.replace("_", " ")
            text = (
                f"fleet held, {name}: nothing breaks up to {MOST:g} times"
                if not point.limit
                else f"fleet held, {name}: {point.limit} breaks first, at {point.factor:.2f} times"
            )
            _out.print(text, markup=False, highlight=False)


def _factors(text: str, lever: Lever) -> list[float]:
    if not text:
        return {
            Lever.PREFIX_HIT: [0.0, 0.25, 0.5, 0.75, 0.9],
            Lever.BUDGET: [0.25, 0.5, 1.0, 1.5, 2.0],
            Lever.SPREAD: [0.0, 0.5, 1.0, 1.5, 2.0],
        }.get(lever, [0.5, 1.0, 1.5, 2.0, 4.0])
    try:
        return [float(each) for each in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--factors={text!r}: expected numbers with commas between") from error


def _whatif_record(plan: Plan, lever: Lever, rows: list[Resized], held: list[BreakingPoint]) -> dict[str, Any]:
    return {
        "answer": plan.headline(),
        "vary": lever.value,
        "resized": [
            {
                "factor": each.factor,
                "clipped_share": each.clipped_share,
                "fleet": each.plan.best.label if each.plan else None,
                "gpus": each.plan.best.gpus if each.plan else None,
                "usd_month": each.plan.best.cost.usd_month if each.plan else None,
                "usd_per_query": each.plan.best.cost.usd_per_query if each.plan else None,
                "reason": each.reason,
            }
            for each in rows
        ],
        "held": [{"lever": each.lever.value, "factor": each.factor, "limit": each.limit} for each in held],
    }


def _whatif_table(plan: Plan, lever: Lever, rows: list[Resized]) -> Table:
    shown = Table(title=f"Sized again as {lever.value.replace('_', ' ')} changes", title_justify="left")
    unit = {"prefix_hit": "share", "budget": "x p95"}.get(lever.value, "times")
    for name in (unit, "fleet", "GPUs", "$/month", "against the plan", "$/query", "E2E p95", "binds"):
        shown.add_column(name, overflow="fold")
    if lever is Lever.BUDGET:
        shown.add_column("traces clipped")
    base = plan.best.cost.usd_month
    for each in rows:
        clipped = [f"{100 * each.clipped_share:.1f} %"] if lever is Lever.BUDGET else []
        if each.plan is None:
            shown.add_row(f"{each.factor:g}", f"none: {each.reason}", "", "", "", "", "", "", *clipped)
            continue
        best = each.plan.best
        change = best.cost.usd_month / base - 1 if base else 0.0
        shown.add_row(
            f"{each.factor:g}",
            best.label,
            str(best.gpus),
            f"{best.cost.usd_month:,.0f}",
            f"{100 * change:+.0f} %",
            f"{best.cost.usd_per_query:.4f}",
            seconds(best.e2e.p95_s),
            best.limit,
            *clipped,
        )
    return shown


def calibrate(
    file: PlanFile,
    points: Annotated[
        list[Path] | None, typer.Argument(help="Measured points: our records, guidellm, aiperf, vLLM bench serve.")
    ] = None,
    held_back: Annotated[list[Path] | None, typer.Option("--held-back", help="Points to check on, not fitted.")] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="Kind of GPU measured; the plan's first if left out.")] = "",
    tp: Annotated[int, typer.Option("--tp", help="GPUs of the worker measured.", min=1)] = 1,
    url: Annotated[str, typer.Option("--url", help="Measure this OpenAI-compatible server in place of files.")] = "",
    loads: Annotated[
        str, typer.Option("--loads", help="With --url: clients:input:output, comma-separated.")
    ] = "1:128:64,1:512:64,2:128:64,2:512:128,4:256:128,4:512:64",
    out: Annotated[Path | None, typer.Option("--out", help="Write the plan file with the factors here.")] = None,
) -> None:
    """Fit three factors (compute, memory, overhead) to measured points, and say what they gain on others."""
    with _exits():
        spec = load(file)
        problem = resolve(spec.model_copy(update={"engine": spec.engine.model_copy(update={"scales": _PLAIN})}))
        kind = next((each for each in problem.gpus if each.name == gpu), None)
        kind = kind or (gpu_named(gpu) if gpu else problem.gpus[0])
        measured = read_points(points or [])
        if url:
            name = problem.model.name
            measured += [measure(url, name, *each) for each in _loads(loads)]
        found = fit_scales(problem, kind, tp, measured, read_points(held_back or []))
        scales = found.scales
        _out.print(
            f"compute x{scales.compute:.3f}, memory x{scales.memory:.3f}, overhead x{scales.overhead:.3f} "
            f"from {found.trained} points",
            style="bold",
            highlight=False,
        )
        _out.print(
            f"on {found.held_back} points held back: TPOT error {found.before.tpot:.1%} -> {found.after.tpot:.1%}, "
            f"TTFT error {found.before.ttft:.1%} -> {found.after.ttft:.1%}",
            highlight=False,
        )
        if out is not None:
            tree = spec.model_dump(mode="json", exclude_unset=True)
            tree.setdefault("engine", {})["scales"] = scales.model_dump(mode="json")
            out.write_text(yaml.safe_dump(tree, sort_keys=False))


_PLAIN = PlanSpec.model_fields["engine"].default.scales


def _loads(text: str) -> list[tuple[int, int, int]]:
    found = []
    for each in text.split(","):
        try:
            clients, isl, osl = (int(part) for part in each.split(":"))
        except ValueError as error:
            raise ConfigError(f"--loads: {each!r}: expected clients:input:output") from error
        found.append((clients, isl, osl))
    return found


def _check_record(checked: Checked) -> dict[str, Any]:
    return {
        "fleet": checked.candidate.label,
        "requests": checked.requests,
        "added_workers": checked.added_workers,
        "broken": list(checked.broken),
        **{
            name: {"p50_s": each.p50_s, "p95_s": each.p95_s, "p99_s": each.p99_s}
            for name, each in (
                ("ttft", checked.ttft),
                ("ttfat", checked.ttfat),
                ("itl", checked.itl),
                ("e2e", checked.e2e),
            )
        },
    }


def _check_table(checks: list[Checked]) -> Table:
    shown = Table(title="Finalists in the simulator, at the peak (p50/p95/p99)", title_justify="left")
    for name in ("fleet", "TTFT", "TTFAT", "ITL", "E2E", "requests", "objectives"):
        shown.add_column(name, overflow="fold")
    for each in checks:
        kept = "kept" if not each.broken else f"missed: {', '.join(each.broken)}"
        added = f" after {each.added_workers} more workers" if each.added_workers else ""
        triples = [
            "/".join(seconds(value) for value in (latency.p50_s, latency.p95_s, latency.p99_s))
            for latency in (each.ttft, each.ttfat, each.itl, each.e2e)
        ]
        shown.add_row(each.candidate.label, *triples, str(each.requests), kept + added)
    return shown


__all__ = ["calibrate", "plan_app", "whatif"]
