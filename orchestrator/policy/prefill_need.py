"""How many prefill workers the prompts of the last minutes would have needed. Pure."""

from __future__ import annotations

import numpy as np

from orchestrator.policy.survival import Floats, Ints

LATE_SHARE = 0.25
"""Prompts that may be late by this forecast: decode workers help out past a second's wait, and keep most of those."""


def prefill_workers_needed(times_s: Floats, work_s: Floats, now_s: float, ttft_s: float) -> float:
    """Fewest workers, as a real number, with which all but `LATE_SHARE` of these prompts are read in time.

    The prompts queue again before a pool that does as many seconds of work a second as it has workers. What one
    prompt takes by itself is left out of its own wait, since no number of workers would shorten it, and the wait must
    leave room for it.

    Args:
        times_s: Arrivals, rising.
        work_s: Seconds one worker takes for each prompt.
        now_s: End of the span looked at.
        ttft_s: Objective.

    Example:
        >>> times = np.arange(0.0, 100.0, 0.5)
        >>> 1.9 < prefill_workers_needed(times, np.full(200, 1.0), 100.0, 2.0) < 2.2
        True
    """
    if not len(times_s):
        return 0.0
    first = float(times_s[0])
    seconds = max(1, int(np.ceil(now_s - first)))
    index = np.minimum((times_s - first).astype(np.int64), seconds - 1)
    arriving: Floats = np.bincount(index, weights=work_s, minlength=seconds).astype(np.float64)
    counts: Ints = np.bincount(index, minlength=seconds).astype(np.int64)
    # Prompts that fit the objective by themselves; of the others no pool could keep it.
    slack = np.where(work_s < ttft_s, ttft_s - work_s, np.inf)
    order = np.argsort(index, kind="stable")
    low, high = 0.0, max(1.0, float(arriving.max()))
    mean = float(work_s.sum()) / seconds
    low = min(high, mean * 0.9)
    for _ in range(14):
        middle = (low + high) / 2
        late = _late_share(arriving, counts, slack[order], middle)
        low, high = (middle, high) if late > LATE_SHARE else (low, middle)
    return round(high, 3)


def _late_share(arriving: Floats, counts: Ints, slack: Floats, workers: float) -> float:
    # Lindley: backlog before each second, as the running sum less its running minimum.
    walk = np.concatenate(([0.0], np.cumsum(arriving - workers)))
    backlog = walk - np.minimum.accumulate(walk)
    # Within a second the prompts come one after the other: on average half of that second's work is ahead.
    wait = (backlog[:-1] + np.maximum(0.0, arriving / 2 - workers / 2)) / max(workers, 1e-9)
    return float((np.repeat(wait, counts) > slack).mean())
