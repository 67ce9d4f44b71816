"""Where further choices go: beside a sibling while there is headroom for what they do not share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.spec.config import Role
from orchestrator.policy.placement_queue import Routing
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView
from orchestrator.policy.siblings import place_beside, shared_blocks

REQUEST = RequestView(320, 64, 32, {}, held_on=frozenset({"d0"}), shared_blocks=9)
NONE = frozenset[str]()


def worker(worker_id: str, free_blocks: int = 100, **fields: object) -> WorkerView:
    roles = {"p": Role.PREFILL, "d": Role.DECODE, "c": Role.COLOCATED}
    return WorkerView(worker_id, roles[worker_id[0]], 100, free_blocks, **fields)  # type: ignore[arg-type]


def route(request: RequestView, *workers: WorkerView, avoid: frozenset[str] = NONE, back: bool = False) -> object:
    routing = Routing(local_prefill_below_tokens=0, local_prefill_after_s=None)
    if back:
        return routing.route_back(request, workers, avoid, growing=False, now_s=0.0)
    return routing.route(request, workers, avoid)


def test_a_sibling_goes_where_the_prompt_is_though_others_are_less_filled() -> None:
    assert route(REQUEST, worker("p0"), worker("d0", 50), worker("d1")) == Placement(None, "d0", 12)


def test_headroom_counts_without_what_is_shared() -> None:
    assert route(REQUEST, worker("p0"), worker("d0", 3), worker("d1", 5)) == Placement(None, "d0", 12)
    assert route(REQUEST, worker("p0"), worker("d0", 2), worker("d1")) == Placement("p0", "d1", 12)
    assert route(REQUEST, worker("p0"), worker("d0", 2, running_requests=1)) == Wait("no_blocks")


def test_of_several_holders_the_least_filled() -> None:
    request = replace(REQUEST, held_on=frozenset({"d0", "d1", "gone"}))
    assert route(request, worker("p0"), worker("d0", 50), worker("d1", 60)) == Placement(None, "d1", 12)


@pytest.mark.parametrize("fields", [{"accepting": False}, {"free_blocks": 0}])
def test_a_holder_that_takes_nothing_is_passed_over(fields: dict[str, object]) -> None:
    assert route(REQUEST, worker("p0"), worker("d0", **fields), worker("d1")) == Placement("p0", "d1", 12)  # type: ignore[arg-type]


def test_a_worker_that_failed_it_or_prefills_by_now_is_no_holder() -> None:
    assert route(REQUEST, worker("p0"), worker("d0"), worker("d1"), avoid=REQUEST.held_on) == Placement("p0", "d1", 12)
    now_prefill = WorkerView("d0", Role.PREFILL, 100, 100)
    assert place_beside(REQUEST, [now_prefill]) is None


def test_one_that_was_preempted_comes_back_as_others_do() -> None:
    busy = worker("d0", 50, running_requests=1)
    assert route(REQUEST, worker("p0"), busy, worker("d1"), back=True) != Placement(None, "d0", 12)


@given(st.integers(1, 4000), st.sampled_from([16, 32, 128]))
def test_what_is_shared_leaves_at_most_a_block_to_compute(isl_tokens: int, block: int) -> None:
    left = isl_tokens - shared_blocks(isl_tokens, block) * block
    assert 1 <= left <= block
