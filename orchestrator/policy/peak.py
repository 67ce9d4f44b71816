"""How full a decode worker will get with what it has: the peak of its KV, and what to move away in time. Pure.

Each request is taken to make its forecast number of tokens at the same pace as the others, and then to end. So the sum
of what all would hold in the end, which is what is reserved, is more than they ever hold at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.spec.config import Role
from orchestrator.policy.drain_moves import HeldRequest, Hold
from orchestrator.policy.router import WorkerView

TARGET_FILL = 0.9
"""Share of a worker's KV that its peak may reach by a move to it: else the move would be the next one's reason."""


def peak_tokens(requests: Iterable[tuple[int, int]]) -> int:
    """Most tokens held at once by requests of ``(context, remaining)`` tokens that grow together.

    Example:
        >>> peak_tokens([(100, 1000)]), peak_tokens([(100, 1000), (100, 10)])
        (1100, 1100)
        >>> peak_tokens([(1000, 10), (1000, 20)])
        2020
    """
    held = most = 0
    # Just before each end, from the last one back: those that last as long have all grown by as much.
    for count, (context, remaining) in enumerate(sorted(requests, key=lambda each: -each[1]), 1):
        held += context
        most = max(most, held + count * remaining)
    return most


@dataclass(frozen=True, slots=True)
class Shift:
    """Let a request go on at another decode worker, where this many blocks are to be reserved first."""

    request_id: str
    source_id: str
    target_id: str
    reserve_blocks: int


def shifts(
    held: Mapping[str, Sequence[HeldRequest]],
    workers: Sequence[WorkerView],
    *,
    block_size_tokens: int,
    moves_at_once: int,
) -> list[Shift]:
    """Moves off decode workers whose KV will not hold what they have, to those whose KV will.

    The longest to go moves first: it frees the most of the peak. Nothing moves where no worker has headroom: the engine
    then preempts and recomputes a request.

    Args:
        held: Requests of each worker; only those in `Hold.DECODING` can move, those in `Hold.MOVING` count as begun.
        workers: All workers.
        block_size_tokens: Tokens per KV block.
        moves_at_once: Most requests on their way at a time.
    """
    decodes = {view.worker_id: view for view in workers if view.role is Role.DECODE and view.accepting}
    loads = {
        worker_id: [(each.context_tokens, each.remaining_tokens) for each in held.get(worker_id, ())]
        for worker_id in decodes
    }
    capacity = {worker_id: view.total_blocks * block_size_tokens for worker_id, view in decodes.items()}
    headroom = {worker_id: view.headroom_blocks for worker_id, view in decodes.items()}
    left = moves_at_once - sum(each.hold is Hold.MOVING for requests in held.values() for each in requests)
    found: list[Shift] = []
    for source_id in sorted(decodes, key=lambda key: (capacity[key] - peak_tokens(loads[key]), key)):
        movable = [each for each in held.get(source_id, ()) if each.hold is Hold.DECODING]
        movable.sort(key=lambda each: (-each.remaining_tokens, each.request_id))
        for request in movable:
            if left <= 0 or peak_tokens(loads[source_id]) <= capacity[source_id]:
                break
            one = (request.context_tokens, request.remaining_tokens)
            blocks = -(-sum(one) // block_size_tokens)
            after = {
                key: peak_tokens([*loads[key], one]) / max(1, capacity[key])
                for key in decodes
                if key != source_id and headroom[key] >= blocks
            }
            fitting = [key for key, fill in after.items() if fill <= TARGET_FILL]
            if not fitting:
                continue
            target_id = min(fitting, key=lambda key: (decodes[key].spot is not request.batch, after[key], key))
            loads[source_id].remove(one)
            loads[target_id].append(one)
            headroom[target_id] -= blocks
            left -= 1
            found.append(Shift(request.request_id, source_id, target_id, blocks))
    return found
