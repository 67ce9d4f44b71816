"""Distributions of lengths. Each turns a standard normal score into tokens, so that lengths can be correlated."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cluster.errors import ConfigError
from planner.simulator.workload import Floats, Ints

_erf = np.frompyfunc(math.erf, 1, 1)


class Lengths(Protocol):
    """A distribution of token counts."""

    def at(self, score: Floats) -> Ints:
        """Tokens at standard normal scores: 0 gives the median, 1.645 the 95th percentile."""
        ...


def normal_cdf(score: Floats) -> Floats:
    """Standard normal distribution function."""
    return np.asarray(0.5 * (1.0 + np.asarray(_erf(score / math.sqrt(2.0)), np.float64)))


def _whole(tokens: Floats, low: int, high: int) -> Ints:
    return np.asarray(np.clip(np.rint(tokens), low, high), np.int64)


def sample(lengths: Lengths, count: int, rng: np.random.Generator) -> Ints:
    """Independent draws.

    Example:
        >>> sample(Fixed(7), 3, np.random.default_rng(0)).tolist()
        [7, 7, 7]
    """
    return lengths.at(rng.standard_normal(count))


def sample_pair(
    first: Lengths, second: Lengths, correlation: float, count: int, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Draws of two lengths whose normal scores have this correlation (a Gaussian copula)."""
    one, other = rng.standard_normal(count), rng.standard_normal(count)
    return first.at(one), second.at(correlation * one + math.sqrt(1.0 - correlation**2) * other)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length, as load generators send it."""

    tokens: int

    def at(self, score: Floats) -> Ints:
        """The length, whatever the score."""
        return np.full(len(score), self.tokens, np.int64)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A lognormal length, cut at ``min_tokens`` and ``max_tokens``.

    Args:
        median_tokens: Half of all are below.
        sigma: Spread of the logarithm; 1.0 puts the 95th percentile at five times the median.
    """

    median_tokens: float
    sigma: float
    min_tokens: int = 1
    max_tokens: int = 1 << 20

    def __post_init__(self) -> None:
        if self.median_tokens <= 0 or self.sigma < 0 or not 0 <= self.min_tokens <= self.max_tokens:
            raise ConfigError("lengths.lognormal: expected median_tokens > 0, sigma >= 0, min_tokens <= max_tokens")

    @classmethod
    def of_mean(cls, mean_tokens: float, cv: float = 1.0) -> LogNormal:
        """The lognormal with this mean and coefficient of variation. A bare mean is taken with 1, never 0.

        Example:
            >>> LogNormal.of_mean(1000.0)
            LogNormal(median_tokens=707.1, sigma=0.8326, min_tokens=1, max_tokens=1048576)
        """
        sigma = math.sqrt(math.log1p(cv * cv))
        return cls(round(mean_tokens / math.sqrt(1 + cv * cv), 1), round(sigma, 4))

    def at(self, score: Floats) -> Ints:
        """Tokens at normal scores."""
        tokens = self.median_tokens * np.exp(self.sigma * score)
        return _whole(np.minimum(tokens, self.max_tokens), self.min_tokens, self.max_tokens)


@dataclass(frozen=True)
class Mixture:
    """Several lognormals with weights: short and long traces, say.

    Example:
        >>> mixture = Mixture(((0.9, LogNormal(100, 0.1)), (0.1, LogNormal(10_000, 0.1))))
        >>> [int(value) for value in mixture.at(np.array([0.0, 2.0])) // 1000]
        [0, 10]
    """

    parts: tuple[tuple[float, LogNormal], ...]
    _table: tuple[Floats, Floats] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        total = sum(weight for weight, _ in self.parts)
        if not self.parts or total <= 0 or min(weight for weight, _ in self.parts) < 0:
            raise ConfigError("lengths.mixture: expected parts with weights >= 0 that are not all 0")
        logs = [math.log(part.median_tokens) for _, part in self.parts]
        reach = max(6 * part.sigma for _, part in self.parts) + 0.1
        grid = np.linspace(min(logs) - reach, max(logs) + reach, 8001)
        shares = np.zeros_like(grid)
        for weight, part in self.parts:
            shares += weight / total * normal_cdf((grid - math.log(part.median_tokens)) / max(part.sigma, 1e-6))
        object.__setattr__(self, "_table", (shares, grid))

    def at(self, score: Floats) -> Ints:
        """Tokens at normal scores, by the inverse of the summed distribution."""
        shares, grid = self._table
        tokens = np.exp(np.interp(normal_cdf(score), shares, grid))
        low = min(part.min_tokens for _, part in self.parts)
        high = max(part.max_tokens for _, part in self.parts)
        return _whole(tokens, low, high)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """An empirical length: values of the inverse distribution at even steps from 0 to 1, straight lines between.

    Example:
        >>> Quantiles((10, 20, 1000)).at(np.array([-9.0, 0.0, 9.0])).tolist()
        [10, 20, 1000]
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or any(b < a for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ConfigError("lengths.quantiles: expected at least two rising values")

    def at(self, score: Floats) -> Ints:
        """Tokens at normal scores."""
        return np.rint(self.at_share(normal_cdf(score))).astype(np.int64)

    def at_share(self, share: Floats) -> Floats:
        """Values (not rounded) at shares from 0 to 1."""
        return np.interp(share, np.linspace(0.0, 1.0, len(self.values)), np.asarray(self.values, np.float64))
