"""Who makes way when KV has run out and more is on its way: preemption by recompute, the last resort. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Running:
    """One decoding request. ``blocks`` are those it holds; ``preempted``: it made way before and does not again."""

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
