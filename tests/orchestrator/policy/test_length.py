from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.length import RecentLengths


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 1000), min_size=16, max_size=60), st.floats(0, 1))
def test_a_quantile_covers_its_share(lengths: list[int], q: float) -> None:
    recent = RecentLengths(512)
    for length in lengths:
        recent.record(length)
    found = recent.quantile(q)
    assert found in lengths
    assert sum(length <= found for length in lengths) >= q * len(lengths) - 1e-9


def test_the_prior_holds_until_there_is_enough_and_the_window_moves() -> None:
    recent = RecentLengths(512, window=4, enough=2)
    recent.record(1)
    assert recent.quantile(0.5) == 512
    for length in (9, 9, 9, 9):
        recent.record(length)
    assert recent.quantile(0.0) == 9
