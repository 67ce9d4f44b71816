"""``baton whatif``: the workload, its price or its GPUs changed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.errors import ConfigError
from cluster.hardware.catalogue import catalogue
from planner.capacity.console import CONSOLE, AsJson, PlanFile, exits
from planner.capacity.plan import Plan
from planner.capacity.planner import plan_for
from planner.capacity.resolve import resolve
from planner.capacity.spec import load
from planner.capacity.view import seconds
from planner.capacity.whatif import (
    HELD_LEVERS,
    MOST,
    BreakingPoint,
    Lever,
    Resized,
    breaking_point,
    resize,
    resize_gpus,
)


def whatif(
    file: PlanFile,
    vary: Annotated[Lever, typer.Option("--vary", help="What to change.")] = Lever.TRACE_LENGTH,
    factors: Annotated[
        str,
        typer.Option(
            "--factors", help="Values, comma-separated: times the plan's; shares for prefix_hit; names for gpu."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Change the workload: the fleet sized again, and the fleet held until something breaks."""
    with exits():
        found = plan_for(resolve(load(file)))
        if vary is Lever.GPU:
            names = [each.strip() for each in factors.split(",")] if factors else list(catalogue())
            rows = resize_gpus(found.problem, names)
        else:
            rows = resize(found.problem, vary, _factors(factors, vary))
        held = [breaking_point(found.best, found.problem, lever) for lever in HELD_LEVERS]
        if as_json:
            typer.echo(json.dumps(_whatif_record(found, vary, rows, held), indent=2))
            return
        CONSOLE.print(found.headline(), style="bold", markup=False, highlight=False, soft_wrap=True)
        CONSOLE.print(_whatif_table(found, vary, rows))
        for point in held:
            name = point.lever.value.replace("_", " ")
            text = (
                f"fleet held, {name}: nothing breaks up to {MOST:g} times"
                if not point.limit
                else f"fleet held, {name}: {point.limit} breaks first, at {point.factor:.2f} times"
            )
            CONSOLE.print(text, markup=False, highlight=False)


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
                "factor": each.value,
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


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _whatif_table(plan: Plan, lever: Lever, rows: list[Resized]) -> Table:
    shown = Table(title=f"Sized again as {lever.value.replace('_', ' ')} changes", title_justify="left")
    unit = {"prefix_hit": "share", "budget": "x p95", "gpu": "GPU"}.get(lever.value, "times")
    for name in (unit, "fleet", "GPUs", "$/month", "against the plan", "$/query", "E2E p95", "binds"):
        shown.add_column(name, overflow="fold")
    if lever is Lever.BUDGET:
        shown.add_column("traces clipped")
    base = plan.best.cost.usd_month
    for each in rows:
        clipped = [f"{100 * each.clipped_share:.1f} %"] if lever is Lever.BUDGET else []
        if each.plan is None:
            shown.add_row(_shown(each.value), f"none: {each.reason}", "", "", "", "", "", "", *clipped)
            continue
        best = each.plan.best
        change = best.cost.usd_month / base - 1 if base else 0.0
        shown.add_row(
            _shown(each.value),
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
