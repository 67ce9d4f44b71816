"""Which request is preempted, and where it may come back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.spec.config import Role
from orchestrator.policy.preemption import RESUME_MARGIN, Running, may_take_back, victim
from orchestrator.policy.router import WorkerView

workers = st.lists(
    st.builds(
        WorkerView,
        worker_id=st.sampled_from([f"d{i}" for i in range(6)]),
        role=st.sampled_from([Role.DECODE, Role.COLOCATED]),
        total_blocks=st.just(1000),
        free_blocks=st.integers(0, 1000),
        running_requests=st.integers(0, 5),
        queued_tokens=st.sampled_from([0, 100]),
    ),
    unique_by=lambda view: view.worker_id,
)


@given(workers, st.integers(1, 900), st.booleans(), st.sets(st.sampled_from(["d0", "d1", "d2"])))
def test_what_was_preempted_comes_back_beside_others_only_where_new_requests_keep_headroom(
    views: list[WorkerView], need: int, growing: bool, resting: set[str]
) -> None:
    for view in may_take_back(views, need, growing=growing, resting=resting):
        if view.running_requests:
            assert view.headroom_blocks - need >= (RESUME_MARGIN * 1000 if growing else 0)
            assert not view.queued_tokens
            assert view.worker_id not in resting


@given(workers, st.integers(1, 900), st.booleans())
def test_an_empty_worker_takes_back_whatever_comes(views: list[WorkerView], need: int, growing: bool) -> None:
    """Else a trace larger than the margin leaves would wait for ever."""
    found = may_take_back(views, need, growing=growing, resting={"d0"})
    assert all(view in found for view in views if view.running_requests == 0)


def test_prefill_workers_are_left_to_the_router() -> None:
    prefill = WorkerView("p", Role.PREFILL, 10, 0, queued_tokens=5000)
    assert may_take_back([prefill], 100, growing=True) == [prefill]


def test_nobody_makes_way_twice_or_for_a_lower_priority() -> None:
    rows = [Running(1, "d", 0, 50, 800, True), Running(2, "d", 5, 50, 900, False), Running(3, "d", 0, 10, 5, False)]
    assert victim(100, 0, {"d": 5}, rows) == rows[2]
    assert victim(100, 5, {"d": 50}, rows) == rows[1]
