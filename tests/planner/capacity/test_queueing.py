import math

import numpy as np
import pytest

from planner.capacity.queueing import Wait, erlang_c

ONE = np.ones(1)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9, 0.99])
def test_one_server_is_m_m_1(load: float) -> None:
    wait = Wait.before(1, load, 1.0, service_cv=1.0)
    assert wait.mean_s == pytest.approx(load / (1 - load), rel=1e-9)
    # P(W > t) = rho exp(-(1 - rho) t)
    for probability in (0.95, 0.99):
        exact = max(0.0, math.log(load / (1 - probability)) / (1 - load))
        assert wait.quantile_with(probability, [0.0], ONE) == pytest.approx(exact, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_fixed_service_is_m_d_1(load: float) -> None:
    assert Wait.before(1, load, 1.0, 0.0).mean_s == pytest.approx(load / (2 * (1 - load)), rel=1e-9)


def test_erlang_c_matches_tables() -> None:
    # Erlang C for 2 servers at 1 erlang is 1/3; 5 at 4 is 0.5541; 10 at 8 is 0.4092.
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(5, 4.0) == pytest.approx(0.5541, abs=1e-4)
    assert erlang_c(10, 8.0) == pytest.approx(0.4092, abs=1e-4)
    assert erlang_c(3, 3.0) == 1.0
    assert erlang_c(3, 0.0) == 0.0


def test_an_overloaded_queue_never_ends() -> None:
    assert Wait.before(2, 3.0, 1.0, 1.0).quantile_with(0.5, [1.0], ONE) == math.inf


def test_the_sum_of_wait_and_service_matches_a_draw() -> None:
    rng = np.random.default_rng(0)
    points, weights = np.array([0.1, 0.5, 2.0]), np.array([0.6, 0.3, 0.1])
    wait = Wait(chance=0.4, tail_s=1.5)
    drawn = np.where(rng.random(400_000) < 0.4, rng.exponential(1.5, 400_000), 0.0)
    drawn += rng.choice(points, 400_000, p=weights)
    for probability in (0.5, 0.95, 0.99):
        exact = float(np.quantile(drawn, probability))
        assert wait.quantile_with(probability, points, weights) == pytest.approx(exact, rel=0.02)


def test_more_servers_and_less_spread_wait_less() -> None:
    waits = [Wait.before(servers, 1.8, 1.0, 1.0).mean_s for servers in (2, 3, 4, 8)]
    assert waits == sorted(waits, reverse=True)
    spread = [Wait.before(2, 1.8, 1.0, cv).mean_s for cv in (0.0, 0.5, 1.0, 2.0)]
    assert spread == sorted(spread)
