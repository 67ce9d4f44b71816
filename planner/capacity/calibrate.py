"""Fit three factors to a few measured points: on compute, on memory, on overhead; checked on points held back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.errors import ConfigError
from cluster.hardware.catalogue import GpuSpec
from decode_workers.cost import DecodeCost
from planner.capacity.closed_loop import LoadGenerator, closed_loop
from planner.capacity.least_squares import Vector, fit
from planner.capacity.measured import Point
from planner.capacity.resolve import Problem, scaled_constants
from planner.capacity.spec import ScalesPlan

FEWEST_POINTS = 3
_BOUND = math.log(15.0)
_PRIOR = 0.05
"""Weight of staying at 1: a factor that the points say nothing about does not wander."""


@dataclass(frozen=True)
class Errors:
    """Mean absolute relative error.

    Args:
        tpot: Of the time per output token.
        ttft: Of the time to first token.
    """

    tpot: float
    ttft: float


@dataclass(frozen=True)
class Calibration:
    """What a fit found.

    Args:
        scales: Factors on compute, memory and overhead times.
        trained: Points fitted.
        held_back: Points kept out.
        before: Error on the points held back without the factors.
        after: Same with them.
    """

    scales: ScalesPlan
    trained: int
    held_back: int
    before: Errors
    after: Errors


def _cost(problem: Problem, gpu: GpuSpec, tp: int, scales: ScalesPlan) -> DecodeCost:
    return DecodeCost(
        problem.model,
        gpu,
        scaled_constants(problem.engine, scales),
        tp,
        kv_dtype_bytes=problem.kv_dtype_bytes,
        expert_parallel=problem.spec.hardware.expert_parallel,
        memory_utilisation=problem.spec.engine.memory_utilisation,
        speculation=problem.speculation,
    )


def predict(
    problem: Problem, gpu: GpuSpec, tp: int, scales: ScalesPlan, points: Sequence[Point]
) -> list[tuple[float, float]]:
    """Predicted (TPOT, TTFT) seconds of each point on one colocated worker."""
    cost, generator = _cost(problem, gpu, tp, scales), LoadGenerator("closed loop", 0.8, 0.3)
    found = []
    for point in points:
        estimate = closed_loop(cost, point.clients, point.isl_tokens, point.osl_tokens, generator, problem.chunk_tokens)
        found.append((estimate.tpot_s, estimate.ttft_s))
    return found


def errors(problem: Problem, gpu: GpuSpec, tp: int, scales: ScalesPlan, points: Sequence[Point]) -> Errors:
    """Mean error over some points."""
    predicted = predict(problem, gpu, tp, scales, points)
    tpot = [abs(each[0] / point.tpot_s - 1) for each, point in zip(predicted, points, strict=True)]
    ttft = [abs(each[1] / point.ttft_s - 1) for each, point in zip(predicted, points, strict=True)]
    return Errors(float(np.mean(tpot)), float(np.mean(ttft)))


def calibrate(
    problem: Problem, gpu: GpuSpec, tp: int, points: Sequence[Point], held_back: Sequence[Point] = ()
) -> Calibration:
    """Fit the factors.

    Args:
        problem: Model and engine; its own factors are ignored.
        gpu: Kind of GPU measured.
        tp: GPUs of the worker measured.
        points: Points to fit; where none is held back, every third is.
        held_back: Points to check on.
    Raises:
        ConfigError: fewer than three points to fit.
    """
    trained, checked = list(points), list(held_back)
    if not checked:
        checked = trained[2::3]
        trained = [point for i, point in enumerate(trained) if i % 3 != 2]
    if len(trained) < FEWEST_POINTS:
        raise ConfigError(f"calibrate: {len(trained)} points to fit, expected at least {FEWEST_POINTS}")
    plain = ScalesPlan()

    def scales(point: Vector) -> ScalesPlan:
        compute, memory, overhead = (float(each) for each in np.exp(point))
        return ScalesPlan(compute=compute, memory=memory, overhead=overhead)

    def residuals(point: Vector) -> Vector:
        values = []
        predicted = predict(problem, gpu, tp, scales(point), trained)
        for (tpot_s, ttft_s), each in zip(predicted, trained, strict=True):
            values += [math.log(tpot_s / each.tpot_s), 0.5 * math.log(ttft_s / each.ttft_s)]
        return np.concatenate([values, _PRIOR * point])

    found = fit(residuals, [0.0] * 3, [-_BOUND] * 3, [_BOUND] * 3, soft_limit=0.2)
    fitted = scales(found)
    source = f"{len(trained)} points on {tp}x {gpu.name}"
    named = fitted.model_copy(update={"source": source})
    return Calibration(
        scales=named,
        trained=len(trained),
        held_back=len(checked),
        before=errors(problem, gpu, tp, plain, checked) if checked else Errors(math.nan, math.nan),
        after=errors(problem, gpu, tp, named, checked) if checked else Errors(math.nan, math.nan),
    )
