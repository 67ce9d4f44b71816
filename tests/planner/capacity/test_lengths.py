import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from planner.capacity.lengths import LengthDistribution, RequestLengths

means = st.floats(1, 50_000)
spreads = st.floats(0, 2.5)


@settings(deadline=None)
@given(means, spreads)
def test_a_lognormal_has_the_moments_asked_for(mean: float, cv: float) -> None:
    lengths = LengthDistribution.lognormal(mean, cv)
    assert lengths.mean == pytest.approx(mean, rel=1e-6)
    assert lengths.cv == pytest.approx(cv, abs=0.02 * max(1, cv))


def test_quantiles_of_a_lognormal() -> None:
    lengths = LengthDistribution.lognormal(1000, 1)
    sigma = np.sqrt(np.log(2))
    for probability, z in ((0.5, 0.0), (0.95, 1.6449), (0.99, 2.3263)):
        exact = 1000 * np.exp(sigma * z - sigma**2 / 2)
        assert lengths.quantile(probability) == pytest.approx(exact, rel=0.01)


@settings(deadline=None)
@given(means, spreads, st.floats(0.1, 3))
def test_spread_keeps_the_mean_and_orders_the_second_moment(mean: float, cv: float, factor: float) -> None:
    lengths = LengthDistribution.lognormal(mean, cv)
    moved = lengths.spread(factor)
    assert moved.mean == pytest.approx(mean, rel=1e-6)
    if factor >= 1:
        assert moved.moment(2) >= lengths.moment(2) * (1 - 1e-9)
    else:
        assert moved.moment(2) <= lengths.moment(2) * (1 + 1e-9)


def test_no_spread_at_all_is_one_length() -> None:
    assert LengthDistribution.lognormal(700, 1.5).spread(0).cv == pytest.approx(0, abs=1e-6)


@settings(deadline=None)
@given(means, spreads, means, spreads)
def test_a_sum_adds_means_and_variances(mean: float, cv: float, other_mean: float, other_cv: float) -> None:
    one, other = LengthDistribution.lognormal(mean, cv), LengthDistribution.lognormal(other_mean, other_cv)
    total = one.plus(other)
    variance = (mean * one.cv) ** 2 + (other_mean * other.cv) ** 2
    assert total.mean == pytest.approx(mean + other_mean, rel=1e-6)
    assert (total.mean * total.cv) ** 2 == pytest.approx(variance, rel=0.02, abs=(0.02 * total.mean) ** 2)


def test_a_cap_clips_and_says_how_many() -> None:
    lengths = LengthDistribution.lognormal(4000, 1.1)
    budget = lengths.quantile(0.95)
    assert lengths.share_above(budget) == pytest.approx(0.05, abs=0.01)
    assert lengths.capped(budget).values[-1] == budget
    assert lengths.capped(budget).mean < lengths.mean


def test_in_flight_context_is_length_biased() -> None:
    fixed = RequestLengths(*(LengthDistribution.lognormal(mean, 0) for mean in (1000, 0, 2000)))
    assert fixed.in_flight_context_tokens == pytest.approx(2000)
    wide = RequestLengths(
        LengthDistribution.lognormal(1000, 0), LengthDistribution.lognormal(0, 0), LengthDistribution.lognormal(2000, 1)
    )
    # E[O^2] / (2 E[O]) = mean (1 + cv^2) / 2
    assert wide.in_flight_context_tokens == pytest.approx(1000 + 2000, rel=0.01)
    assert wide.in_flight_context_square > wide.in_flight_context_tokens**2


def test_in_flight_context_matches_a_simulation() -> None:
    rng = np.random.default_rng(0)
    lengths = RequestLengths(
        *(LengthDistribution.lognormal(mean, cv) for mean, cv in ((800, 1), (3000, 1.2), (400, 0.5)))
    )
    osl = rng.choice(lengths.osl.values, 400_000, p=lengths.osl.weights)
    isl = rng.choice(lengths.isl.values, 400_000, p=lengths.isl.weights)
    chosen = rng.choice(osl.size, 400_000, p=osl / osl.sum())
    context = isl + osl[chosen] * rng.random(400_000)
    assert context.mean() == pytest.approx(lengths.in_flight_context_tokens, rel=0.02)
    assert (context**2).mean() == pytest.approx(lengths.in_flight_context_square, rel=0.06)


def test_quantile_tables_and_samples() -> None:
    table = LengthDistribution.from_quantiles({0: 0, 0.5: 100, 1: 1000})
    assert table.quantile(0.5) == pytest.approx(100, rel=0.02)
    assert table.mean == pytest.approx(0.5 * 50 + 0.5 * 550, rel=0.01)
    samples = np.random.default_rng(1).lognormal(6, 1, 20_000)
    found = LengthDistribution.from_samples(samples)
    assert found.values.size < 1000
    assert found.mean == pytest.approx(samples.mean())
    assert found.quantile(0.95) == pytest.approx(np.quantile(samples, 0.95), rel=0.02)


def test_bad_lengths_are_reported() -> None:
    for bad in ({0.5: 1.0}, {0: 2.0, 1: 1.0}, {-1: 1.0, 1: 2.0}):
        with pytest.raises(ConfigError, match="quantiles"):
            LengthDistribution.from_quantiles(bad)
    with pytest.raises(ConfigError, match="mean"):
        LengthDistribution.lognormal(-1)
    with pytest.raises(ConfigError, match="no request"):
        LengthDistribution.from_samples([])
