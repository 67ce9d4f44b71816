"""A plan's demand out of a trace file: rate, peak, spread of gaps and lengths, as plain figures of the plan.

What the plan says itself goes before what the trace says. The figures stand in the plan afterwards, so that a lock file
holds them and needs no trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from cluster.errors import ConfigError
from planner.capacity.trace_plan import TracePlan
from planner.simulator.block import TraceBlock
from planner.simulator.fit import fit_gaps
from planner.simulator.trace_formats import summary
from planner.simulator.workload import Ints, Workload

_HOUR_S = 3600.0
_GAPS = 200_000
_SHARES = [*(round(index / 100, 2) for index in range(100)), 0.995, 0.999, 1.0]


def with_trace(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A plan's mapping with the figures of its ``workload.trace``, where it names one.

    Raises:
        ConfigError: the trace cannot be read, or says no rate and nor does the plan.
    """
    workload = tree.get("workload")
    if not isinstance(workload, dict) or workload.get("trace") is None:
        return tree
    named = workload["trace"]
    try:
        plan = TracePlan.model_validate(named)
    except pydantic.ValidationError:
        # The check of the whole plan names the key.
        return tree
    said = {name: value for name, value in workload.items() if value is not None}
    if plan.summary:
        return tree
    figures, summary = demand(plan, folder, needs_rate=not {"rate_per_s", "users"} & said.keys())
    if "users" in said:
        figures.pop("rate_per_s", None)
    trace = plan.model_copy(update={"summary": summary}).model_dump(exclude_none=True)
    return tree | {"workload": figures | said | {"trace": trace}}


def demand(plan: TracePlan, folder: Path, *, needs_rate: bool) -> tuple[dict[str, Any], list[str]]:
    """Figures of a trace in the keys of a plan's workload, and sentences that say what was read.

    Raises:
        ConfigError: the trace cannot be read, or has no times and a rate is needed.
    """
    values = plan.model_dump(exclude={"summary"}, exclude_none=True)
    block = TraceBlock.model_validate(values)
    reading = block.read_any(folder)
    workload = reading.workload
    figures: dict[str, Any] = {}
    span_s = float(workload.arrival_s[-1] - workload.arrival_s[0])
    notes = list(summary.lines(reading))
    if reading.timed and span_s > 0:
        figures["rate_per_s"] = (len(workload) - 1) / span_s
        figures["arrival_cv"] = min(10.0, round(fit_gaps(workload.arrival_s[:_GAPS])[0].cv, 3))
        figures["peak_to_mean"] = _peak_to_mean(workload, span_s)
        if span_s < 2 * _HOUR_S:
            notes.append("the trace is shorter than two hours: peak_to_mean is 1 unless the plan says it")
    elif needs_rate:
        raise ConfigError(f"{folder / plan.path}: holds no span of time: say workload.rate_per_s or users")
    for key, tokens in (
        ("input_tokens", workload.isl_tokens),
        ("reasoning_tokens", workload.reasoning_tokens),
        ("answer_tokens", workload.answer_tokens),
    ):
        figures[key] = _length(tokens)
    if (share := summary.shared_share(workload)) is not None and share > 0:
        notes.append(f"prefix_hit_share is not taken from it: a cache without end would find {share:.0%}")
    return figures, notes


def _peak_to_mean(workload: Workload, span_s: float) -> float:
    hours = int(span_s // _HOUR_S)
    if hours < 2:
        return 1.0
    # Whole hours only: the last, begun one would be a short sample.
    counts = np.histogram(workload.arrival_s - workload.arrival_s[0], hours, (0.0, hours * _HOUR_S))[0]
    return max(1.0, round(float(counts.max() / counts.mean()), 4))


def _length(tokens: Ints) -> Mapping[str, Any]:
    if not tokens.any():
        return {"mean": 0}
    values = np.quantile(tokens, _SHARES)
    return {"quantiles": dict(zip(_SHARES, (float(value) for value in values), strict=True))}
