from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import RequestRejected
from orchestrator.policy.admission import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, AdmissionQueue


def test_priority_first_then_arrival_and_the_once_admitted_before_their_peers() -> None:
    queue = AdmissionQueue[str](max_queued=9)
    for item, priority in (("a", 0), ("b", 1), ("c", 0)):
        queue.push(item, priority=priority)
    queue.push("lost", priority=0, again=True)
    assert queue.items() == ["b", "lost", "a", "c"]
    queue.remove("a")
    queue.remove("never there")
    assert queue.items() == ["b", "lost", "c"]


def test_a_full_queue_refuses_newcomers_only() -> None:
    queue = AdmissionQueue[str](max_queued=1)
    queue.push("a", priority=0)
    with pytest.raises(RequestRejected) as refused:
        queue.push("b", priority=9)
    assert refused.value.retry_after_s == MIN_RETRY_AFTER_S
    queue.push("again", priority=0, again=True)
    assert len(queue) == 2


def test_the_hint_follows_the_rate_at_which_requests_finish() -> None:
    queue = AdmissionQueue[int](max_queued=99)
    for second in range(5):
        queue.finished(second * 2.0)
    for item in range(9):
        queue.push(item, priority=0)
    assert queue.retry_after_s() == pytest.approx(20.0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1e6), max_size=99), st.integers(0, 50))
def test_the_hint_stays_within_its_bounds(finished: list[float], waiting: int) -> None:
    queue = AdmissionQueue[int](max_queued=99)
    for time_s in sorted(finished):
        queue.finished(time_s)
    for item in range(waiting):
        queue.push(item, priority=0)
    assert MIN_RETRY_AFTER_S <= queue.retry_after_s() <= MAX_RETRY_AFTER_S
