"""How far forecasts may be trusted: a band about them, from how wrong they were. Pure."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

TAIL_SHARE = 0.05
"""Share of outcomes that may lie outside each end."""
_LEAST_ERROR = 0.02
_ASSUMED = 20


class ForecastBand:
    """90 % band of outcome over forecast: quantiles of past errors, at a level that is itself corrected by misses.

    The ends are quantiles of the last errors (in log units). A miss moves the quantile of that end outwards, a hit a
    little inwards, in the proportion that leaves 5 % outside each end in the long run whatever the errors look like,
    drift included. Quantiles remember what an excursion looked like, so the next one finds the band wide enough; a band
    that only moved its ends by steps was always late, since forecasts are judged `ahead_s` after they were made.
    Source: adaptive conformal inference, arXiv:2106.00170.

    Args:
        step: How far the level of an end moves for one miss.
        window: Errors remembered.
        start: Half width assumed before there is experience; it counts as twenty errors spread evenly.

    Example:
        >>> band = ForecastBand()
        >>> band.observe(0.0, 100.0, 120.0, 60.0)
        (0.7408..., 1.3498...)
    """

    def __init__(self, *, step: float = 0.005, window: int = 720, start: float = 0.3) -> None:
        self._levels = [TAIL_SHARE, TAIL_SHARE]
        self._step = step
        self._recent: deque[float] = deque(np.linspace(-start, start, _ASSUMED).tolist(), maxlen=window)
        self._waiting: deque[tuple[float, float, float, float]] = deque()
        self.covered = 0
        self.judged = 0

    def observe(self, now_s: float, actual: float, forecast: float, ahead_s: float) -> tuple[float, float]:
        """Judge the forecasts that were for ``now_s`` by ``actual``; take a new one and return its band's ratios."""
        while self._waiting and self._waiting[0][0] <= now_s + 1e-6:
            _, expected, low, high = self._waiting.popleft()
            if expected <= 0 or actual <= 0:
                continue
            error = math.log(actual / expected)
            self.judged += 1
            self.covered += low <= error <= high
            self._recent.append(error)
            for end, missed in enumerate((error < low, error > high)):
                self._levels[end] = min(0.5, self._levels[end] + self._step * (TAIL_SHARE - missed))
        errors = np.sort(self._recent)
        low, high = -_end(-errors[::-1], self._levels[0]), _end(errors, self._levels[1])
        self._waiting.append((now_s + ahead_s, forecast, low, high))
        return math.exp(low), math.exp(high)


def _end(rising: np.typing.NDArray[np.float64], level: float) -> float:
    """The error that a share ``level`` exceed; below 0, so much further out than the largest."""
    if level <= 0:
        return max(_LEAST_ERROR, float(rising[-1])) * (1.0 - level)
    at = min(len(rising), math.ceil((1.0 - level) * (len(rising) + 1))) - 1
    return max(_LEAST_ERROR, float(rising[at]))
