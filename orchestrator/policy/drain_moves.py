"""What leaves a draining worker next, and where it goes. Pure; the live gateway and the simulator ask it alike.

A request moves with its KV: its worker exports it, another decode worker reads it, and its stream pauses meanwhile. So
few move at a time. Those with the most work left go first: the ones with the least may be done before their turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cluster.spec.config import Role
from orchestrator.policy.router import WorkerView

DRAIN_TICK_S = 0.05
"""Time between two decisions while a worker drains: a move takes some 0.1 s on two cores, so the next one begins soon
after."""


class Hold(StrEnum):
    """What of a request is on the draining worker.

    RESERVED: only the reservation of blocks, its prefill runs elsewhere. DECODING: its KV. MOVING: on its way already.
    BUSY: in a phase in which it cannot be moved, such as the reading of its KV; a moment later it can.
    STAYS: its sampling would not keep its meaning elsewhere; it finishes where it is.
    """

    RESERVED = "reserved"
    DECODING = "decoding"
    MOVING = "moving"
    BUSY = "busy"
    STAYS = "stays"


@dataclass(frozen=True, slots=True)
class HeldRequest:
    """One request of a draining worker. ``remaining_tokens`` is a forecast; ``context_tokens`` have KV.

    ``batch``: it goes to spot workers first, others to them last, as the router has it. ``prefill_id``: the worker that
    reads its prompt, which may have become a decode worker since and cannot hand over to itself.
    """

    request_id: str
    hold: Hold
    context_tokens: int
    remaining_tokens: int
    batch: bool = False
    prefill_id: str | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Let the request go on at ``target_id``, where this many blocks are to be reserved first."""

    request_id: str
    target_id: str
    reserve_blocks: int


def is_to_be_emptied(role: Role, *, draining: bool, decodes: bool) -> bool:
    """Whether what a worker has is to be moved off it.

    Args:
        role: Its present role.
        draining: It is to be stopped once it is empty.
        decodes: Requests decode there, or have KV reserved there.

    Example:
        >>> is_to_be_emptied(Role.PREFILL, draining=False, decodes=True)  # it was a decode worker a moment ago
        True
    """
    return draining or (role is Role.PREFILL and decodes)


def next_moves(
    held: Iterable[HeldRequest],
    workers: Sequence[WorkerView],
    *,
    source_id: str,
    block_size_tokens: int,
    moves_at_once: int,
) -> list[Move]:
    """The moves to begin at this moment; none off a colocated worker, whose engine exports no KV.

    Args:
        held: Every request that has anything on the worker.
        workers: All workers; only decode workers that take work, have headroom and run the source's engine are targets.
        source_id: The draining worker.
        block_size_tokens: Tokens per KV block.
        moves_at_once: Most requests on their way at a time.

    Example:
        >>> d = [WorkerView(f"d{i}", Role.DECODE, 100, 100, accepting=i > 0) for i in range(2)]
        >>> long, short = (HeldRequest(f"{n}", Hold.DECODING, 64, n) for n in (900, 100))
        >>> next_moves([short, long], d, source_id="d0", block_size_tokens=32, moves_at_once=1)
        [Move(request_id='900', target_id='d1', reserve_blocks=31)]
    """
    held = list(held)
    source = next((worker for worker in workers if worker.worker_id == source_id), None)
    if source is not None and source.role is Role.COLOCATED:
        return []
    headroom = {
        worker.worker_id: worker.headroom_blocks
        for worker in workers
        if worker.role is Role.DECODE
        and worker.accepting
        and worker.worker_id != source_id
        and (source is None or worker.revision == source.revision)
    }
    total = {worker.worker_id: max(1, worker.total_blocks) for worker in workers}
    spot = {worker.worker_id: worker.spot for worker in workers}
    left = moves_at_once - sum(request.hold is Hold.MOVING for request in held)
    # A reservation moves without KV and pauses no stream, so those come first and do not count.
    waiting = [request for request in held if request.hold in (Hold.RESERVED, Hold.DECODING)]
    waiting.sort(key=lambda request: (request.hold is not Hold.RESERVED, -request.remaining_tokens, request.request_id))
    moves: list[Move] = []
    for request in waiting:
        if request.hold is Hold.DECODING and left <= 0:
            break
        blocks = -(-(request.context_tokens + request.remaining_tokens) // block_size_tokens)
        fitting = [key for key, free in headroom.items() if free >= blocks and key != request.prefill_id]
        if not fitting:
            continue  # a smaller one may fit; this one runs on here meanwhile
        target = max(fitting, key=lambda key: (spot[key] is request.batch, (headroom[key] - blocks) / total[key], key))
        headroom[target] -= blocks
        left -= request.hold is Hold.DECODING
        moves.append(Move(request.request_id, target, blocks))
    return moves


def empty_workers(
    worker_ids: Iterable[str],
    *,
    held: Callable[[str], Sequence[HeldRequest]],
    views: Callable[[], Sequence[WorkerView]],
    begin: Callable[[str, Move], None],
    block_size_tokens: int,
    moves_at_once: int,
) -> bool:
    """One tick: begin the moves that may begin off workers that are to be emptied, one worker after another by name.

    Args:
        worker_ids: The workers (`is_to_be_emptied`).
        held: What requests have on a worker.
        views: All workers, with what was reserved by then.
        begin: Begins a move off a worker.
        block_size_tokens: As of `next_moves`.
        moves_at_once: The same, for each worker.

    Returns:
        Whether a request still has anything on one, so that the next tick is due in `DRAIN_TICK_S`.
    """
    busy = False
    for worker_id in sorted(worker_ids):
        requests = held(worker_id)
        if not requests:
            continue
        busy = True
        for move in next_moves(
            requests,
            views(),
            source_id=worker_id,
            block_size_tokens=block_size_tokens,
            moves_at_once=moves_at_once,
        ):
            begin(worker_id, move)
    return busy
