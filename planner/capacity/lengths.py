"""A token length as a distribution: points with weights, from a mean and spread, from quantiles, or from a trace.

Nothing here sizes by a mean: what sizing reads are moments and quantiles. A request in flight is more likely a
long one, so the context of a running request averages ``ISL + E[O^2] / (2 E[O])``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError

Floats = NDArray[np.float64]
DEFAULT_CV = 1.0
"""Coefficient of variation assumed for a length given as a bare mean: that of production traces, never 0."""
_POINTS = 256
_NORMAL = NormalDist()


@dataclass(frozen=True, eq=False)
class LengthDistribution:
    """Lengths in tokens and how likely each is.

    Args:
        values: Lengths, rising.
        weights: Probabilities, summing to 1.

    Example:
        >>> lengths = LengthDistribution.lognormal(mean_tokens=1000, cv=1)
        >>> round(lengths.mean), round(lengths.cv, 2), round(lengths.quantile(0.5))
        (1000, 1.0, 707)
    """

    values: Floats
    weights: Floats

    def __post_init__(self) -> None:
        if self.values.size == 0 or self.values.size != self.weights.size:
            raise ConfigError("lengths: expected as many weights as values, and at least one")
        if not np.isfinite(self.values).all() or float(self.values[0]) < 0:
            raise ConfigError("lengths: expected finite values >= 0")

    @classmethod
    def lognormal(cls, mean_tokens: float, cv: float = DEFAULT_CV) -> LengthDistribution:
        """Lognormal with this mean and coefficient of variation; ``cv=0`` is one fixed length."""
        if not (math.isfinite(mean_tokens) and mean_tokens >= 0 and math.isfinite(cv) and cv >= 0):
            raise ConfigError(f"lengths: mean={mean_tokens}, cv={cv}: expected finite values >= 0")
        if cv == 0 or mean_tokens == 0:
            return cls(np.array([float(mean_tokens)]), np.ones(1))
        sigma = math.sqrt(math.log1p(cv * cv))
        # Bins even in the exponent and reaching past where the second moment lies; each point is its bin's mean.
        edges = np.linspace(-5.0, 5.0 + 2.0 * sigma, _POINTS + 1)
        edges[0], edges[-1] = -np.inf, np.inf
        mass = np.diff([_NORMAL.cdf(float(edge)) for edge in edges])
        share = np.diff([_NORMAL.cdf(float(edge) - sigma) for edge in edges])
        kept = mass > 1e-14
        return cls(mean_tokens * share[kept] / mass[kept], mass[kept] / mass[kept].sum())

    @classmethod
    def from_quantiles(cls, quantiles: Mapping[float, float]) -> LengthDistribution:
        """From an inverse CDF: probability (0 to 1) to tokens, straight lines between.

        Raises:
            ConfigError: fewer than two points, a probability outside 0 to 1, or tokens that fall.
        """
        pairs = sorted(quantiles.items())
        probabilities, tokens = [p for p, _ in pairs], [t for _, t in pairs]
        if len(pairs) < 2 or probabilities[0] < 0 or probabilities[-1] > 1 or tokens != sorted(tokens):
            raise ConfigError("lengths.quantiles: expected two or more of 0..1, with tokens that do not fall")
        grid = (np.arange(4 * _POINTS) + 0.5) / (4 * _POINTS)
        return cls(np.interp(grid, probabilities, tokens), np.full(grid.size, 1.0 / grid.size))

    @classmethod
    def from_samples(cls, samples: Sequence[float] | NDArray[np.generic]) -> LengthDistribution:
        """From observed lengths."""
        values = np.sort(np.asarray(samples, dtype=float))
        if values.size == 0:
            raise ConfigError("lengths: the trace holds no request")
        return cls(values, np.full(values.size, 1.0 / values.size)).compressed()

    @cached_property
    def mean(self) -> float:
        """Mean, tokens."""
        return float(self.values @ self.weights)

    def moment(self, order: int) -> float:
        """Mean of the ``order``-th power."""
        return float((self.values**order) @ self.weights)

    @cached_property
    def cv(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        if self.mean == 0:
            return 0.0
        return math.sqrt(max(0.0, self.moment(2) - self.mean**2)) / self.mean

    @cached_property
    def _cumulative(self) -> Floats:
        return np.cumsum(self.weights)

    def quantile(self, probability: float) -> float:
        """Length not exceeded with this probability, tokens; straight lines between the points."""
        middle = self._cumulative - 0.5 * self.weights
        return float(np.interp(probability, middle, self.values))

    def share_above(self, tokens: float) -> float:
        """Share of requests longer than ``tokens``."""
        return float(self.weights[self.values > tokens].sum())

    def capped(self, tokens: float) -> LengthDistribution:
        """Every longer one cut to ``tokens``, as a budget does."""
        return LengthDistribution(np.minimum(self.values, tokens), self.weights)

    def scaled(self, factor: float) -> LengthDistribution:
        """All lengths times ``factor``."""
        return LengthDistribution(self.values * factor, self.weights)

    def spread(self, factor: float) -> LengthDistribution:
        """The same mean with the logarithm's spread times ``factor``; 0 makes all equal."""
        positive = np.maximum(self.values, 1e-9)
        center = float(np.log(positive) @ self.weights)
        moved = np.exp(center + factor * (np.log(positive) - center))
        return LengthDistribution(moved * (self.mean / float(moved @ self.weights)), self.weights)

    def plus(self, other: LengthDistribution) -> LengthDistribution:
        """The sum of two independent lengths."""
        values = (self.values[:, None] + other.values[None, :]).ravel()
        weights = (self.weights[:, None] * other.weights[None, :]).ravel()
        order = np.argsort(values, kind="stable")
        return LengthDistribution(values[order], weights[order]).compressed()

    def thinned(self, points: int) -> LengthDistribution:
        """The same mean in at most so many points, each the mean of its neighbours, finer towards the long end."""
        if self.values.size <= points:
            return self
        share = self.weights * np.maximum(self.values, 1e-9)
        edges = np.linspace(0.0, 1.0, points + 1)[1:-1]
        middle = 0.5 * (np.cumsum(self.weights) + np.cumsum(share) / share.sum())
        bins = np.searchsorted(edges, middle, side="right")
        weights = np.bincount(bins, self.weights, points)
        sums = np.bincount(bins, self.weights * self.values, points)
        kept = weights > 0
        return LengthDistribution(sums[kept] / weights[kept], weights[kept] / weights[kept].sum())

    def compressed(self) -> LengthDistribution:
        """The same mean in at most a few hundred points, finer towards the long end."""
        if self.values.size <= 2 * _POINTS:
            return self
        top = float(self.values[-1])
        low = max(float(self.values[0]), top * 1e-6, 1e-9)
        edges = np.concatenate([np.geomspace(low, top, 2 * _POINTS), [np.inf]])
        bins = np.searchsorted(edges, self.values, side="left")
        weights = np.bincount(bins, self.weights)
        sums = np.bincount(bins, self.weights * self.values)
        kept = weights > 0
        return LengthDistribution(sums[kept] / weights[kept], weights[kept] / weights[kept].sum())


@dataclass(frozen=True, eq=False)
class RequestLengths:
    """Lengths of one request: prompt, reasoning, answer, taken as independent.

    Args:
        isl: Prompt.
        reasoning: Reasoning tokens.
        answer: Answer tokens.
    """

    isl: LengthDistribution
    reasoning: LengthDistribution
    answer: LengthDistribution

    @cached_property
    def osl(self) -> LengthDistribution:
        """Output: reasoning and answer, at least one token."""
        total = self.reasoning.plus(self.answer)
        return LengthDistribution(np.maximum(total.values, 1.0), total.weights)

    @cached_property
    def in_flight_context_tokens(self) -> float:
        """Mean context of a request that is being decoded: ``ISL + E[O^2] / (2 E[O])``."""
        return self.isl.mean + self.osl.moment(2) / (2.0 * self.osl.mean)

    @cached_property
    def in_flight_contexts(self) -> tuple[Floats, Floats]:
        """Contexts of running requests and how likely each is, as some thousand points."""
        isl, osl = self.isl.thinned(32), self.osl.thinned(64)
        far = (np.arange(12) + 0.5) / 12.0
        values = isl.values[:, None, None] + osl.values[None, :, None] * far
        biased = osl.weights * osl.values / osl.mean
        weights = isl.weights[:, None, None] * biased[None, :, None] * np.full(far.size, 1.0 / far.size)
        return values.ravel(), weights.ravel() / weights.sum()

    @cached_property
    def in_flight_context_square(self) -> float:
        """Mean square of that context, for the variance of a batch's sum.

        A running request is length-biased (density ``o f(o) / E[O]``) and uniformly far along, so
        ``E[X^2] = E[I^2] + 2 E[I] E[O^2] / (2 E[O]) + E[O^3] / (3 E[O])``.
        """
        osl = self.osl
        half = osl.moment(2) / (2.0 * osl.mean)
        return self.isl.moment(2) + 2.0 * self.isl.mean * half + osl.moment(3) / (3.0 * osl.mean)
