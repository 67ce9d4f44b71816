"""The HTML report of a plan: the answer, the table, the plots and the terms, in one file without links."""

from __future__ import annotations

import base64
from importlib.resources import files
from pathlib import Path

import jinja2

from planner.capacity import explain, plots
from planner.capacity.day import Day
from planner.capacity.plan import Plan
from planner.capacity.view import assumptions, seconds, shown
from planner.capacity.whatif import HELD_LEVERS, Lever, breaking_point, resize

FACTORS = [0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]


def render(plan: Plan, day: Day | None = None) -> str:
    """The report as HTML.

    Args:
        plan: The answer.
        day: A simulated day of the chosen fleet, for the timeline; left out without one.
    Raises:
        ConfigError: matplotlib is not installed.
    """
    problem, best = plan.problem, plan.best
    rows = resize(problem, Lever.TRACE_LENGTH, FACTORS)
    drawn = [
        ("Cost and latency", "Every fleet that keeps the objectives; lower left is better.", plots.pareto(plan)),
        ("Lengths", "Share of requests up to a length; sizing uses all of it, never the mean.", plots.lengths(plan)),
        (
            "Cost against trace length",
            "The fleet sized again as traces grow; dashed: no plan.",
            plots.cost_by_trace(rows),
        ),
    ]
    if day is not None:
        image = plots.timeline(day.time_h, day.rate_per_s, day.running, day.queued)
        drawn.append(("A simulated day", day.caption, image))
    template = jinja2.Environment(autoescape=True).from_string(
        files("planner.capacity").joinpath("report.html").read_text()
    )
    workload, lengths = problem.spec.workload, problem.lengths
    return template.render(
        name=problem.spec.name,
        answer=plan.headline(),
        model=f"{problem.model.name} ({problem.model.precision.value})",
        engine=problem.engine.engine,
        rate=workload.mean_rate_per_s,
        peak=workload.peak_rate_per_s,
        osl_mean=lengths.osl.mean,
        osl_p95=lengths.osl.quantile(0.95),
        context=lengths.in_flight_context_tokens,
        candidates=shown(plan),
        s=seconds,
        plots=[(title, caption, base64.b64encode(image).decode()) for title, caption, image in drawn],
        explained=[
            ("A decode step, by term", "s", explain.decode_step(best)),
            ("First token of a mean prompt, by term", "s", explain.prefill(best, problem)),
            ("Dollars a month, by term", "usd", explain.dollars(best, problem)),
        ],
        breaking=[breaking_point(best, problem, lever) for lever in HELD_LEVERS],
        assumed=assumptions(plan),
    )


def write(plan: Plan, path: Path, day: Day | None = None) -> None:
    """Write the report."""
    path.write_text(render(plan, day))
