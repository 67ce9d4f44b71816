from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.spec.config import Role
from orchestrator.policy.drain_moves import HeldRequest, Hold, Move, empty_workers, is_to_be_emptied, next_moves
from orchestrator.policy.router import WorkerView

SOURCE = WorkerView("d0", Role.DECODE, 100, 40, accepting=False)


def decode(worker_id: str, free: int = 100, **changes: object) -> WorkerView:
    return WorkerView(worker_id, Role.DECODE, 100, free, **changes)  # type: ignore[arg-type]


def held(name: str, remaining: int, hold: Hold = Hold.DECODING, context: int = 32) -> HeldRequest:
    return HeldRequest(name, hold, context, remaining)


def moves(requests: list[HeldRequest], workers: list[WorkerView], at_once: int = 9) -> list[tuple[str, str]]:
    found = next_moves(requests, [SOURCE, *workers], source_id="d0", block_size_tokens=32, moves_at_once=at_once)
    return [(move.request_id, move.target_id) for move in found]


def test_least_remaining_work_goes_last() -> None:
    assert [name for name, _ in moves([held("a", 10), held("b", 900), held("c", 100)], [decode("d1")])] == list("bca")


def test_those_on_their_way_count_against_the_limit() -> None:
    requests = [held("a", 500, Hold.MOVING), held("b", 400), held("c", 300), held("d", 200)]
    assert moves(requests, [decode("d1")], at_once=3) == [("b", "d1"), ("c", "d1")]
    assert moves(requests, [decode("d1")], at_once=1) == []


def test_a_promise_is_moved_at_once_and_first() -> None:
    requests = [held("a", 500), held("b", 10, Hold.RESERVED), held("c", 5, Hold.RESERVED)]
    assert [name for name, _ in moves(requests, [decode("d1")], at_once=1)] == ["b", "c", "a"]


def test_what_cannot_move_is_left_alone() -> None:
    assert moves([held("a", 500, Hold.STAYS), held("b", 500, Hold.BUSY)], [decode("d1")]) == []


def test_the_largest_waits_for_headroom_and_a_smaller_one_goes() -> None:
    # 60 of 100 blocks are reserved: 40 are left.
    workers = [decode("d1", reserved_blocks=60)]
    assert moves([held("a", 64 * 32), held("b", 10 * 32)], workers) == [("b", "d1")]


def test_targets_fill_evenly_and_only_decode_workers_that_take_work_are_targets() -> None:
    workers = [
        decode("d1"),
        decode("d2"),
        decode("d3", accepting=False),
        WorkerView("p0", Role.PREFILL, 100, 100),
        WorkerView("c0", Role.COLOCATED, 100, 100),
    ]
    requests = [held(f"r{index}", 320) for index in range(4)]
    assert sorted(target for _, target in moves(requests, workers)) == ["d1", "d1", "d2", "d2"]


@given(
    st.lists(st.tuples(st.sampled_from(Hold), st.integers(1, 2000), st.integers(1, 2000)), max_size=12),
    st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=4),
    st.integers(1, 6),
)
def test_no_target_is_reserved_more_than_it_has(
    rows: list[tuple[Hold, int, int]], targets: list[tuple[int, bool]], at_once: int
) -> None:
    requests = [HeldRequest(f"r{index}", *row) for index, row in enumerate(rows)]
    workers = [decode(f"d{1 + index}", free, accepting=takes) for index, (free, takes) in enumerate(targets)]
    found = next_moves(requests, [SOURCE, *workers], source_id="d0", block_size_tokens=32, moves_at_once=at_once)
    assert len({move.request_id for move in found}) == len(found)
    holds = {request.request_id: request.hold for request in requests}
    assert all(holds[move.request_id] in (Hold.RESERVED, Hold.DECODING) for move in found)
    begun = sum(holds[move.request_id] is Hold.DECODING for move in found)
    assert begun <= max(0, at_once - sum(request.hold is Hold.MOVING for request in requests))
    for worker in workers:
        reserved = sum(move.reserve_blocks for move in found if move.target_id == worker.worker_id)
        assert reserved <= (worker.headroom_blocks if worker.accepting else 0)


def test_kv_does_not_move_to_another_engine_version() -> None:
    other = decode("d1", revision="vllm 2")
    assert moves([held("a", 10)], [other]) == []
    assert moves([held("a", 10)], [other, decode("d2", free=50)]) == [("a", "d2")]


def test_batch_moves_to_spot_and_others_keep_off_it() -> None:
    workers = [decode("kept", 50), decode("spot", 90, spot=True)]
    batch = HeldRequest("batch", Hold.DECODING, 32, 100, batch=True)
    assert moves([batch, held("chat", 90)], workers) == [("batch", "spot"), ("chat", "kept")]
    assert moves([held("chat", 90)], workers[1:]) == [("chat", "spot")]
    assert moves([batch], workers[:1]) == [("batch", "kept")]


def test_a_reservation_does_not_move_to_the_worker_that_reads_its_prompt() -> None:
    # It has become a decode worker since, and cannot hand over to itself.
    reserved = HeldRequest("a", Hold.RESERVED, 32, 10, prefill_id="d1")
    assert moves([reserved], [decode("d1")]) == []
    assert moves([reserved], [decode("d1"), decode("d2", 50)]) == [("a", "d2")]


def test_nothing_moves_off_a_colocated_worker() -> None:
    colocated = WorkerView("c0", Role.COLOCATED, 100, 40, accepting=False)
    found = next_moves(
        [held("a", 500)], [colocated, decode("d1")], source_id="c0", block_size_tokens=32, moves_at_once=9
    )
    assert found == []


def test_prefill_workers_are_emptied_of_what_decodes_there_and_others_when_they_drain() -> None:
    cases = [(role, draining, decodes) for role in Role for draining in (False, True) for decodes in (False, True)]
    found = {case for case in cases if is_to_be_emptied(case[0], draining=case[1], decodes=case[2])}
    assert found == {case for case in cases if case[1]} | {(Role.PREFILL, False, True)}


def test_workers_are_emptied_by_name_and_each_sees_what_the_one_before_reserved() -> None:
    free = {"d2": 40}
    holds = {"d1": [held("b", 30 * 32)], "d0": [held("a", 20 * 32)], "d9": []}
    begun: list[tuple[str, Move]] = []

    def begin(worker_id: str, move: Move) -> None:
        begun.append((worker_id, move))
        free[move.target_id] -= move.reserve_blocks

    def tick(*worker_ids: str) -> bool:
        return empty_workers(
            worker_ids,
            held=holds.__getitem__,
            views=lambda: [decode(name, left) for name, left in free.items()],
            begin=begin,
            block_size_tokens=32,
            moves_at_once=2,
        )

    assert tick("d9", "d1", "d0")
    assert begun == [("d0", Move("a", "d2", 21))]  # b needs 31 of the 19 that are left
    assert not tick("d9")
