from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import RequestRejected
from orchestrator.policy.admission import ENOUGH_GAPS, MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, AdmissionQueue

MAX_QUEUED = 6
WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.5}


def drained(queue: AdmissionQueue[Any]) -> list[Any]:
    """Everything that waits, in the order in which it is placed."""
    order: list[Any] = []
    while (head := queue.head) is not None:
        queue.take(head)
        order.append(head)
    return order


def moving_queue(gap_s: float, max_queued: int = 99) -> AdmissionQueue[str]:
    """A queue that was seen to let one go every ``gap_s`` seconds, and is empty."""
    queue = AdmissionQueue[str](max_queued)
    for index in range(ENOUGH_GAPS):
        queue.push(f"early{index}", priority=0)
    for index in range(ENOUGH_GAPS):
        queue.take(f"early{index}", now_s=(index + 1) * gap_s)
    return queue


def test_priority_first_then_deadline_then_arrival_and_the_once_admitted_before_their_peers() -> None:
    queue = AdmissionQueue[str](max_queued=9)
    for item, priority, deadline_s in (
        ("a", 0, 9.0),
        ("b", 1, 9.0),
        ("c", 0, 9.0),
        ("soon", 0, 5.0),
        ("late", 0, 99.0),
    ):
        queue.push(item, priority=priority, deadline_s=deadline_s)
    queue.push("lost", priority=0, again=True)
    queue.push("lost too", priority=0, again=True)
    queue.remove("a")
    queue.remove("never there")
    assert drained(queue) == ["b", "lost", "lost too", "soon", "c", "late"]


def test_a_full_queue_refuses_newcomers_only() -> None:
    queue = AdmissionQueue[str](max_queued=1)
    queue.push("a", priority=0)
    with pytest.raises(RequestRejected) as refused:
        queue.push("b", priority=0)
    assert refused.value.retry_after_s == MIN_RETRY_AFTER_S
    assert refused.value.reason == "queue_full"
    assert queue.push("again", priority=0, again=True) is None
    assert len(queue) == 2


def test_a_full_queue_displaces_one_for_a_higher_priority() -> None:
    queue = AdmissionQueue[str](max_queued=2)
    queue.push("batch", priority=-1)
    queue.push("chat", priority=0)
    assert queue.push("urgent", priority=5) == "batch"
    with pytest.raises(RequestRejected):
        queue.push("batch again", priority=-1)
    assert drained(queue) == ["urgent", "chat"]


def test_a_full_queue_displaces_one_for_a_tenant_with_less_than_its_share_of_places() -> None:
    queue = AdmissionQueue[str](max_queued=4)
    for index in range(4):
        queue.push(f"flood{index}", priority=0, tenant="flood")
    assert queue.push("guest0", priority=0, tenant="guest") == "flood3"
    assert queue.push("guest1", priority=0, tenant="guest") == "flood2"
    with pytest.raises(RequestRejected):  # two each: nobody holds more than the new request would
        queue.push("guest2", priority=0, tenant="guest")
    assert sorted(drained(queue)) == ["flood0", "flood1", "guest0", "guest1"]


def test_the_hint_follows_the_rate_at_which_the_queue_moves() -> None:
    queue = moving_queue(2.0)
    for item in "abcdefghi":
        queue.push(item, priority=0, now_s=1000.0)  # the idle time before says nothing
    assert queue.retry_after_s() == pytest.approx(20.0)


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    queue = moving_queue(2.0)
    for item in "abc":
        queue.push(item, priority=0, deadline_s=500.0, now_s=100.0)
    with pytest.raises(RequestRejected) as refused:
        queue.push("d", priority=0, tenant="", deadline_s=500.1, now_s=495.0)  # four gaps of 2 s are needed
    assert refused.value.reason == "deadline"
    assert refused.value.retry_after_s == pytest.approx(495 + 8 - 500.1)
    assert len(queue) == 3
    queue.push("e", priority=1, deadline_s=500.1, now_s=495.0)  # before the others, so in time
    assert queue.head == "e"


def test_without_experience_no_deadline_is_held_against_a_request() -> None:
    queue = AdmissionQueue[str](max_queued=9)
    queue.push("a", priority=0, deadline_s=0.001, now_s=0.0)
    assert queue.head == "a"


requests = st.lists(
    st.tuples(st.sampled_from(sorted(WEIGHTS)), st.integers(-1, 1), st.floats(0, 100), st.integers(1, 500)), max_size=40
)


@settings(deadline=None, max_examples=100)
@given(requests, st.data())
def test_the_queue_is_bounded_loses_nothing_and_keeps_each_tenants_deadlines_in_order(
    pushes: list[tuple[str, int, float, int]], data: st.DataObject
) -> None:
    queue = AdmissionQueue[int](MAX_QUEUED, WEIGHTS.__getitem__)
    inside: set[int] = set()
    items = [1000 + index for index in range(len(pushes))]
    for item, (tenant, priority, deadline_s, cost) in zip(items, pushes, strict=True):
        try:
            displaced = queue.push(item, priority=priority, tenant=tenant, cost_tokens=cost, deadline_s=deadline_s)
        except RequestRejected:
            assert len(queue) == MAX_QUEUED
        else:
            inside.add(item)
            if displaced is not None:
                inside.remove(displaced)
                assert pushes[displaced - 1000][1] <= priority
        assert len(queue) == len(inside) <= MAX_QUEUED
        if data.draw(st.integers(0, 4)) == 0 and (head := queue.head) is not None:
            queue.take(head)
            inside.remove(head)
    order = drained(queue)
    assert sorted(order) == sorted(inside)
    levels = [pushes[item - 1000][1] for item in order]
    assert levels == sorted(levels, reverse=True)
    for tenant in WEIGHTS:
        for level in (-1, 0, 1):
            mine = [item for item in order if pushes[item - 1000][:2] == (tenant, level)]
            assert mine == sorted(mine, key=lambda item: (pushes[item - 1000][2], item))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_backlogged_tenants_get_tokens_by_weight_within_one_request_of_each(data: st.DataObject) -> None:
    """The bound of start-time fair queueing: |W_i/w_i - W_j/w_j| <= max_i/w_i + max_j/w_j over any stretch."""
    largest = 400
    costs = {tenant: data.draw(st.lists(st.integers(1, largest), min_size=30, max_size=30)) for tenant in WEIGHTS}
    queue = AdmissionQueue[tuple[str, int]](999, WEIGHTS.__getitem__)
    cost_of: dict[tuple[str, int], int] = {}
    for tenant, line in costs.items():
        for index, cost in enumerate(line):
            item = (tenant, index)
            cost_of[item] = cost
            queue.push(item, priority=0, tenant=tenant, cost_tokens=cost)
    got = dict.fromkeys(WEIGHTS, 0.0)
    left = {tenant: len(line) for tenant, line in costs.items()}
    history = [dict(got)]
    while all(left.values()):
        item = queue.head
        assert item is not None
        queue.take(item)
        got[item[0]] += cost_of[item] / WEIGHTS[item[0]]
        left[item[0]] -= 1
        history.append(dict(got))
    for first in WEIGHTS:
        for second in WEIGHTS:
            if first < second:
                ahead = [step[first] - step[second] for step in history]
                assert max(ahead) - min(ahead) <= (largest / WEIGHTS[first] + largest / WEIGHTS[second]) * 1.000001


def test_a_flood_starves_nobody() -> None:
    """Whatever the flood, a new request of another tenant waits for at most one of the flood's requests."""
    queue = AdmissionQueue[str](999)
    for index in range(500):
        queue.push(f"flood{index}", priority=0, tenant="flood", cost_tokens=100)
    for index in range(250):
        queue.take(f"flood{index}")
    queue.push("guest", priority=0, tenant="guest", cost_tokens=10_000)
    assert "guest" in drained(queue)[:2]


def test_a_tenant_saves_nothing_up_while_idle_and_owes_nothing_for_having_been_alone() -> None:
    queue = AdmissionQueue[str](999)
    for _ in range(100):
        queue.charge("alone", 1000, priority=0)
    for index in range(4):
        queue.push(f"alone{index}", priority=0, tenant="alone", cost_tokens=10)
        queue.push(f"new{index}", priority=0, tenant="new", cost_tokens=10)
    # Of a hundred requests alone, the last one of 1000 tokens still counts: the new request's 40 go first, and no more.
    assert [item[:3] for item in drained(queue)] == ["new"] * 4 + ["alo"] * 4
    for index in range(200):
        queue.push(f"new{index}", priority=0, tenant="new", cost_tokens=10)
        queue.push(f"alone{index}", priority=0, tenant="alone", cost_tokens=10)
    order = [item[:3] for item in drained(queue)]
    assert order[:120].count("alo") >= 8  # the debt was one request, not a hundred


def test_what_was_charged_too_little_is_settled() -> None:
    queue = AdmissionQueue[str](999)
    queue.charge("long", 10, priority=0)
    queue.charge("short", 10, priority=0)
    queue.settle("long", 1000, priority=0)
    for index in range(5):
        queue.push(f"long{index}", priority=0, tenant="long", cost_tokens=10)
        queue.push(f"short{index}", priority=0, tenant="short", cost_tokens=10)
    assert drained(queue)[:5] == [f"short{index}" for index in range(5)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1e6), max_size=99), st.integers(0, 50))
def test_the_hint_stays_within_its_bounds(departures: list[float], waiting: int) -> None:
    queue = AdmissionQueue[str](max_queued=999)
    for index, time_s in enumerate(sorted(departures)):
        queue.push(f"gone{index}", priority=0, now_s=0.0)
        queue.take(f"gone{index}", now_s=time_s)
    for index in range(waiting):
        queue.push(f"waits{index}", priority=0, deadline_s=math.inf)
    assert MIN_RETRY_AFTER_S <= queue.retry_after_s() <= MAX_RETRY_AFTER_S


def test_what_made_way_waits_behind_its_equals_and_before_lower_priorities() -> None:
    queue = AdmissionQueue[str](max_queued=3)
    queue.push("first", priority=0, waits_for_headroom=True)
    queue.push("second", priority=0, waits_for_headroom=True)
    queue.push("incoming", priority=0, tenant="a")
    queue.push("batch", priority=-1)
    queue.push("lost", priority=0, again=True)
    queue.push("urgent", priority=1)  # three new requests: the others take no place of theirs
    with pytest.raises(RequestRejected):
        queue.push("batch too", priority=-1)
    assert drained(queue) == ["urgent", "lost", "incoming", "first", "second", "batch"]


def test_a_newcomer_need_not_queue_for_those_that_made_way() -> None:
    queue = AdmissionQueue[str](max_queued=1)
    assert queue.goes_first(-5)
    queue.push("preempted", priority=0, waits_for_headroom=True)
    assert queue.goes_first(0)
    assert queue.goes_first(3)
    assert not queue.goes_first(-1)  # strictly by priority
    queue.push("batch", priority=-1)
    assert not queue.goes_first(3)
    queue.remove("batch")
    queue.remove("preempted")
    assert queue.goes_first(-1)


def test_the_time_that_one_waits_for_headroom_says_nothing_of_the_queues_rate() -> None:
    queue = moving_queue(2.0)
    queue.push("preempted", priority=0, waits_for_headroom=True, now_s=20.0)
    queue.push("chat", priority=0, now_s=500.0)
    queue.take("chat", now_s=502.0)
    assert queue.take("preempted", now_s=900.0) == 0.0
    for item in "abcdefghi":
        queue.push(item, priority=0, now_s=1000.0)
    assert queue.retry_after_s() == pytest.approx(20.0)


@given(
    st.lists(st.tuples(st.integers(-1, 1), st.sampled_from(["new", "again", "preempted"]), st.booleans()), max_size=40)
)
def test_nothing_is_lost_whatever_waits_and_those_that_made_way_go_last_of_their_priority(
    pushes: list[tuple[int, str, bool]],
) -> None:
    queue = AdmissionQueue[int](999)
    inside: set[int] = set()
    for item, (priority, kind, leaves) in enumerate(pushes):
        queue.push(item, priority=priority, again=kind == "again", waits_for_headroom=kind == "preempted")
        inside.add(item)
        if leaves:
            gone = min(inside)
            queue.remove(gone)
            inside.remove(gone)
        others = [each for each in inside if pushes[each][1] != "preempted"]
        most = max((pushes[each][0] for each in inside), default=-9)
        assert queue.goes_first(0) == (not others and most <= 0)
    order = drained(queue)
    ranks = {"again": 0, "new": 1, "preempted": 2}
    assert order == sorted(inside, key=lambda each: (-pushes[each][0], ranks[pushes[each][1]], each))
