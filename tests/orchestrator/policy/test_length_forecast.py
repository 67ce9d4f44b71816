"""The length forecast: what it converges to, censoring, forgetting, new classes, and what it costs in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.length_forecast import LengthForecaster, LengthSettings
from orchestrator.policy.survival import Curves, bin_of


def finished(forecaster: LengthForecaster, key: str, lengths: np.ndarray) -> None:
    count = len(lengths)
    classes = np.full(count, forecaster.class_of(key))
    forecaster.observe(classes, np.zeros(count), lengths.astype(float), np.ones(count, bool))


def kaplan_meier(lengths: np.ndarray, ended: np.ndarray, at: float) -> float:
    alive = 1.0
    for time in np.unique(lengths[ended]):
        if time > at:
            break
        alive *= 1 - (ended & (lengths == time)).sum() / (lengths >= time).sum()
    return alive


def test_agrees_with_kaplan_meier_on_censored_lengths() -> None:
    rng = np.random.default_rng(0)
    true, limit = rng.lognormal(6.5, 0.8, 4000), rng.uniform(50, 6000, 4000)
    seen, ended = np.minimum(true, limit), true <= limit
    forecaster = LengthForecaster()
    classes = np.full(4000, forecaster.class_of("a"))
    forecaster.observe(classes, np.zeros(4000), seen, ended)
    curves = forecaster.curves()
    for at in (100.0, 300.0, 700.0, 1500.0, 3000.0):
        ours = float(curves.survival(np.array([0]), np.zeros(1), np.array([at]))[0])
        assert ours == pytest.approx(kaplan_meier(seen, ended, at), abs=0.03)


def test_running_requests_are_not_taken_for_short_ones() -> None:
    """All have made 500 tokens, half of them ended there: the rest go on."""
    forecaster = LengthForecaster()
    key = forecaster.class_of("a")
    ended = np.arange(2000) < 1000
    forecaster.observe(np.full(2000, key), np.zeros(2000), np.full(2000, 500.0), ended)
    assert float(forecaster.curves().survival(np.array([key]), np.zeros(1), np.array([480.0]))[0]) > 0.5
    assert forecaster.quantile_left("a", 0, 0.9) > 500


def test_piecewise_progress_counts_as_one_life() -> None:
    """Looks in between change nothing: exposure adds up."""
    at_once, by_looks = LengthForecaster(), LengthForecaster()
    finished(at_once, "a", np.array([1000.0]))
    key = np.array([by_looks.class_of("a")])
    for start in range(0, 1000, 100):
        by_looks.observe(key, np.array([float(start)]), np.array([start + 100.0]), np.array([start == 900]))
    np.testing.assert_allclose(at_once.curves().rates, by_looks.curves().rates, rtol=1e-9)


def test_old_traffic_is_forgotten() -> None:
    rng = np.random.default_rng(1)
    forecaster = LengthForecaster()
    for step in range(120):
        forecaster.advance(step * 10.0)
        finished(forecaster, "a", rng.exponential(300, 100) if step < 60 else rng.exponential(3000, 100))
    assert forecaster.mean_left("a", 0) == pytest.approx(3000, rel=0.15)


def test_a_change_of_pace_shows_before_anyone_got_there() -> None:
    """Thirty seconds of requests that do not end as they used to stretch lengths that none of them has reached."""
    rng = np.random.default_rng(2)
    forecaster = LengthForecaster()
    for step in range(60):
        forecaster.advance(step * 10.0)
        finished(forecaster, "a", rng.exponential(1000, 100))
    before = forecaster.mean_left("a", 2000)
    key = np.full(300, forecaster.class_of("a"))
    forecaster.advance(630.0)
    forecaster.observe(key, np.zeros(300), np.full(300, 800.0), rng.random(300) < 0.15)
    assert forecaster.mean_left("a", 2000) > 1.3 * before


def test_a_new_class_begins_with_what_is_known_of_all() -> None:
    forecaster = LengthForecaster(LengthSettings(prior_mean_tokens=1000))
    assert forecaster.mean_left("nobody", 0) == pytest.approx(1000, rel=0.01)
    finished(forecaster, "a", np.random.default_rng(3).exponential(4000, 5000))
    assert forecaster.mean_left("new", 0) == pytest.approx(4000, rel=0.1)
    finished(forecaster, "new", np.random.default_rng(6).exponential(100, 400))
    assert forecaster.mean_left("new", 0) < 300


def test_probability_to_finish_in_time() -> None:
    forecaster = LengthForecaster()
    finished(forecaster, "a", np.random.default_rng(4).exponential(1000, 20_000))
    probability = forecaster.finish_probability("a", 500, within_s=20.0, tokens_per_s=50.0)
    assert probability == pytest.approx(1 - np.exp(-1), abs=0.03)


def test_memory_grows_with_classes_not_with_requests() -> None:
    forecaster = LengthForecaster()

    def cells() -> int:
        return sum(memory.tokens.size + memory.ends.size for memory in forecaster._memories)

    finished(forecaster, "a", np.random.default_rng(5).exponential(1000, 10))
    before = cells()
    for _ in range(50):
        finished(forecaster, "a", np.random.default_rng(5).exponential(1000, 1000))
    assert cells() == before
    finished(forecaster, "b", np.ones(1))
    assert cells() == 2 * before


@given(st.lists(st.floats(1.0, 100_000.0), min_size=1, max_size=30), st.floats(0.0, 100_000.0))
@settings(deadline=None)
def test_whatever_was_seen_the_curve_is_one(lengths: list[float], made: float) -> None:
    forecaster = LengthForecaster()
    finished(forecaster, "a", np.array(lengths))
    curves = forecaster.curves()
    assert isinstance(curves, Curves)
    assert np.isfinite(curves.rates).all()
    assert (curves.rates > 0).all()
    assert forecaster.mean_left("a", made) > 0
    assert 0 <= forecaster.quantile_left("a", made, 0.5) <= forecaster.quantile_left("a", made, 0.9)
    assert int(bin_of(np.array([made]))[0]) >= 0
