"""Waiting in front of ``c`` equal servers: Erlang C, with variability by Allen and Cunneen.

Exact for M/M/c; the mean is exact for M/G/1 too (Pollaczek-Khinchine). The tail is taken as exponential.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival waits, with ``offered`` erlangs (rate times service time) at ``servers``.

    Example:
        >>> round(erlang_c(1, 0.7), 6)
        0.7
    """
    if offered >= servers:
        return 1.0
    if offered <= 0:
        return 0.0
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return servers * blocked / (servers - offered * (1.0 - blocked))


@dataclass(frozen=True)
class Wait:
    """Waiting time: with probability ``chance`` exponential with mean ``tail_s``, else nothing.

    Args:
        chance: Probability of waiting at all.
        tail_s: Mean wait of those that wait; infinite where the queue never ends.
    """

    chance: float
    tail_s: float

    @classmethod
    def before(
        cls, servers: int, rate_per_s: float, service_s: float, service_cv: float, arrival_cv: float = 1.0
    ) -> Wait:
        """Wait before ``servers`` servers of mean time ``service_s`` at ``rate_per_s`` arrivals.

        Example:
            >>> round(Wait.before(1, 0.5, 1.0, 0.0).mean_s, 3)  # M/D/1 at half load: rho s / (2 (1 - rho))
            0.5
        """
        offered = rate_per_s * service_s
        if offered >= servers:
            return cls(1.0, math.inf)
        variability = 0.5 * (arrival_cv**2 + service_cv**2)
        tail_s = variability * service_s / (servers - offered) if offered > 0 else 0.0
        return cls(erlang_c(servers, offered), tail_s)

    @property
    def mean_s(self) -> float:
        """Mean over all arrivals."""
        return self.chance * self.tail_s

    def quantile_with(
        self, probability: float, service_s: Sequence[float] | NDArray[np.float64], weights: NDArray[np.float64]
    ) -> float:
        """Quantile of wait plus an independent service time given by points and weights.

        Solves ``sum_i w_i P(W > x - s_i) = 1 - p`` by bisection.
        """
        points = np.asarray(service_s, dtype=float)
        if not math.isfinite(self.tail_s):
            return math.inf
        miss = 1.0 - probability
        low, high = 0.0, float(points.max()) + self.tail_s * max(0.0, math.log(max(self.chance, 1e-12) / miss)) + 1e-9

        def above(x: float) -> float:
            left = x - points
            if self.tail_s <= 0 or self.chance <= 0:
                tail = np.where(left < 0, 1.0, 0.0)
            else:
                tail = np.where(left < 0, 1.0, self.chance * np.exp(-np.maximum(left, 0.0) / self.tail_s))
            return float(tail @ weights)

        for _ in range(32):
            middle = 0.5 * (low + high)
            if above(middle) > miss:
                low = middle
            else:
                high = middle
        return high
