"""Survival curves against closed forms, against Kaplan-Meier, and as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.survival import BINS, EDGES, Curves, bin_of, exposure

rates = st.lists(st.floats(1e-6, 0.1), min_size=BINS, max_size=BINS)
lengths = st.floats(0.0, 200_000.0)


@given(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=20))
def test_exposure_is_the_length_of_the_interval(pairs: list[tuple[float, float]]) -> None:
    start, end = np.array([min(pair) for pair in pairs]), np.array([max(pair) for pair in pairs])
    spent = exposure(np.arange(len(pairs)), start, end, len(pairs))
    np.testing.assert_allclose(spent.sum(axis=1), end - start, rtol=1e-9, atol=1e-6)
    outside = (np.append(EDGES[1:], np.inf) <= start[:, None]) | (end[:, None] <= EDGES)
    assert (spent[outside] == 0).all()
    together = exposure(np.zeros(len(pairs), np.int64), start, end, 1)
    np.testing.assert_allclose(together[0], spent.sum(axis=0), rtol=1e-9, atol=1e-6)


@given(rates, st.lists(lengths, min_size=2, max_size=10))
@settings(deadline=None)
def test_survival_falls_from_one(values: list[float], points: list[float]) -> None:
    curves, more = Curves.of(np.array([values])), np.sort(np.array(points))
    zero = np.zeros(len(more), np.int64)
    alive = curves.survival(zero, np.zeros(len(more)), more)
    assert (alive <= 1.0 + 1e-12).all()
    assert (np.diff(alive) <= 1e-12).all()
    assert float(curves.survival(zero[:1], np.array([123.0]), np.array([0.0]))[0]) == 1.0


@given(rates, lengths, st.floats(0.05, 0.95))
@settings(deadline=None)
def test_quantile_is_where_survival_says(values: list[float], made: float, share: float) -> None:
    curves, zero, at = Curves.of(np.array([values])), np.array([0]), np.array([made])
    left = curves.quantile_left(zero, at, share)
    assert float(curves.survival(zero, at, left)[0]) == pytest.approx(1 - share, rel=1e-6)


@given(rates, st.floats(0.0, 50_000.0))
@settings(deadline=None, max_examples=25)
def test_mean_left_is_the_area_under_survival(values: list[float], made: float) -> None:
    curves, zero = Curves.of(np.array([values])), np.array([0])
    # Even steps in summed hazard: between two of them survival falls by 2 %, in whatever bin.
    shares = 1 - np.exp(-np.linspace(0, 20, 1001))
    grid = np.array([float(curves.quantile_left(zero, np.array([made]), share)[0]) for share in shares])
    grid = np.unique(np.concatenate((grid, np.clip(EDGES - made, 0, grid[-1]))))
    alive = curves.survival(np.zeros(len(grid), np.int64), np.full(len(grid), made), grid)
    area = float(np.trapezoid(alive, grid))
    assert float(curves.mean_left(zero, np.array([made]))[0]) == pytest.approx(area, rel=2e-3, abs=1e-3)


def test_bins_of_edges() -> None:
    assert (bin_of(EDGES) == np.arange(BINS)).all()
    assert bin_of(np.array([15.99, 1e9])).tolist() == [0, BINS - 1]
