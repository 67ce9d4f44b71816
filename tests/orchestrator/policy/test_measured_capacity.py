from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.measured_capacity import LoadReading, StepTimes, measured_capacity


def test_a_worker_is_sized_by_what_its_steps_take() -> None:
    capacity = measured_capacity(1_000_000, itl_s=0.05)
    assert capacity.kv_tokens(1000.0) == 1_000_000  # nothing seen: by its KV alone
    steps, tokens, time_s = 0, 0, 0.0
    for look in range(40):
        batch = 4 + 8 * (look % 3)
        steps, tokens, time_s = steps + 100, tokens + 100 * batch, time_s + 100 * (0.01 + 0.002 * batch)
        capacity.read("one", LoadReading(time_s, steps, tokens, batch), decodes=True)
    assert capacity.kv_tokens(1000.0) == pytest.approx(20_000, rel=0.05)
    assert capacity.kv_tokens(100.0) == pytest.approx(2_000, rel=0.05)


def test_idle_engines_and_prefills_tell_nothing_of_steps() -> None:
    capacity = measured_capacity(1000, itl_s=0.05)
    capacity.read("one", LoadReading(0.0, 0, 0, 1), decodes=True)
    capacity.read("one", LoadReading(100.0, 500, 500, 0), decodes=True)
    capacity.read("two", LoadReading(0.0, 0, 0, 1), decodes=False)
    capacity.read("two", LoadReading(100.0, 500, 500, 1, prefill_tokens_per_s=500.0), decodes=False)
    assert capacity.times.seen == 0
    assert capacity.prefill_s(1000) == pytest.approx(2.0)
    capacity.forget({"one"})
    assert capacity.prefill_s(10_000) == pytest.approx(1.0, rel=0.05)


def test_an_engine_that_times_its_steps_is_not_slow_for_being_idle_between_requests() -> None:
    """One request of 50 steps of 10 ms a second, and one runs at every sample: 20 ms by the clock."""
    timed, by_the_clock = (measured_capacity(100_000, itl_s=10.0, max_num_seqs=4) for _ in range(2))
    for second in range(10):
        steps = 50 * second
        reading = LoadReading(float(second), steps, steps, 1)
        by_the_clock.read("one", reading, decodes=True)
        timed.read("one", replace(reading, timed_steps=49 * second, timed_s=0.49 * second), decodes=True)
    assert timed.times.step_s(1) == pytest.approx(0.01)
    assert by_the_clock.times.step_s(1) == pytest.approx(0.02)


def test_an_idle_moment_does_not_shrink_a_worker() -> None:
    capacity = measured_capacity(100_000, itl_s=0.05, max_num_seqs=4)
    capacity.observe(4000, 4, 0.0)
    before = capacity.kv_tokens(1000.0)
    capacity.observe(0, 0, 60.0)
    assert capacity.kv_tokens(1.0) == before == pytest.approx(4500, rel=0.01)
    # Small requests count only as the large ones are forgotten, as the forecast forgets them.
    capacity.observe(4 * 50, 4, 1.0)
    assert capacity.kv_tokens(50.0) > 0.4 * before
    for _ in range(20):
        capacity.observe(4 * 50, 4, 150.0)
    assert capacity.kv_tokens(50.0) < 0.1 * before


def test_the_cost_model_is_corrected_by_what_is_measured() -> None:
    capacity = measured_capacity(100_000, itl_s=0.05, modelled_step_s=lambda batch, held: 0.01 + 1e-6 * held)
    assert capacity.kv_tokens(1000.0) == pytest.approx(40_000, rel=0.01)
    for look in range(200):
        reading = LoadReading(2.0 * look, 100 * look, 1000 * look, 10, held_tokens=10_000)
        capacity.read("one", reading, decodes=True)  # modelled at 20 ms, it takes as long
    assert capacity.correction == pytest.approx(1.0, rel=0.01)
    for look in range(200, 400):
        reading = LoadReading(4.0 * look, 100 * look, 1000 * look, 10, held_tokens=10_000)
        capacity.read("one", reading, decodes=True)
    assert capacity.correction == pytest.approx(2.0, rel=0.01)
    assert capacity.kv_tokens(1000.0) == pytest.approx(15_000, rel=0.02)


@given(st.lists(st.tuples(st.floats(0.1, 300), st.floats(1e-4, 2), st.integers(1, 5000)), min_size=1, max_size=20))
def test_more_requests_never_make_a_step_shorter(seen: list[tuple[float, float, int]]) -> None:
    times = StepTimes(0.02)
    for batch, step_s, steps in seen:
        times.observe(batch, step_s, steps)
    at = [times.step_s(batch) for batch in (1, 2, 8, 64, 300)]
    assert all(before <= after + 1e-9 for before, after in itertools.pairwise(at))
    assert at[0] > 0
