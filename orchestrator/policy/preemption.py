"""Who makes way when KV has run out and more is on its way: preemption by recompute, the last resort. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.spec.config import Role
from orchestrator.policy.router import WorkerView

RESUME_MARGIN = 0.05
"""Share of a worker's KV left to newcomers when one that made way comes back while the pool is growing."""
TAKE_BACK_EVERY_S = 6.0
"""Seconds between two that come back to one worker. Reading a long trace again is one or two long steps, and a slow gap
in all others on the worker: about one gap in seventy, where objectives allow one in twenty and prompts that the worker
reads for a crowded prefill pool need the rest."""


@dataclass(frozen=True, slots=True)
class Running:
    """One decoding request. ``blocks`` are those it would free; ``preempted``: it made way before, and not again."""

    request: int
    worker_id: str
    priority: int
    blocks: int
    generated_tokens: int
    preempted: bool


def victim(
    need_blocks: int, priority: int, headroom_blocks: Mapping[str, int], running: Iterable[Running]
) -> Running | None:
    """The request to preempt so that one of ``priority`` comes nearer to ``need_blocks`` on some worker, or None.

    The longest trace goes: it frees the most, it likely has the longest way to go, and the pause is the least part of
    its time. No request is preempted twice, so the work done again is bounded.

    Args:
        need_blocks: Prompt and what the newcomer will grow by.
        priority: Of the newcomer; none of a higher one makes way for it.
        headroom_blocks: Of every worker that takes requests.
        running: All that decode.

    Example:
        >>> old, new = Running(1, "d", 0, 50, 800, False), Running(2, "d", 0, 40, 100, False)
        >>> victim(60, 0, {"d": 15}, [new, old]).request
        1
        >>> victim(60, -1, {"d": 15}, [new, old]) is None
        True
    """
    best: tuple[bool, int, int, int] | None = None
    chosen: Running | None = None
    for each in running:
        if each.preempted or each.priority > priority or each.worker_id not in headroom_blocks:
            continue
        room = headroom_blocks[each.worker_id] + each.blocks
        enough = room >= need_blocks
        # Where no one request is enough, begin on the worker that is nearest to it.
        rank = (enough, 0 if enough else room, each.generated_tokens, each.request)
        if best is None or rank > best:
            best, chosen = rank, each
    return chosen


def may_take_back(
    workers: Sequence[WorkerView], need_blocks: int, *, growing: bool, resting: Container[str] = ()
) -> list[WorkerView]:
    """The workers to which a request that made way may come back, out of all.

    While a worker is on its way, only where newcomers keep room: else it would be let in at the first block freed and
    the next newcomer would drive out another. And only where no prompt is being read, and none came back to just now
    (``resting``), so that the tokens of others seldom wait.

    Example:
        >>> full = WorkerView("d0", Role.DECODE, total_blocks=1000, free_blocks=120, running_requests=9)
        >>> [worker.worker_id for worker in may_take_back([full], 100, growing=True)]
        []
        >>> [worker.worker_id for worker in may_take_back([full], 100, growing=False)]
        ['d0']
    """
    return [
        worker
        for worker in workers
        if worker.role is Role.PREFILL
        or worker.running_requests == 0
        or (
            not worker.queued_tokens
            and worker.worker_id not in resting
            and worker.headroom_blocks >= need_blocks + (RESUME_MARGIN * worker.total_blocks if growing else 0)
        )
    ]
