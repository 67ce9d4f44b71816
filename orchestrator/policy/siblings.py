"""Where the further choices of a request go: beside a sibling that has their prompt's KV. Pure.

The first choice brings the KV of the prompt to a decode worker. The others then start there by themselves and find it
in the prefix cache, so that one prefill and one transfer serve all of them; where the worker has no headroom for one
more, that one is placed as a first choice would be, and brings the KV to another worker.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.spec.config import Role
from orchestrator.policy.router import Placement, RequestView, WorkerView, holder_rank


def shared_blocks(isl_tokens: int, block_size_tokens: int) -> int:
    """Blocks of a prompt that its choices share: the full ones, without that of the last token, which is computed.

    Example:
        >>> [shared_blocks(tokens, 32) for tokens in (31, 32, 33, 64, 65)]
        [0, 0, 1, 1, 2]
    """
    return (isl_tokens - 1) // block_size_tokens


def place_beside(
    request: RequestView, workers: Sequence[WorkerView], *, avoid: frozenset[str] = frozenset()
) -> Placement | None:
    """The least filled worker that has the prompt in use and headroom for what is not shared; None if there is none.

    Example:
        >>> d = WorkerView("d0", Role.DECODE, total_blocks=100, free_blocks=3)
        >>> place_beside(RequestView(64, 64, 32, {}, held_on=frozenset({"d0"}), shared_blocks=1), [d])
        Placement(prefill_id=None, decode_id='d0', reserve_blocks=4)
    """
    need = request.reserve_blocks - request.shared_blocks
    holders = [
        worker
        for worker in workers
        if worker.worker_id in request.held_on
        and worker.worker_id not in avoid
        and worker.accepting
        and worker.role is not Role.PREFILL
        and worker.headroom_blocks >= need
    ]
    if not holders:
        return None
    holder = min(holders, key=lambda worker: holder_rank(worker, request))
    return Placement(None, holder.worker_id, request.reserve_blocks)
