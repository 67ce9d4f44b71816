import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.link_fit import fit, typical_s

SIZES = (4096, 65536, 1 << 20, 16 << 20, 256 << 20)


@given(fixed_s=st.floats(1e-7, 1e-2), bytes_per_s=st.floats(1e6, 1e12), repetitions=st.integers(1, 5))
def test_a_straight_line_is_found_again(fixed_s: float, bytes_per_s: float, repetitions: int) -> None:
    found = fit([(size, fixed_s + size / bytes_per_s) for size in SIZES for _ in range(repetitions)])
    for size in SIZES:
        assert found.seconds(size) == pytest.approx(fixed_s + size / bytes_per_s, rel=1e-3)
    assert found.latency_s == pytest.approx(fixed_s + SIZES[0] / bytes_per_s)
    assert found.bytes_per_s == pytest.approx(SIZES[-1] / (fixed_s + SIZES[-1] / bytes_per_s))


@given(st.lists(st.tuples(st.sampled_from(SIZES), st.floats(1e-7, 100)), min_size=1, max_size=40))
def test_any_timings_give_a_line_that_makes_sense(reads: list[tuple[int, float]]) -> None:
    found = fit(reads)
    assert found.fixed_s >= 0
    assert found.fitted_bytes_per_s > 0
    assert found.bytes_per_s > 0
    assert [size for size, _ in found.times_s] == sorted({size for size, _ in reads})


@given(st.lists(st.floats(1e-7, 100), min_size=1))
def test_typical_time_is_one_of_them_in_the_lower_half(values: list[float]) -> None:
    assert typical_s(values) in values
    assert sum(value < typical_s(values) for value in values) <= len(values) / 4


@pytest.mark.parametrize("reads", [[], [(0, 1.0)], [(1, 0.0)]])
def test_nonsense_is_refused(reads: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        fit(reads)
