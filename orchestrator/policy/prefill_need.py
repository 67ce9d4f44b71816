"""How many prefill workers the prompts of the last minutes would have needed. Pure, and of bounded memory."""

from __future__ import annotations

from collections import deque

import numpy as np

from orchestrator.policy.survival import Floats, Ints

LATE_SHARE = 0.25
"""Prompts that may be late by this forecast: decode workers help out past a second's wait, and keep most of those."""
SLACK_BINS = 32


class PromptWindow:
    """The prompts of the last minutes by second of arrival: their work, and how long each may wait.

    Memory and time grow with the seconds kept, not with the prompts: a second's prompts are counted by the wait
    that still keeps the objective, in `SLACK_BINS` bins of which each counts as its strictest.

    Args:
        ttft_s: Objective.
        keep_s: Seconds remembered.

    Example:
        >>> window = PromptWindow(ttft_s=2.0, keep_s=300.0)
        >>> for half in range(200):
        ...     window.add(half / 2, 1.0)
        >>> 1.9 < window.workers_needed(100.0, 300.0) < 2.3
        True
    """

    def __init__(self, *, ttft_s: float, keep_s: float) -> None:
        self._ttft_s = ttft_s
        self._keep_s = keep_s
        self._seconds: deque[tuple[int, Ints]] = deque()
        self._work: deque[float] = deque()

    def __len__(self) -> int:
        return len(self._seconds)

    def add(self, time_s: float, work_s: float) -> None:
        """A prompt came, no earlier than the one before, that takes one worker ``work_s``."""
        second = int(time_s)
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append((second, np.zeros(SLACK_BINS + 1, np.int64)))
            self._work.append(0.0)
            while self._seconds[0][0] < second - self._keep_s:
                self._seconds.popleft()
                self._work.popleft()
        # The last bin is for prompts that take longer than the objective by themselves: no pool would keep it.
        slack = (self._ttft_s - work_s) / self._ttft_s
        self._seconds[-1][1][min(SLACK_BINS - 1, int(slack * SLACK_BINS)) if slack > 0 else SLACK_BINS] += 1
        self._work[-1] += work_s

    def workers_needed(self, now_s: float, span_s: float) -> float:
        """Fewest workers, as a real number, with which all but `LATE_SHARE` of the span's prompts are read in time.

        The prompts queue again before a pool that does as many seconds of work a second as it has workers. What one
        prompt takes by itself is left out of its own wait, since no number of workers would shorten it, and the wait
        must leave time for it.
        """
        rows = [index for index, (second, _) in enumerate(self._seconds) if second > now_s - span_s - 1]
        if not rows:
            return 0.0
        first = self._seconds[rows[0]][0]
        seconds = max(int(np.ceil(now_s)), self._seconds[-1][0] + 1) - first
        arriving, counts = np.zeros(seconds), np.zeros((seconds, SLACK_BINS + 1), np.int64)
        for index in rows:
            second, slacks = self._seconds[index]
            arriving[second - first], counts[second - first] = self._work[index], slacks
        high = max(1.0, float(arriving.max()))
        low = min(high, float(arriving.sum()) / seconds * 0.9)
        for _ in range(14):
            middle = (low + high) / 2
            late = _late_share(arriving, counts, self._ttft_s, middle)
            low, high = (middle, high) if late > LATE_SHARE else (low, middle)
        return round(high, 3)


def _late_share(arriving: Floats, counts: Ints, ttft_s: float, workers: float) -> float:
    # Lindley: backlog before each second, as the running sum less its running minimum.
    walk = np.concatenate(([0.0], np.cumsum(arriving - workers)))
    backlog = walk - np.minimum.accumulate(walk)
    # Within a second the prompts come one after the other: on average half of that second's work is ahead.
    wait = (backlog[:-1] + np.maximum(0.0, arriving / 2 - workers / 2)) / max(workers, 1e-9)
    # A prompt in bin b may wait b bins; so those in bins up to the wait are late.
    late_below = np.minimum(SLACK_BINS, np.ceil(wait / ttft_s * SLACK_BINS)).astype(np.int64)
    late = np.concatenate(
        (
            np.zeros((len(counts), 1), np.int64),
            np.cumsum(counts[:, :-1], axis=1),
        ),
        axis=1,
    )
    return float(late[np.arange(len(counts)), late_below].sum() / counts.sum())
