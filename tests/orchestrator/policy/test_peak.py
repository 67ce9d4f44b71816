from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.spec.config import Role
from orchestrator.policy.drain_moves import HeldRequest, Hold
from orchestrator.policy.peak import TARGET_FILL, peak_tokens, shifts
from orchestrator.policy.router import WorkerView

REQUESTS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=8)


def worker(name: str, blocks: int = 100, *, accepting: bool = True) -> WorkerView:
    return WorkerView(name, Role.DECODE, blocks, blocks, accepting=accepting)


def request(name: str, context: int, remaining: int, hold: Hold = Hold.DECODING) -> HeldRequest:
    return HeldRequest(name, hold, context, remaining)


@given(REQUESTS)
def test_the_peak_is_that_of_all_moments(requests: list[tuple[int, int]]) -> None:
    moments = range(501)
    truth = max(
        (sum(context + moment for context, left in requests if left >= moment) for moment in moments), default=0
    )
    assert peak_tokens(requests) == truth


@given(REQUESTS, st.tuples(st.integers(0, 500), st.integers(0, 500)))
def test_it_is_at_most_what_all_hold_in_the_end_and_grows_with_each(
    requests: list[tuple[int, int]], more: tuple[int, int]
) -> None:
    assert peak_tokens(requests) <= sum(map(sum, requests))
    assert peak_tokens(requests) <= peak_tokens([*requests, more])


def test_the_longest_leaves_a_worker_that_will_overflow() -> None:
    held = {"a": [request("short", 300, 20), request("long", 300, 900)], "b": [request("other", 100, 100)]}
    assert peak_tokens([(300, 20), (300, 900)]) > 100 * 10
    (shift,) = shifts(held, [worker("a"), worker("b", 200)], block_size_tokens=10, moves_at_once=4)
    assert (shift.request_id, shift.source_id, shift.target_id, shift.reserve_blocks) == ("long", "a", "b", 120)


def test_nothing_moves_where_it_fits_or_where_no_worker_has_headroom() -> None:
    fits = {"a": [request("one", 300, 20), request("two", 300, 100)]}
    assert shifts(fits, [worker("a"), worker("b")], block_size_tokens=10, moves_at_once=4) == []
    over = {"a": [request("one", 500, 800)], "b": [request("two", 100, 700)]}
    assert shifts(over, [worker("a"), worker("b")], block_size_tokens=10, moves_at_once=4) == []
    assert shifts(over, [worker("a"), worker("b", 900, accepting=False)], block_size_tokens=10, moves_at_once=4) == []


def test_what_is_on_its_way_counts_and_what_stays_stays() -> None:
    held = {
        "a": [
            request("moving", 400, 700, Hold.MOVING),
            request("long", 400, 600),
            request("fixed", 400, 700, Hold.STAYS),
        ]
    }
    views = [worker("a"), worker("b", 900)]
    assert shifts(held, views, block_size_tokens=10, moves_at_once=1) == []
    assert [each.request_id for each in shifts(held, views, block_size_tokens=10, moves_at_once=2)] == ["long"]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 600), st.integers(1, 600)), max_size=12),
    st.integers(1, 6),
)
def test_no_move_makes_its_target_overflow(rows: list[tuple[str, int, int]], at_once: int) -> None:
    held: dict[str, list[HeldRequest]] = {"a": [], "b": [], "c": []}
    for index, (name, context, remaining) in enumerate(rows):
        held[name].append(request(str(index), context, remaining))
    views = [worker(name) for name in held]
    found = shifts(held, views, block_size_tokens=10, moves_at_once=at_once)
    assert len(found) <= at_once
    by_id = {each.request_id: each for requests in held.values() for each in requests}
    for target in {each.target_id for each in found}:
        came = [by_id[each.request_id] for each in found if each.target_id == target]
        gone = {each.request_id for each in found if each.source_id == target}
        there = [each for each in held[target] if each.request_id not in gone]
        loads = [(each.context_tokens, each.remaining_tokens) for each in [*there, *came]]
        assert peak_tokens(loads) <= TARGET_FILL * 1000


def test_a_shift_keeps_off_spot_where_another_has_headroom() -> None:
    held = {"a": [request("one", 400, 500), request("two", 400, 500)]}
    spot = replace(worker("b", 900), spot=True)
    assert [each.target_id for each in shifts(held, [worker("a"), spot, worker("c", 200)], **LIMITS)] == ["c"]
    assert [each.target_id for each in shifts(held, [worker("a"), spot], **LIMITS)] == ["b"]
    batch = {"a": [replace(each, batch=True) for each in held["a"]]}
    assert [each.target_id for each in shifts(batch, [worker("a"), spot, worker("c", 900)], **LIMITS)] == ["b"]


LIMITS = {"block_size_tokens": 10, "moves_at_once": 4}
