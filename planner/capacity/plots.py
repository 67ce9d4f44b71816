"""Plots of a plan as PNG bytes. matplotlib is loaded only here, when a report is asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.errors import ConfigError
from planner.capacity.plan import Plan
from planner.capacity.spec import Mode
from planner.capacity.whatif import Resized

# Okabe-Ito, distinguishable for colour-blind readers too; each series has its own marker or line besides.
COLOURS = {"blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00", "grey": "#777777"}
_MODES = {
    Mode.COLOCATED: (COLOURS["orange"], "s", "colocated"),
    Mode.DISAGGREGATED: (COLOURS["blue"], "o", "P/D, one kind of GPU"),
    Mode.MIXED_GPUS: (COLOURS["green"], "^", "P/D, two kinds"),
}


def _figure(width: float = 7.2, height: float = 4.0) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "the HTML report draws with matplotlib, which is not installed: pip install matplotlib"
        ) from error
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def pareto(plan: Plan) -> bytes:
    """Cost against latency of every plan found, with the front."""
    figure, axes = _figure()
    for mode, (colour, marker, label) in _MODES.items():
        part = [each for each in plan.candidates if each.mode is mode]
        if part:
            axes.scatter(
                [each.cost.usd_month / 1e3 for each in part],
                [each.e2e.p95_s for each in part],
                color=colour, marker=marker, s=26, alpha=0.75, label=label, linewidths=0,
            )  # fmt: skip
    front = plan.pareto
    axes.step(
        [each.cost.usd_month / 1e3 for each in front], [each.e2e.p95_s for each in front],
        where="post", color=COLOURS["grey"], linewidth=1.2, label="Pareto front",
    )  # fmt: skip
    best = plan.best
    axes.scatter(
        [best.cost.usd_month / 1e3], [best.e2e.p95_s],
        facecolors="none", edgecolors="black", s=130, linewidths=1.4, label="chosen",
    )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel("thousand $ a month")
    axes.set_ylabel("end to end p95, s")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def lengths(plan: Plan) -> bytes:
    """Cumulative distributions of input, reasoning and answer lengths."""
    figure, axes = _figure()
    parts = (
        ("input", plan.problem.lengths.isl, COLOURS["grey"], ":"),
        ("reasoning", plan.problem.lengths.reasoning, COLOURS["blue"], "-"),
        ("answer", plan.problem.lengths.answer, COLOURS["orange"], "--"),
    )
    for name, part, colour, style in parts:
        if part.mean <= 0:
            continue
        chance = np.linspace(0.002, 0.998, 400)
        values = [max(1.0, part.quantile(float(each))) for each in chance]
        label = f"{name}: mean {part.mean:,.0f}, p95 {part.quantile(0.95):,.0f}"
        axes.plot(values, chance, style, color=colour, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("share of requests at most this long")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def cost_by_trace(rows: Sequence[Resized], what: str = "trace length") -> bytes:
    """Cost of the fleet sized again against a lever; crosses where no plan exists."""
    figure, axes = _figure()
    good = [each for each in rows if each.plan is not None]
    axes.plot(
        [each.factor for each in good],
        [each.plan.best.cost.usd_month / 1e3 for each in good if each.plan is not None],
        "o-", color=COLOURS["blue"],
    )  # fmt: skip
    for each in good:
        assert each.plan is not None
        axes.annotate(
            f"{each.plan.best.gpus} GPUs", (each.factor, each.plan.best.cost.usd_month / 1e3),
            textcoords="offset points", xytext=(0, -14), fontsize=7, ha="center",
        )  # fmt: skip
    for each in rows:
        if each.plan is None:
            axes.axvline(each.factor, color=COLOURS["red"], linestyle="--", linewidth=1)
    axes.set_xlabel(f"{what}, times the plan's")
    axes.set_ylabel("thousand $ a month")
    axes.margins(x=0.06, y=0.15)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    return _png(figure)


def timeline(
    time_h: Sequence[float], rate_per_s: Sequence[float], running: Sequence[float], queued: Sequence[float]
) -> bytes:
    """A simulated day: arrivals, running and waiting requests by hour."""
    figure, axes = _figure()
    axes.plot(time_h, running, "-", color=COLOURS["blue"], label="running requests")
    axes.plot(time_h, queued, "--", color=COLOURS["red"], label="waiting requests")
    axes.set_xlabel("hour of the simulated day")
    axes.set_ylabel("requests")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 24)
    right = axes.twinx()
    right.plot(time_h, rate_per_s, ":", color=COLOURS["grey"], label="arrivals a second")
    right.set_ylabel("arrivals a second")
    right.set_ylim(bottom=0)
    right.spines[["top"]].set_visible(False)
    handles = [*axes.get_lines(), *right.get_lines()]
    axes.legend(handles, [line.get_label() for line in handles], frameon=False, fontsize=8, loc="upper left")
    axes.margins(y=0.25)
    return _png(figure)
