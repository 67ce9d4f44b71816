"""Gaps between tokens, as a histogram: a run has hundreds of millions of them and keeps none."""

from __future__ import annotations

import math

_LOW_S, _RATIO, _BINS = 1e-5, 1.01, 1900
_LOG = math.log(_RATIO)


class GapHistogram:
    """Token-weighted counts of gaps in bins 1 % wide, from 10 µs up to some 1,600 s.

    Example:
        >>> gaps = GapHistogram()
        >>> gaps.add(0.020, 95)
        >>> gaps.add(0.100, 5)
        >>> 0.0198 < gaps.quantile_s(0.5) < 0.0202, 0.099 < gaps.quantile_s(0.99) < 0.101
        (True, True)
        >>> round(gaps.mean_s, 6)
        0.024
    """

    def __init__(self) -> None:
        self.counts = [0.0] * _BINS
        self.total = 0.0
        self.sum_s = 0.0

    def add(self, gap_s: float, count: float) -> None:
        """Count ``count`` gaps of ``gap_s`` seconds."""
        self.counts[_bin(gap_s)] += count
        self.total += count
        self.sum_s += gap_s * count

    def add_run(self, first_s: float, last_s: float, count: float) -> None:
        """Count gaps that go evenly from ``first_s`` up to ``last_s``."""
        self.total += count
        self.sum_s += (first_s + last_s) / 2 * count
        low, high = _bin(first_s), _bin(last_s)
        if low == high:
            self.counts[low] += count
            return
        if low > high:
            low, high, first_s, last_s = high, low, last_s, first_s
        per_s, at_s = count / (last_s - first_s), first_s
        for index in range(low, high):
            edge_s = _LOW_S * math.exp((index + 1) * _LOG)
            self.counts[index] += max(0.0, edge_s - at_s) * per_s
            at_s = max(at_s, edge_s)
        self.counts[high] += max(0.0, last_s - at_s) * per_s

    def merge(self, other: GapHistogram) -> None:
        """Add the counts of another histogram."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total
        self.sum_s += other.sum_s

    @property
    def mean_s(self) -> float:
        """Mean gap, exact; 0 if there was none."""
        return self.sum_s / self.total if self.total else 0.0

    def quantile_s(self, share: float) -> float:
        """Gap that ``share`` of all gaps do not exceed, within 0.5 %; 0 if there was none."""
        target, seen = share * self.total, 0.0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= target:
                return _LOW_S * math.exp((index + 0.5) * _LOG)
        return 0.0

    def share_above(self, limit_s: float) -> float:
        """Share of gaps longer than ``limit_s``, by whole bins."""
        return sum(self.counts[_bin(limit_s) + 1 :]) / self.total if self.total else 0.0


def _bin(gap_s: float) -> int:
    if gap_s <= _LOW_S:
        return 0
    return min(_BINS - 1, int(math.log(gap_s / _LOW_S) / _LOG))
