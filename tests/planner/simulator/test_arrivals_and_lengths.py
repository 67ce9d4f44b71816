"""Arrival processes, length distributions and the histogram of gaps: the laws that they keep for every shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from planner.simulator.arrivals import Gaps, Profile, arrivals, bridge
from planner.simulator.gaps import GapHistogram
from planner.simulator.lengths import Fixed, LogNormal, Mixture, Quantiles, normal_cdf, sample, sample_pair

shapes = st.builds(Gaps, st.sampled_from(["gamma", "weibull", "poisson"]), st.floats(0.3, 8))
scores = st.lists(st.floats(-6, 6), min_size=2, max_size=20).map(sorted)


# --- arrivals -------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(shapes, st.integers(0, 300), st.floats(0, 1e5), st.floats(0.1, 1e4), st.integers(0, 99))
def test_a_bridge_has_its_count_inside_its_window(
    gaps: Gaps, count: int, start_s: float, length_s: float, seed: int
) -> None:
    times = bridge(gaps, count, start_s, length_s, np.random.default_rng(seed))
    assert len(times) == count
    assert (np.diff(times) >= 0).all()
    assert ((times >= start_s) & (times <= start_s + length_s)).all()


@settings(max_examples=30)
@given(shapes, st.floats(0.1, 50), st.floats(1, 200), st.integers(0, 99))
def test_arrivals_rise_within_the_time_and_follow_from_the_seed(
    gaps: Gaps, rate_per_s: float, duration_s: float, seed: int
) -> None:
    first, again = (
        arrivals(gaps, Profile.steady(rate_per_s), duration_s, np.random.default_rng(seed)) for _ in range(2)
    )
    assert np.array_equal(first, again)
    assert (np.diff(first) >= 0).all()
    assert ((first >= 0) & (first < duration_s)).all()


def test_nobody_comes_where_the_rate_is_nothing() -> None:
    profile = Profile((0.0, 50.0, 50.001, 100.0), (10.0, 10.0, 0.0, 0.0))
    times = arrivals(Gaps(), profile, 100.0, np.random.default_rng(0))
    assert len(times) > 300
    assert times.max() < 50.1
    assert not len(arrivals(Gaps(), Profile.steady(0.0), 100.0, np.random.default_rng(0)))


@given(st.floats(0.05, 20), st.sampled_from(["gamma", "weibull"]))
def test_a_shape_below_one_bursts_and_one_above_is_more_even(shape: float, kind: str) -> None:
    cv = Gaps(kind, shape).cv  # type: ignore[arg-type]
    assert (cv > 1) == (shape < 1) or shape == pytest.approx(1)


@given(st.floats(0.1, 100), st.floats(0, 1), st.integers(1, 3))
def test_a_daily_wave_has_the_mean_it_was_given(mean_per_s: float, swing: float, days: int) -> None:
    profile = Profile.diurnal(mean_per_s, swing, days=days)
    times, rates = np.array(profile.times_s), np.array(profile.rates_per_s)
    assert np.trapezoid(rates, times) / times[-1] == pytest.approx(mean_per_s, rel=1e-6)
    assert times[-1] == 86_400 * days
    assert rates.max() == pytest.approx(mean_per_s * (1 + swing), rel=1e-3)
    assert profile.scaled(2.0).rates_per_s == pytest.approx(2 * rates)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gaps("gamma", 0.0), "shape > 0"),
        (lambda: Gaps("pareto"), "expected poisson, gamma or weibull"),  # type: ignore[arg-type]
        (lambda: Profile((), ()), "as many times as rates"),
        (lambda: Profile((0.0, 1.0), (1.0,)), "as many times as rates"),
        (lambda: Profile((0.0,), (-1.0,)), "rates >= 0"),
        (lambda: Profile((1.0, 1.0), (1.0, 2.0)), "expected rising times"),
        (lambda: Profile.diurnal(1.0, 1.1), r"arrivals\.swing=1\.1: expected 0 to 1"),
        (lambda: arrivals(Gaps(), Profile.steady(1), 0.0, np.random.default_rng(0)), r"duration_s=0\.0: expected > 0"),
    ],
)
def test_arrivals_that_cannot_be_are_named(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]


# --- lengths --------------------------------------------------------------------------------------------------------

normals = st.builds(LogNormal, st.floats(1, 1e5), st.floats(0, 3))
mixtures = st.lists(st.tuples(st.floats(0.01, 1), normals), min_size=1, max_size=3).map(lambda ps: Mixture(tuple(ps)))
tables = st.lists(st.floats(0, 1e5), min_size=2, max_size=9).map(lambda values: Quantiles(tuple(sorted(values))))


@settings(max_examples=60)
@given(st.one_of(normals, mixtures, tables), scores)
def test_a_higher_score_is_never_a_shorter_length(lengths: LogNormal | Mixture | Quantiles, at: list[float]) -> None:
    tokens = lengths.at(np.array(at))
    assert tokens.dtype == np.int64
    assert (np.diff(tokens) >= 0).all()
    if not isinstance(lengths, Quantiles):
        assert tokens.min() >= 1


@given(normals)
def test_the_middle_score_is_the_median(lengths: LogNormal) -> None:
    middle = int(lengths.at(np.zeros(1))[0])
    expected = min(max(round(lengths.median_tokens), lengths.min_tokens), lengths.max_tokens)
    assert abs(middle - expected) <= 1


@settings(max_examples=40)
@given(normals)
def test_a_mixture_of_one_is_that_one(lengths: LogNormal) -> None:
    at = np.linspace(-2.5, 2.5, 11)
    mixed = Mixture(((1.0, lengths),)).at(at)
    np.testing.assert_allclose(mixed, lengths.at(at), rtol=0.02, atol=1)


@given(st.lists(st.floats(-8, 8), max_size=9))
def test_the_normal_distribution_is_symmetric(at: list[float]) -> None:
    score = np.array(at)
    np.testing.assert_allclose(normal_cdf(score) + normal_cdf(-score), 1.0)


@pytest.mark.parametrize("correlation", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_pairs_have_the_correlation_asked_for(correlation: float) -> None:
    one, two = sample_pair(LogNormal(1000, 0.5), LogNormal(1000, 0.5), correlation, 20_000, np.random.default_rng(0))
    found = np.corrcoef(np.log(one), np.log(two))[0, 1]
    assert found == pytest.approx(correlation, abs=0.03)


def test_fixed_lengths_are_fixed() -> None:
    assert set(sample(Fixed(9), 50, np.random.default_rng(0)).tolist()) == {9}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mixture(()), "lengths.mixture"),
        (lambda: Mixture(((0.0, LogNormal(1, 1)),)), "not all 0"),
        (lambda: Mixture(((-1.0, LogNormal(1, 1)), (2.0, LogNormal(1, 1)))), "weights >= 0"),
        (lambda: Quantiles((1.0,)), "at least two rising values"),
        (lambda: Quantiles((2.0, 1.0)), "rising values"),
    ],
)
def test_lengths_that_cannot_be_are_named(make: object, words: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=words):
        make()  # type: ignore[operator]


# --- gaps -----------------------------------------------------------------------------------------------------------

gap_runs = st.lists(st.tuples(st.floats(1e-5, 100), st.floats(1, 50)), min_size=1, max_size=20)


def histogram(rows: list[tuple[float, float]]) -> GapHistogram:
    found = GapHistogram()
    for gap_s, count in rows:
        found.add(gap_s, count)
    return found


@given(gap_runs, st.floats(0.01, 1))
def test_quantiles_are_within_a_bin_of_the_exact_ones(rows: list[tuple[float, float]], share: float) -> None:
    found = histogram(rows)
    assert found.mean_s == pytest.approx(sum(gap_s * count for gap_s, count in rows) / sum(n for _, n in rows))
    total = sum(count for _, count in rows)

    def exact_s(target: float) -> float:
        seen = 0.0
        for gap_s, count in sorted(rows):
            seen += count
            if seen >= target:
                return gap_s
        return max(gap_s for gap_s, _ in rows)

    # Sums in another order may land on the other side of a tie.
    low_s, high_s = exact_s(share * total * (1 - 1e-9)), exact_s(share * total * (1 + 1e-9))
    assert low_s * 0.989 <= found.quantile_s(share) <= high_s * 1.011


@given(gap_runs, gap_runs)
def test_merging_is_adding_all(one: list[tuple[float, float]], two: list[tuple[float, float]]) -> None:
    merged = histogram(one)
    merged.merge(histogram(two))
    together = histogram([*one, *two])
    assert merged.counts == pytest.approx(together.counts)
    assert merged.mean_s == pytest.approx(together.mean_s)
    assert merged.total == pytest.approx(together.total)


@given(st.floats(1e-5, 10), st.floats(1e-5, 10), st.floats(1, 1e4))
def test_a_run_of_gaps_is_counted_whole_whichever_way_it_goes(one_s: float, two_s: float, count: float) -> None:
    up, down = GapHistogram(), GapHistogram()
    up.add_run(one_s, two_s, count)
    down.add_run(two_s, one_s, count)
    assert sum(up.counts) == pytest.approx(count, rel=1e-6)
    assert up.counts == pytest.approx(down.counts)
    assert up.mean_s == pytest.approx((one_s + two_s) / 2)
    low_s, high_s = sorted((one_s, two_s))
    assert low_s * 0.98 <= up.quantile_s(0.5) <= high_s * 1.02


@given(gap_runs)
def test_the_share_above_falls_with_the_limit(rows: list[tuple[float, float]]) -> None:
    found = histogram(rows)
    shares = [found.share_above(limit_s) for limit_s in (1e-6, 1e-3, 0.1, 10, 1e4)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0
    assert all(0 <= share <= 1 + 1e-9 for share in shares)


def test_no_gaps_have_no_figures() -> None:
    empty = GapHistogram()
    assert (empty.mean_s, empty.quantile_s(0.5), empty.share_above(0.0)) == (0, 0, 0)
    assert math.isfinite(empty.quantile_s(1.0))
