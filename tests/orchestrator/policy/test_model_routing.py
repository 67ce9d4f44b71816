"""Weighted routes: shares, and sessions that stay."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.model_routing import WeightedArms

shares = st.dictionaries(st.sampled_from("abcde"), st.floats(0.01, 100), min_size=1)


@given(shares, st.integers(1, 300))
def test_each_model_stays_within_its_share(arms: dict[str, float], requests: int) -> None:
    route = WeightedArms(arms)
    total = sum(arms.values())
    got: Counter[str] = Counter()
    for count in range(1, requests + 1):
        got[route.choose()] += 1
        for model, share in arms.items():
            assert abs(got[model] - count * share / total) <= len(arms) - 1 + 1e-6


@given(shares, st.text(min_size=1), st.lists(st.text(), max_size=5))
def test_a_session_stays_at_every_gateway_whatever_came_between(
    arms: dict[str, float], session: str, others: list[str]
) -> None:
    one, other = WeightedArms(arms), WeightedArms(arms)
    chosen = one.choose(session)
    for each in others:
        other.choose(each)
    assert other.choose(session) == chosen


def test_sessions_get_their_shares() -> None:
    route = WeightedArms({"a": 1, "b": 3})
    got = Counter(route.choose(f"session {index}") for index in range(20_000))
    assert abs(got["a"] / 20_000 - 0.25) < 0.01
