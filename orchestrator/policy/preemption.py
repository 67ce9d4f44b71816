"""Preemption by recompute, the last resort when KV has run out and more is on its way: when, of which request, and when
that one may come back. Pure; gateways and the simulator decide by it alike."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.spec.config import Role
from orchestrator.policy.router import WorkerView, holders_among

RESUME_MARGIN = 0.05
"""Share of a worker's KV left to new requests when a preempted request comes back while the pool is growing."""
TAKE_BACK_EVERY_S = 6.0
"""Seconds between two that come back to one worker. Reading a long trace again is one or two long steps, and a slow gap
in all others on the worker: about one gap in seventy, where objectives allow one in twenty and prompts that the worker
reads for an overloaded prefill pool need the rest."""
RESAMPLE_S = 0.1
"""Pause after all running requests were tried and none may be preempted: a busy gateway has an occasion every
millisecond."""
SLACK_S = 1e-9
"""Times are sums of others: a timer set for the moment at which something may happen must find that it may."""


@dataclass(frozen=True, slots=True)
class Running:
    """One decoding request. ``blocks`` are those it would free; ``preempted``: it was before, and is not again."""

    request: int
    worker_id: str
    priority: int
    blocks: int
    generated_tokens: int
    preempted: bool


def patience_is_over(now_s: float, since_s: float | None, patience_s: float | None) -> bool:
    """Whether a request has been without KV for long enough that another is preempted for it.

    Args:
        now_s: The time.
        since_s: Since when it finds no KV; None: it has not been tried yet.
        patience_s: Seconds it is to wait; None: no request is ever preempted.

    Example:
        >>> patience_is_over(5.0, 3.0, 2.0), patience_is_over(4.9, 3.0, 2.0), patience_is_over(9.0, 3.0, None)
        (True, False, False)
    """
    return since_s is not None and patience_s is not None and now_s >= since_s + patience_s - SLACK_S


def preempt_for(
    need_blocks: int,
    priority: int,
    workers: Sequence[WorkerView],
    running: Iterable[Running],
    *,
    local_prefill_below_tokens: int = 0,
) -> Running | None:
    """`victim` on the workers on which the new request could decode."""
    holders = holders_among(workers, local_prefill_below_tokens)
    return victim(need_blocks, priority, {each.worker_id: each.headroom_blocks for each in holders}, running)


def victim(
    need_blocks: int, priority: int, headroom_blocks: Mapping[str, int], running: Iterable[Running]
) -> Running | None:
    """The request to preempt so that one of ``priority`` comes nearer to ``need_blocks`` on some worker, or None.

    The longest trace goes: it frees the most, it likely has the longest way to go, and the pause is the least part of
    its time. No request is preempted twice, so the work done again is bounded.

    Args:
        need_blocks: Prompt and what the new request will grow by.
        priority: Of the new request; none of a higher one is preempted for it.
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
        free = headroom_blocks[each.worker_id] + each.blocks
        enough = free >= need_blocks
        # Where no one request is enough, begin on the worker that is nearest to it.
        rank = (enough, 0 if enough else free, each.generated_tokens, each.request)
        if best is None or rank > best:
            best, chosen = rank, each
    return chosen


def may_take_back(
    workers: Sequence[WorkerView], need_blocks: int, *, growing: bool, resting: Container[str] = ()
) -> list[WorkerView]:
    """The workers to which a preempted request may come back, out of all.

    While a worker is on its way, only where new requests keep headroom: else it would return at the first block freed,
    and the next new request would preempt another. And only where no prompt is being read, and none came
    back to just now (``resting``), so that the tokens of others seldom wait.

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


class TakeBacks:
    """Owns when a preempted request last came back to each worker.

    Example:
        >>> backs = TakeBacks()
        >>> backs.came_back("d0", 10.0)
        >>> [backs.resting(now_s) for now_s in (10.0, 15.9, 16.0)]
        [{'d0'}, {'d0'}, set()]
    """

    def __init__(self) -> None:
        self._came_s: dict[str, float] = {}

    def came_back(self, worker_id: str, now_s: float) -> None:
        """One came back to a worker; the next may `TAKE_BACK_EVERY_S` later, and is to be tried then."""
        self._came_s[worker_id] = now_s

    def resting(self, now_s: float) -> set[str]:
        """Workers to which none may come back at present."""
        return {name for name, came_s in self._came_s.items() if now_s < came_s + TAKE_BACK_EVERY_S - SLACK_S}

    def open_workers(
        self, workers: Sequence[WorkerView], need_blocks: int, *, growing: bool, now_s: float
    ) -> list[WorkerView]:
        """`may_take_back` at this time."""
        return may_take_back(workers, need_blocks, growing=growing, resting=self.resting(now_s))
