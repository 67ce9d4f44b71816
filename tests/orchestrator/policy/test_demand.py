"""The demand forecast against what is known, its band, and the need for prefill against queueing theory."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.policy.capacity import WorkerCapacity
from orchestrator.policy.demand import DemandForecaster
from orchestrator.policy.forecast_band import ForecastBand
from orchestrator.policy.prefill_need import LATE_SHARE, prefill_workers_needed
from orchestrator.policy.scaling import Arrival, FinishedRequest, InFlight


def capacity(step_s: float = 0.02) -> WorkerCapacity:
    return WorkerCapacity(100_000, lambda batch, context: step_s, lambda tokens: tokens / 10_000, 0.05)


def test_forecast_of_a_steady_load() -> None:
    """Exponential lengths at a steady rate: KV 60 s ahead is what Little's law gives."""
    rng = np.random.default_rng(0)
    forecaster = DemandForecaster(capacity(), ttft_s=2.0, horizons_s=(0.0, 60.0))
    times = np.cumsum(rng.exponential(0.1, 12_000))
    lengths = np.maximum(1, rng.exponential(1000, 12_000)).astype(int)
    ends = times + lengths * 0.02
    demands = []
    for now_s in range(5, 1000, 5):
        came = (times > now_s - 5) & (times <= now_s)
        gone = (ends > now_s - 5) & (ends <= now_s)
        alive = np.flatnonzero((times <= now_s) & (ends > now_s))
        flights = [InFlight(int(i), "a", 0, 500, int((now_s - times[i]) / 0.02), "d", "decoding") for i in alive]
        arrived = [Arrival(float(times[i]), "a", 500) for i in np.flatnonzero(came)]
        finished = [FinishedRequest(int(i), "a", 500, 0, 0, int(lengths[i]), 0.1, 1.0) for i in np.flatnonzero(gone)]
        demands.append(forecaster.look(float(now_s), flights, arrived, finished, 1))
    last = demands[-1]
    expected = 10 * 1000 * 0.02 * (500 + 1000)
    assert last.request_tokens_per_s == pytest.approx(50, rel=0.02)
    assert last.arrivals_per_s == pytest.approx(10, rel=0.1)
    assert np.mean([each.band_mean_tokens for each in demands[60:]]) == pytest.approx(expected, rel=0.05)
    assert last.band_low_tokens < last.band_mean_tokens < last.band_high_tokens
    assert last.kv_high_tokens[1] > last.band_mean_tokens
    assert 0.85 <= forecaster.band.covered / forecaster.band.judged <= 0.95


@pytest.mark.parametrize("scale", [0.02, 0.2])
def test_band_comes_to_cover_nine_in_ten_whatever_the_errors(scale: float) -> None:
    rng, band, inside = np.random.default_rng(1), ForecastBand(), []
    outcomes = 100 * np.exp(scale * rng.standard_t(4, 6000))
    for step in range(6000):
        low, high = band.look(float(step), float(outcomes[step]), 100.0, 1.0)
        if step < 5999:
            inside.append(low * 100 <= outcomes[step + 1] <= high * 100)
    assert np.mean(inside[1000:]) == pytest.approx(0.9, abs=0.02)


def test_prefill_need_is_between_the_work_and_the_worst_second() -> None:
    rng = np.random.default_rng(2)
    times = np.sort(rng.uniform(0, 600, 6000))
    work = rng.exponential(0.15, 6000)
    need = prefill_workers_needed(times, work, 600.0, 2.0)
    assert 1.5 * 0.95 < need < 3.0
    assert prefill_workers_needed(times, 2 * work, 600.0, 2.0) > 1.8 * need
    assert prefill_workers_needed(times, work, 600.0, 0.5) > need


def test_prefill_need_keeps_the_share_in_time() -> None:
    """Fed to a first-come-first-served server of that speed, only about that share is late."""
    rng = np.random.default_rng(3)
    times, work = np.sort(rng.uniform(0, 1200, 12_000)), rng.exponential(0.1, 12_000)
    need = prefill_workers_needed(times, work, 1200.0, 2.0)
    free, late = 0.0, 0
    for time, each in zip(times, work, strict=True):
        free = max(free, time) + each / need
        late += free - each / need - time > 2.0 - each
    assert late / 12_000 <= LATE_SHARE * 1.3


def test_prompts_no_pool_could_serve_in_time_do_not_ask_for_one() -> None:
    times = np.arange(0.0, 100.0, 10.0)
    assert prefill_workers_needed(times, np.full(10, 5.0), 100.0, 2.0) < 1.5


def test_capacity_follows_the_objective_and_what_is_measured() -> None:
    slow = WorkerCapacity(100_000, lambda batch, context: 1e-6 * context, lambda tokens: 0.1, 0.05)
    assert slow.kv_tokens(1000) == pytest.approx(50_000, rel=1e-3)
    for _ in range(200):
        slow.observe_step(10, 20_000, 0.04)
    assert slow.correction == pytest.approx(2.0, rel=0.01)
    assert slow.kv_tokens(1000) == pytest.approx(25_000, rel=0.02)
    assert capacity().kv_tokens(1000) == 100_000
