from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.spec.config import Role
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView, expected_ttft_s, is_batch, place


def worker(worker_id: str, role: Role, **changes: Any) -> WorkerView:
    return WorkerView(worker_id, role, **{"total_blocks": 100, "free_blocks": 100, **changes})


def prefill(worker_id: str = "p0", **changes: Any) -> WorkerView:
    return worker(worker_id, Role.PREFILL, **changes)


def decode(worker_id: str = "d0", **changes: Any) -> WorkerView:
    return worker(worker_id, Role.DECODE, **changes)


REQUEST = RequestView(64, 64, 32, {})


def test_the_emptier_decode_worker_holds_the_request() -> None:
    assert place(REQUEST, [prefill(), decode("d0", free_blocks=50), decode("d1")]) == Placement("p0", "d1", 4)


def test_promised_blocks_are_not_promised_again() -> None:
    full = decode("d0", reserved_blocks=98)
    assert place(REQUEST, [prefill(), full]) == Wait("no_blocks")
    assert place(REQUEST, [prefill(), full, decode("d1", free_blocks=10)]) == Placement("p0", "d1", 4)


def test_a_request_larger_than_any_worker_runs_alone() -> None:
    huge = RequestView(10_000, 64, 32, {})
    assert isinstance(place(huge, [prefill(), decode()]), Placement)
    assert place(huge, [prefill(), decode(running_requests=1)]) == Wait("no_blocks")
    assert place(huge, [prefill(), decode(reserved_blocks=1)]) == Wait("no_blocks")


def test_the_prefill_worker_with_the_earliest_first_token_is_chosen() -> None:
    busy, free = prefill("p0", queued_tokens=5000), prefill("p1")
    assert place(REQUEST, [busy, free, decode()]) == Placement("p1", "d0", 4)
    cached = RequestView(64_000, 64, 32, {"p0": 63_000})
    assert expected_ttft_s(busy, cached) == pytest.approx(0.6)
    assert isinstance(chosen := place(cached, [busy, free, decode(total_blocks=9999, free_blocks=9999)]), Placement)
    assert chosen.prefill_id == "p0"


def test_among_equals_the_prefill_worker_in_decodes_domain_is_chosen() -> None:
    workers = [prefill("p0", domain="a"), prefill("p1", domain="b"), decode(domain="b")]
    assert place(REQUEST, workers) == Placement("p1", "d0", 4)


def test_a_short_uncached_rest_is_prefilled_where_it_is_decoded() -> None:
    request = RequestView(64, 64, 32, {"d0": 60})
    assert place(request, [prefill(), decode()], local_prefill_below_tokens=8) == Placement(None, "d0", 4)
    assert place(REQUEST, [prefill(), decode()], local_prefill_below_tokens=8) == Placement("p0", "d0", 4)


def test_a_colocated_worker_needs_no_other() -> None:
    assert place(REQUEST, [worker("c0", Role.COLOCATED)]) == Placement(None, "c0", 4)


@pytest.mark.parametrize("workers", [[], [prefill()], [decode()], [prefill(accepting=False), decode()]])
def test_without_a_pair_the_request_waits(workers: list[WorkerView]) -> None:
    assert place(REQUEST, workers) == Wait("no_worker")


def test_a_worker_to_avoid_is_used_where_it_is_the_last_of_its_role() -> None:
    workers = [prefill("p0"), prefill("p1"), decode()]
    assert place(REQUEST, workers, avoid=frozenset({"p0", "d0"})) == Placement("p1", "d0", 4)
    assert place(REQUEST, [prefill(), decode()], avoid=frozenset({"p0", "d0"})) == Placement("p0", "d0", 4)


views = st.builds(
    WorkerView,
    worker_id=st.uuids().map(str),
    role=st.sampled_from(Role),
    total_blocks=st.just(100),
    free_blocks=st.integers(0, 100),
    reserved_blocks=st.integers(0, 100),
    running_requests=st.integers(0, 3),
    accepting=st.booleans(),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(views, max_size=6), st.integers(1, 5000), st.data())
def test_a_placement_never_overcommits_and_names_willing_workers(
    workers: list[WorkerView], isl: int, data: st.DataObject
) -> None:
    avoid = frozenset(data.draw(st.sets(st.sampled_from([w.worker_id for w in workers] or [""]))))
    request = RequestView(isl, 64, 32, {})
    chosen = place(request, workers, avoid=avoid)
    by_id = {view.worker_id: view for view in workers}
    if isinstance(chosen, Wait):
        return
    holder = by_id[chosen.decode_id]
    assert holder.accepting
    assert holder.headroom_blocks >= chosen.reserve_blocks or holder.running_requests == holder.reserved_blocks == 0
    if chosen.prefill_id is None:
        assert holder.role is Role.COLOCATED
    else:
        assert holder.role is Role.DECODE
        assert by_id[chosen.prefill_id].role is Role.PREFILL
        assert by_id[chosen.prefill_id].accepting


def test_a_crowded_prefill_pool_gets_help_from_decode() -> None:
    request = RequestView(isl_tokens=500, forecast_osl_tokens=100, block_size_tokens=32, cached_tokens={})

    def chosen(prefill_queue: int, decode_queue: int, after_s: float | None) -> str | None:
        workers = [
            WorkerView("p", Role.PREFILL, 1000, 1000, queued_tokens=prefill_queue, prefill_tokens_per_s=1000.0),
            WorkerView("d", Role.DECODE, 1000, 1000, queued_tokens=decode_queue, prefill_tokens_per_s=1000.0),
        ]
        placement = place(request, workers, local_prefill_after_s=after_s)
        assert isinstance(placement, Placement)
        return placement.prefill_id

    assert chosen(0, 0, 1.0) == "p", "half a second: the pool is not overloaded"
    assert chosen(2000, 0, 1.0) is None, "2.5 s there, 0.5 s here"
    assert chosen(2000, 1600, 1.0) == "p", "2.1 s here is more than four fifths of it"
    assert chosen(9000, 0, None) == "p", "never"


def test_two_engine_versions_are_never_paired() -> None:
    """An upgrade: the emptiest decode worker has no prefill worker of its own version, and is passed over."""
    old, new = {"revision": "vllm 1"}, {"revision": "vllm 2"}
    workers = [prefill("p0", **old), decode("d0", free_blocks=50, **old), decode("d1", **new)]
    assert place(REQUEST, workers) == Placement("p0", "d0", 4)
    assert place(REQUEST, [prefill("p0", **old), decode("d1", **new)]) == Wait("no_worker")
    assert place(REQUEST, [prefill("p0", **old), decode("d1", **new)], local_prefill_below_tokens=64) == Placement(
        None, "d1", 4
    )
    # A worker to avoid is better than one of another version.
    assert place(REQUEST, [*workers, prefill("p1", **new)], avoid=frozenset({"p0", "d1"})) == Placement("p0", "d0", 4)


@given(
    st.lists(st.tuples(st.sampled_from([Role.PREFILL, Role.DECODE]), st.sampled_from("abc")), max_size=9),
    st.frozensets(st.integers(0, 8)),
)
def test_pairs_are_of_one_version_whatever_is_there(kinds: list[tuple[Role, str]], avoid: frozenset[int]) -> None:
    workers = [worker(f"w{n}", role, revision=revision) for n, (role, revision) in enumerate(kinds)]
    placed = place(REQUEST, workers, avoid=frozenset(f"w{n}" for n in avoid))
    possible = {r for role, r in kinds if role is Role.PREFILL} & {r for role, r in kinds if role is Role.DECODE}
    if not possible:
        assert placed == Wait("no_worker")
        return
    assert isinstance(placed, Placement)
    by_id = {each.worker_id: each for each in workers}
    assert by_id[str(placed.prefill_id)].revision == by_id[placed.decode_id].revision


def test_decode_goes_by_the_forecast_peak_where_it_is_known() -> None:
    prefill = WorkerView("p", Role.PREFILL, 100, 100)
    # By what is reserved, `a` is the fuller one; but what it has ends before the rest has grown.
    one = WorkerView("a", Role.DECODE, 100, 60, reserved_blocks=20, peak_blocks=45)
    other = WorkerView("b", Role.DECODE, 100, 60, reserved_blocks=10, peak_blocks=50)
    chosen = place(RequestView(64, 64, 32, {}), [prefill, one, other])
    assert isinstance(chosen, Placement)
    assert chosen.decode_id == "a"
    known = [replace(view, peak_blocks=None) for view in (one, other)]
    chosen = place(RequestView(64, 64, 32, {}), [prefill, *known])
    assert isinstance(chosen, Placement)
    assert chosen.decode_id == "b"
    # Headroom is what is not reserved, as before: a peak lets nobody in.
    full = replace(one, free_blocks=10, reserved_blocks=8, peak_blocks=1)
    chosen = place(RequestView(64, 64, 32, {}), [prefill, full, other])
    assert isinstance(chosen, Placement)
    assert chosen.decode_id == "b"


def test_batch_goes_to_spot_first_and_others_only_where_no_other_has_headroom() -> None:
    workers = [prefill("p0"), decode("kept"), decode("spot", spot=True, free_blocks=90)]
    batch = replace(REQUEST, batch=is_batch(-1))
    assert place(REQUEST, workers) == Placement("p0", "kept", 4)
    assert place(batch, [prefill("p0"), decode("kept"), decode("spot", spot=True, free_blocks=9)]) == Placement(
        "p0", "spot", 4
    )
    assert not is_batch(0)  # of a request that names no priority
    # Better than to wait, either way.
    full = {"free_blocks": 3, "running_requests": 2}
    assert place(REQUEST, [prefill("p0"), decode("kept", **full), workers[2]]) == Placement("p0", "spot", 4)
    assert place(batch, [*workers[:2], decode("spot", spot=True, **full)]) == Placement("p0", "kept", 4)
    # A prefill is short: the one that is done first does it, on spot or not.
    loaded = [prefill("p0", queued_tokens=100_000), prefill("p1", spot=True)]
    assert place(REQUEST, [*loaded, decode("kept")]) == Placement("p1", "kept", 4)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 100)), min_size=1, max_size=6), st.booleans())
def test_the_wrong_kind_of_node_is_the_last_resort(rows: list[tuple[bool, bool, int]], batch: bool) -> None:
    workers = [
        decode(f"d{n}", spot=spot, accepting=accepting, free_blocks=free, running_requests=1)
        for n, (spot, accepting, free) in enumerate(rows)
    ]
    placed = place(replace(REQUEST, batch=batch), [prefill("p0"), *workers])
    able = [each for each in workers if each.accepting and each.free_blocks >= REQUEST.reserve_blocks]
    assert isinstance(placed, Placement) is bool(able)
    if isinstance(placed, Placement):
        chosen = next(each for each in able if each.worker_id == placed.decode_id)
        assert chosen.spot is batch or all(each.spot is not batch for each in able)
