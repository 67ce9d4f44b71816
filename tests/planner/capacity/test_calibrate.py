from dataclasses import replace

import pytest

from cluster.errors import ConfigError
from cluster.hardware.catalogue import gpu
from planner.capacity.calibrate import calibrate, errors, predict
from planner.capacity.measured import Point
from planner.capacity.spec import ScalesPlan

from .plans import problem

ASKED, KIND = problem(), gpu("H100-SXM")
LOADS = [(1, 128, 128), (4, 512, 256), (8, 2048, 256), (16, 1024, 512), (32, 512, 512), (2, 4096, 128)]
SHAPES = [Point(clients, isl, osl, 1.0, 1.0) for clients, isl, osl in LOADS]


def _made(scales: ScalesPlan, noise: float = 0.0) -> list[Point]:
    times = predict(ASKED, KIND, 2, scales, SHAPES)
    return [
        replace(shape, tpot_s=tpot * (1 + noise * (-1) ** i), ttft_s=ttft * (1 - noise * (-1) ** i))
        for i, (shape, (tpot, ttft)) in enumerate(zip(SHAPES, times, strict=True))
    ]


@pytest.mark.parametrize("truth", [(1.0, 1.0, 1.0), (1.6, 1.2, 0.8), (0.7, 2.0, 3.0)])
def test_the_factors_that_made_the_points_come_back(truth: tuple[float, float, float]) -> None:
    scales = ScalesPlan(compute=truth[0], memory=truth[1], overhead=truth[2])
    found = calibrate(ASKED, KIND, 2, _made(scales), _made(scales))
    assert (found.scales.compute, found.scales.memory, found.scales.overhead) == pytest.approx(truth, rel=0.1)
    assert found.after.tpot < 0.02 and found.after.ttft < 0.02
    assert found.after.tpot <= found.before.tpot + 1e-3


def test_noise_does_not_throw_it_off_and_points_are_held_back() -> None:
    found = calibrate(ASKED, KIND, 2, _made(ScalesPlan(memory=1.5), noise=0.05))
    assert (found.trained, found.held_back) == (4, 2)
    assert found.after.tpot < 0.15 < found.before.tpot
    assert found.scales.source


def test_a_calibrated_plan_predicts_with_its_factors() -> None:
    made = _made(ScalesPlan(memory=1.5))
    assert errors(ASKED, KIND, 2, ScalesPlan(memory=1.5), made).tpot == pytest.approx(0, abs=1e-9)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        calibrate(ASKED, KIND, 2, _made(ScalesPlan())[:2])
