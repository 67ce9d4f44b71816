"""Arrival times: Poisson, Gamma and Weibull gaps, at a steady rate or along a profile of the day."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cluster.errors import ConfigError
from planner.simulator.workload import Floats

Kind = Literal["poisson", "gamma", "weibull"]


@dataclass(frozen=True, slots=True)
class Gaps:
    """Times between arrivals, with mean 1.

    Args:
        kind: Family. Poisson has exponential gaps and no shape.
        shape: Of Gamma or Weibull; below 1 comes in bursts, above 1 more evenly than at random.

    Example:
        >>> round(Gaps("gamma", 0.25).cv, 6), round(Gaps("weibull", 1.0).cv, 6), Gaps("poisson").cv
        (2.0, 1.0, 1.0)
    """

    kind: Kind = "poisson"
    shape: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("poisson", "gamma", "weibull") or self.shape <= 0:
            raise ConfigError(f"arrivals: expected poisson, gamma or weibull with shape > 0, got {self}")

    @property
    def cv(self) -> float:
        """Coefficient of variation."""
        if self.kind == "gamma":
            return 1.0 / math.sqrt(self.shape)
        if self.kind == "weibull":
            inverse = 1.0 / self.shape
            log_ratio = math.lgamma(1 + 2 * inverse) - 2 * math.lgamma(1 + inverse)
            return math.sqrt(max(0.0, math.expm1(log_ratio)))
        return 1.0

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        """So many gaps."""
        if self.kind == "gamma":
            return rng.gamma(self.shape, 1.0 / self.shape, count)
        if self.kind == "weibull":
            return rng.weibull(self.shape, count) / math.gamma(1.0 + 1.0 / self.shape)
        return rng.exponential(1.0, count)


@dataclass(frozen=True, slots=True)
class Profile:
    """Rate over time: straight lines between knots; outside them the end values hold.

    Args:
        times_s: Rising.
        rates_per_s: At those times, >= 0.
    """

    times_s: tuple[float, ...]
    rates_per_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.times_s) != len(self.rates_per_s) or not self.times_s or min(self.rates_per_s) < 0:
            raise ConfigError("arrivals.profile: expected as many times as rates, and rates >= 0")
        if any(b <= a for a, b in zip(self.times_s, self.times_s[1:], strict=False)):
            raise ConfigError("arrivals.profile: expected rising times")

    @classmethod
    def steady(cls, rate_per_s: float) -> Profile:
        """The same rate always."""
        return cls((0.0,), (rate_per_s,))

    @classmethod
    def diurnal(
        cls, mean_rate_per_s: float, swing: float, *, peak_s: float = 50400.0, period_s: float = 86400.0, days: int = 1
    ) -> Profile:
        """A daily wave, ``mean * (1 + swing * cos)``, at its highest at ``peak_s`` (14:00).

        Args:
            swing: 0 is flat, 1 goes down to nothing at night.
        """
        if not 0 <= swing <= 1:
            raise ConfigError(f"arrivals.swing={swing}: expected 0 to 1")
        times = [period_s * index / 96 for index in range(96 * days + 1)]
        rates = [mean_rate_per_s * (1 + swing * math.cos(2 * math.pi * (each - peak_s) / period_s)) for each in times]
        return cls(tuple(times), tuple(max(0.0, rate) for rate in rates))

    def scaled(self, factor: float) -> Profile:
        """The same shape at another rate."""
        return Profile(self.times_s, tuple(rate * factor for rate in self.rates_per_s))


def arrivals(gaps: Gaps, profile: Profile, duration_s: float, rng: np.random.Generator) -> Floats:
    """Arrival times in ``[0, duration_s)``.

    A process of rate 1 is drawn in its own time, which is then stretched so that it passes at the profile's rate.

    Example:
        >>> times = arrivals(Gaps(), Profile.steady(50.0), 100.0, np.random.default_rng(1))
        >>> 4700 < len(times) < 5300, bool(times[-1] < 100)
        (True, True)
    """
    if duration_s <= 0:
        raise ConfigError(f"arrivals.duration_s={duration_s}: expected > 0")
    count = min(200_000, max(64, math.ceil(duration_s)))
    inner = [each for each in profile.times_s if 0 < each < duration_s]
    grid = np.unique(np.concatenate([np.linspace(0.0, duration_s, count + 1), inner]))
    rates = np.interp(grid, profile.times_s, profile.rates_per_s)
    passed = np.concatenate(([0.0], np.cumsum(np.diff(grid) * (rates[1:] + rates[:-1]) / 2)))
    own = _renewals(lambda size: gaps.draw(size, rng), float(passed[-1]), gaps, rng)
    times: Floats = np.interp(own, passed, grid)
    return times


def _renewals(draw: Callable[[int], Floats], length: float, gaps: Gaps, rng: np.random.Generator) -> Floats:
    """Renewals of mean gap 1 in ``[0, length)``, begun long before, so that the rate is 1 from the start."""
    if length <= 0:
        return np.zeros(0)
    warm_up = 50.0 * max(1.0, gaps.cv**2) * (gaps.kind != "poisson")
    total, parts = 0.0, []
    while total < length + warm_up:
        part = draw(int((length + warm_up - total) * 1.1) + 100)
        parts.append(part)
        total += float(part.sum())
    times: Floats = np.cumsum(np.concatenate(parts)) - warm_up
    inside: Floats = times[(times >= 0) & (times < length)]
    return inside


def bridge(gaps: Gaps, count: int, start_s: float, length_s: float, rng: np.random.Generator) -> Floats:
    """Exactly ``count`` arrivals in a window, with the burstiness of ``gaps``.

    Gaps are drawn and stretched to fill the window, where a free renewal process with cv 6 would on average bring
    ``(cv**2 - 1) / 2``, some 17, too many into every window.
    """
    steps = gaps.draw(count + 1, rng)
    total = float(steps.sum())
    if total <= 0 or not math.isfinite(total):
        return start_s + np.sort(rng.uniform(0.0, length_s, count))
    # The window may begin anywhere within a gap: turn the circle of gaps by a random amount.
    ends = (np.cumsum(steps)[:count] / total + rng.random()) % 1.0
    return start_s + np.sort(ends) * length_s
