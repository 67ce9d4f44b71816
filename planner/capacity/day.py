"""A simulated day of the chosen fleet, for the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.capacity.check import draw, fleet, simulation_of
from planner.capacity.plan import Plan

DAY_REQUESTS = 12_000


@dataclass(frozen=True, eq=False)
class Day:
    """A simulated day.

    Args:
        time_h: Hours.
        rate_per_s: Arrivals at that hour.
        running: Requests in flight.
        queued: Requests waiting.
        caption: What was simulated.
    """

    time_h: Sequence[float]
    rate_per_s: Sequence[float]
    running: Sequence[float]
    queued: Sequence[float]
    caption: str


def day_shape(peak_to_mean: float) -> Callable[[float], float]:
    """Rate over the peak at a share of the day: a raised cosine to the power that gives this ratio.

    Example:
        >>> shape = day_shape(2.0)
        >>> shape(0.5), round(shape(0.0), 6)
        (1.0, 0.0)
    """
    grid = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(480) + 0.5) / 480)
    low, high = 0.0, 200.0
    for _ in range(60):
        power = 0.5 * (low + high)
        if float((grid**power).mean()) > 1.0 / peak_to_mean:
            low = power
        else:
            high = power
    return lambda share: (0.5 - 0.5 * math.cos(2 * math.pi * share)) ** power


def simulate_day(plan: Plan, progress: Callable[[float], None] | None = None) -> Day:
    """A day of the chosen fleet, the clock run faster where a whole day holds too many requests to simulate."""
    problem, best = plan.problem, plan.best
    workload = problem.spec.workload
    peak = workload.peak_rate_per_s
    length_s = min(86400.0, max(DAY_REQUESTS / workload.mean_rate_per_s, 12 * best.e2e.p95_s))
    shape, rng = day_shape(workload.peak_to_mean), np.random.default_rng(problem.spec.simulate.seed)
    # Thinning: arrivals at the peak rate, each kept with the chance that the hour gives it.
    raw = np.cumsum(rng.exponential(1.0 / peak, int(peak * length_s * 1.05) + 10))
    raw = raw[raw < length_s]
    kept = raw[rng.random(raw.size) < np.array([shape(float(each / length_s)) for each in raw])]
    run = simulation_of(problem, fleet(problem, best), draw(problem, kept, problem.spec.simulate.seed), progress)
    run.sample_s = length_s / 288
    timeline = run.run().timeline
    inside = timeline["time_s"] <= length_s
    hours = timeline["time_s"][inside] / length_s * 24.0
    faster = 86400.0 / length_s
    clock = "" if faster < 1.01 else f", the day run {faster:.0f} times as fast"
    return Day(
        time_h=hours.tolist(),
        rate_per_s=[peak * shape(float(each / 24.0)) for each in hours],
        running=timeline["in_flight"][inside].tolist(),
        queued=timeline["queued"][inside].tolist(),
        caption=f"{len(kept):,} simulated requests on {best.label}{clock}.",
    )
