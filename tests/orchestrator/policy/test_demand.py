"""The demand forecast against what is known, its band, and the need for prefill against queueing theory."""

from __future__ import annotations

import pickle

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.demand import DemandForecaster
from orchestrator.policy.forecast_band import ForecastBand
from orchestrator.policy.prefill_need import LATE_SHARE, PromptWindow
from orchestrator.policy.scaling_policy import Arrival, FinishedRequest, InFlight
from orchestrator.policy.survival import Floats
from orchestrator.policy.worker_capacity import WorkerCapacity


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
        demands.append(forecaster.observe(float(now_s), flights, arrived, finished, 1))
    last = demands[-1]
    expected = 10 * 1000 * 0.02 * (500 + 1000)
    assert last.request_tokens_per_s == pytest.approx(50, rel=0.02)
    assert last.arrivals_per_s == pytest.approx(10, rel=0.1)
    assert np.mean([each.band_mean_tokens for each in demands[60:]]) == pytest.approx(expected, rel=0.05)
    assert last.band_low_tokens < last.band_mean_tokens < last.band_high_tokens
    assert last.kv_high_tokens[1] > last.band_mean_tokens
    assert forecaster.band.covered / forecaster.band.judged >= 0.85  # a quarter of an hour is too short for more


def covered(band: ForecastBand, outcomes: Floats, ahead: int = 1) -> npt.NDArray[np.bool_]:
    """Whether each outcome was in the band about a forecast of 100 made ``ahead`` looks before."""
    bands = [band.observe(float(step), float(actual), 100.0, float(ahead)) for step, actual in enumerate(outcomes)]
    low, high = 100 * np.array(bands[:-ahead]).T
    return (low <= outcomes[ahead:]) & (outcomes[ahead:] <= high)


@pytest.mark.parametrize("scale", [0.02, 0.2])
def test_band_comes_to_cover_nine_in_ten_whatever_the_errors(scale: float) -> None:
    outcomes = 100 * np.exp(scale * np.random.default_rng(1).standard_t(4, 6000))
    assert covered(ForecastBand(), outcomes)[1000:].mean() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_band_covers_errors_that_wander_and_are_judged_late(seed: int) -> None:
    """Errors that last a minute, judged a minute later, with a level that jumps every twenty minutes."""
    rng, error, errors = np.random.default_rng(seed), 0.0, []
    for tick in range(2880):
        error = 0.92 * error + 0.03 * rng.standard_normal()
        errors.append(error + (0.4 if tick % 240 < 12 and tick > 200 else 0.0))
    assert 0.87 <= covered(ForecastBand(), 100 * np.exp(np.array(errors)), ahead=12).mean() <= 0.95


@given(st.lists(st.floats(1.0, 1e4), min_size=50, max_size=300), st.integers(1, 15))
@settings(deadline=None)
def test_band_is_about_one_and_finite_and_counts_each_outcome_once(outcomes: list[float], ahead: int) -> None:
    band = ForecastBand(step=0.05)
    for step, actual in enumerate(outcomes):
        low, high = band.observe(float(step), actual, 100.0, float(ahead))
        assert 0.0 < low < 1.0 < high < float("inf")
    assert band.judged == max(0, len(outcomes) - ahead)
    assert 0 <= band.covered <= band.judged


def test_a_wrong_forecast_widens_the_band_and_right_ones_narrow_it_again() -> None:
    band = ForecastBand(window=200)
    for step in range(400):
        narrow = band.observe(float(step), 100.0, 100.0, 1.0)
    for step in range(400, 420):
        wide = band.observe(float(step), 150.0, 100.0, 1.0)
    for step in range(420, 1200):
        again = band.observe(float(step), 100.0, 100.0, 1.0)
    assert wide[1] > 1.49 > 1.1 > narrow[1]
    assert again[1] < 1.1


def prefill_workers_needed(times: Floats, work: Floats, now_s: float, ttft_s: float) -> float:
    window = PromptWindow(ttft_s=ttft_s, keep_s=now_s)
    for time_s, work_s in zip(times.tolist(), work.tolist(), strict=True):
        window.add(time_s, work_s)
    return window.workers_needed(now_s, now_s)


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


def test_a_worker_takes_no_more_than_its_batch_limit() -> None:
    bounded = WorkerCapacity(100_000, lambda batch, context: 0.02, lambda tokens: 0.1, 0.05, max_num_seqs=16)
    assert bounded.kv_tokens(1000.0) == pytest.approx(16_500, rel=1e-3)
    assert bounded.kv_tokens(10_000.0) == 100_000
    assert bounded.tokens_per_s(1000.0) == pytest.approx(50.0)


@given(st.integers(1, 20), st.integers(1, 20_000))
def test_a_worker_is_as_large_at_an_idle_moment(busy_ticks: int, context_tokens: int) -> None:
    batch_bound = WorkerCapacity(10**9, lambda batch, context: 1e-3 * batch, lambda tokens: 0.1, 0.05)
    forecaster = DemandForecaster(batch_bound, ttft_s=2.0, horizons_s=(0.0, 80.0))
    for tick in range(busy_ticks):
        flights = [InFlight(i, "a", 0, context_tokens, 0, "d", "prefilling") for i in range(50)]
        busy = forecaster.observe(5.0 * tick + 5.0, flights, [], [], 1)
    assert busy.worker_kv_tokens == pytest.approx(50.5 * context_tokens, rel=0.05)
    idle = forecaster.observe(5.0 * busy_ticks + 5.0, [], [], [], 1)
    assert idle.worker_kv_tokens == pytest.approx(busy.worker_kv_tokens)


def test_a_backlog_of_prompts_asks_for_kv_only_as_it_is_read() -> None:
    """Prompts of 0.1 s: two workers come to a hundred of them within five seconds, and to all within 85."""

    def high(waiting: int, readers: int, phase: str = "queued") -> tuple[float, ...]:
        flights = [InFlight(i, "a", 0, 1000, 0, None, phase) for i in range(waiting)]
        forecaster = DemandForecaster(capacity(), ttft_s=2.0, horizons_s=(0.0, 80.0))
        return forecaster.observe(5.0, flights, [], [], 1, readers).kv_high_tokens

    assert high(1000, 2)[0] == pytest.approx(100_000, rel=0.05)
    assert high(1000, 2)[1] == high(1000, 0)[1]
    assert high(90, 2) == high(90, 0)
    assert high(1000, 0)[0] == high(1000, 2, "decoding")[0] == 1_000_000


def decode_step_s(batch: int, context: int) -> float:
    return 0.02


def prompt_s(tokens: int) -> float:
    return tokens / 10_000


def bytes_held(tenants: int, *after_ticks: int) -> list[int]:
    """Sizes of a forecaster that serves twenty new requests at each tick, 100 in flight at a time."""
    forecaster = DemandForecaster(
        WorkerCapacity(100_000, decode_step_s, prompt_s, 0.05), ttft_s=2.0, horizons_s=(0.0, 80.0)
    )
    sizes = []
    for tick in range(max(after_ticks)):
        now_s, first = 5.0 * (tick + 1), 20 * tick
        flights = [
            InFlight(i, f"t{i % tenants}", 0, 500, 50 * (tick - i // 20 + 1), "d", "decoding")
            for i in range(max(0, first - 80), first + 20)
        ]
        arrived = [Arrival(now_s, f"t{i % tenants}", 500) for i in range(first, first + 20)]
        finished = [
            FinishedRequest(i, f"t{i % tenants}", 500, 0, 0, 250, 0.1, 25.0)
            for i in range(first - 100, first - 80)
            if i >= 0
        ]
        forecaster.observe(now_s, flights, arrived, finished, 1)
        if tick + 1 in after_ticks:
            sizes.append(len(pickle.dumps(forecaster)))
    return sizes


def test_memory_grows_with_classes_and_not_with_requests_served() -> None:
    """After an hour all windows are full: 2,000 more requests add nothing, and classes add their curves alone."""
    early, hour, more = bytes_held(5, 120, 745, 845)
    assert more < 1.01 * hour
    (classes,) = bytes_held(50, 120)
    per_class = (classes - early) / 45
    assert 0 < per_class < 2 * 8 * 54 * 2 * 3
