from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.prefix_index import PrefixIndex, block_hashes

ids = st.lists(st.integers(0, 2), max_size=20)


@settings(deadline=None, max_examples=100)
@given(ids, ids)
def test_equal_hashes_mean_equal_prefixes(one: list[int], two: list[int]) -> None:
    for position, (a, b) in enumerate(zip(block_hashes(one, 4), block_hashes(two, 4), strict=False), start=1):
        assert (a == b) == (one[: position * 4] == two[: position * 4])


def test_what_was_recorded_is_found_up_to_the_first_gap() -> None:
    index = PrefixIndex(4)
    index.add_worker("w", total_blocks=10)
    hashes = block_hashes(list(range(12)), 4)
    index.record("w", [hashes[0], hashes[2]])
    assert index.cached_tokens(hashes, 12) == {"w": 4}
    index.record("w", hashes)
    assert index.cached_tokens(hashes, 12) == {"w": 11}  # the last token is always computed
    assert index.cached_tokens(hashes, 30) == {"w": 12}
    index.remove_worker("w")
    index.record("w", hashes)
    assert index.cached_tokens(hashes, 12) == {}


def test_the_least_recently_used_is_forgotten_first() -> None:
    index = PrefixIndex(1)
    index.add_worker("w", total_blocks=2)
    index.record("w", [1, 2])
    index.record("w", [1, 3])
    assert index.cached_tokens([1, 3], 9) == {"w": 2}
    assert index.cached_tokens([2], 9) == {}
