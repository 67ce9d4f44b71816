"""Survival curves of output length, many classes at once: hazards per length bin, and what follows from them. Pure.

A class's curve is piecewise exponential: within a bin of lengths every further token ends the request with the same
probability. With narrow bins this is the Kaplan-Meier estimate; unlike it, it needs no list of past requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EDGES: Floats = np.concatenate(([0.0], np.geomspace(16.0, 131072.0, 53)))
"""Lower ends of the bins in tokens, 19 % apart; the last bin has no upper end."""
BINS = len(EDGES)
_WIDTHS: Floats = np.append(np.diff(EDGES), np.inf)
_UPPER: Floats = np.append(EDGES[1:], np.inf)
_LEAST_RATE = 1e-7


def exposure(classes: Ints, start: Floats, end: Floats, class_count: int) -> Floats:
    """Tokens that intervals ``[start, end)`` spend in each bin, summed by class, shape ``(class_count, BINS)``.

    A tick of a running request covers one or two bins, so the bins that each interval reaches are gone through one
    after the other: the cost follows what was generated, not the number of bins.

    Example:
        >>> spent = exposure(np.array([0, 0]), np.array([0.0, 10.0]), np.array([20.0, 16.0]), 1)
        >>> spent[0, :3].round(2).tolist()
        [22.0, 3.03, 0.97]
    """
    total: Floats = np.zeros(class_count * BINS)
    at, last = bin_of(start), bin_of(end)
    while len(at):
        spent = np.minimum(end, _UPPER[at]) - np.maximum(start, EDGES[at])
        total += np.bincount(classes * BINS + at, weights=np.maximum(0.0, spent), minlength=len(total))
        on = at < last
        classes, start, end, at, last = classes[on], start[on], end[on], at[on] + 1, last[on]
    return total.reshape(class_count, BINS)


def bin_of(tokens: npt.NDArray[Any]) -> Ints:
    """Bin of each length."""
    found: Ints = np.searchsorted(EDGES, tokens, side="right") - 1
    return np.maximum(found, 0)


@dataclass(frozen=True, slots=True)
class Curves:
    """Survival curves of several classes.

    Args:
        rates: Hazard per token, shape ``(classes, BINS)``, positive.

    Example:
        >>> flat = Curves.of(np.full((1, BINS), 0.01))
        >>> float(flat.mean_left(np.array([0]), np.array([500.0]))[0].round(3))
        100.0
        >>> float(flat.quantile_left(np.array([0]), np.array([0.0]), 0.9)[0].round(2))
        230.26
    """

    rates: Floats
    hazard_at: Floats
    """Summed hazard at the lower end of each bin."""
    mean_at: Floats
    """Expected tokens still to come at the lower end of each bin."""

    @classmethod
    def of(cls, rates: Floats) -> Curves:
        """Curves with these hazards."""
        rates = np.maximum(rates, _LEAST_RATE)
        steps = rates[:, :-1] * _WIDTHS[:-1]
        hazard_at = np.concatenate((np.zeros((len(rates), 1)), np.cumsum(steps, axis=1)), axis=1)
        # From the last bin down, each by the next: nothing underflows, however sure an end is.
        mean_at = 1.0 / rates
        ends = -np.expm1(-steps)
        for index in range(BINS - 2, -1, -1):
            here = ends[:, index]
            mean_at[:, index] = here / rates[:, index] + (1.0 - here) * mean_at[:, index + 1]
        return cls(rates, hazard_at, mean_at)

    def hazard(self, classes: Ints, tokens: Floats) -> Floats:
        """Summed hazard at each length: ``-ln`` of the probability to get further."""
        at = bin_of(tokens)
        found: Floats = self.hazard_at[classes, at] + self.rates[classes, at] * (tokens - EDGES[at])
        return found

    def survival(self, classes: Ints, made: Floats, tokens: Floats) -> Floats:
        """Probability that a request that has made ``made`` tokens makes ``tokens`` more."""
        return np.exp(self.hazard(classes, made) - self.hazard(classes, made + tokens))

    def mean_left(self, classes: Ints, made: Floats) -> Floats:
        """Expected tokens still to come."""
        at = bin_of(made)
        rates, last = self.rates[classes, at], at == BINS - 1
        following = np.minimum(at + 1, BINS - 1)
        ends = np.where(last, 1.0, -np.expm1(-rates * np.where(last, 0.0, EDGES[following] - made)))
        found: Floats = ends / rates + (1.0 - ends) * self.mean_at[classes, following]
        return found

    def quantile_left(self, classes: Ints, made: Floats, share: float) -> Floats:
        """Tokens still to come that a ``share`` of requests do not exceed."""
        target = self.hazard(classes, made) - np.log1p(-share)
        rows = self.hazard_at[classes]
        at = np.maximum((rows <= target[:, None]).sum(axis=1) - 1, 0)
        picked = np.arange(len(at))
        end = EDGES[at] + (target - rows[picked, at]) / self.rates[classes, at]
        left: Floats = np.maximum(0.0, end - made)
        return left
