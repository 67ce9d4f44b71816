"""How far forecasts may be trusted: a band about them, from how wrong they were. Pure."""

from __future__ import annotations

import math
from collections import deque


class ForecastBand:
    """90 % band of outcome over forecast, tracked online.

    Each end of the band moves out a little when an outcome falls outside it and in a little when not, in proportion
    so that 5 % fall outside each end in the long run, whatever the errors look like.
    Source: adaptive conformal inference, arXiv:2106.00170.

    Args:
        step: How far (in log units) an end moves for one miss.
        start: Half width assumed before there is experience.

    Example:
        >>> band = ForecastBand()
        >>> band.look(0.0, 100.0, 120.0, 60.0)
        (0.8187..., 1.2214...)
    """

    def __init__(self, *, step: float = 0.02, start: float = 0.2) -> None:
        self._low, self._high = -start, start
        self._step = step
        self._waiting: deque[tuple[float, float, float, float]] = deque()
        self.covered = 0
        self.judged = 0
        self.errors: deque[float] = deque(maxlen=100_000)

    def look(self, now_s: float, actual: float, forecast: float, ahead_s: float) -> tuple[float, float]:
        """Judge the forecasts that were for ``now_s`` by ``actual``; take a new one and return its band's ratios."""
        while self._waiting and self._waiting[0][0] <= now_s + 1e-6:
            _, expected, low, high = self._waiting.popleft()
            if expected <= 0 or actual <= 0:
                continue
            error = math.log(actual / expected)
            self.judged += 1
            self.covered += low <= error <= high
            self.errors.append(error)
            self._high += self._step * (0.95 if error > self._high else -0.05)
            self._low -= self._step * (0.95 if error < self._low else -0.05)
            self._high, self._low = max(self._high, 0.01), min(self._low, -0.01)
        self._waiting.append((now_s + ahead_s, forecast, self._low, self._high))
        return math.exp(self._low), math.exp(self._high)
