"""How long outputs get, learned online: a survival curve per class from finished and running requests. Pure.

A class is whatever the caller makes it of: model, tenant, effort. Requests in flight count as censored: they have made
so many tokens without ending. Several memories are kept. The longest gives the shape of the curve; where a shorter one
sees fewer or more ends than the longer ones expect, the whole curve is stretched or shrunk by that ratio at once, so
that a change of traffic shows in the tail before any request has got there. Where the shorter one has seen enough ends
at a length, those count by themselves.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.policy.survival import BINS, Curves, Floats, Ints, bin_of, exposure


@dataclass(frozen=True, slots=True)
class LengthSettings:
    """Constants of the forecast.

    Args:
        prior_mean_tokens: Mean output length assumed before anything has been seen.
        memory_s: Half-lives of what is remembered, longest first. The longest gives the shape; each shorter one
            corrects it.
        class_weight: Ends that what is known of all traffic counts in each bin of one class.
        pace_weight: Ends that "the pace is as always" counts.
        pace_share: Power of the pace's ratio by which lengths not yet reached are stretched. 1 overshoots: where the
            mean of a real class rose threefold, demand 180 s ahead was overrated by half at 1, by a quarter at 0.65.
    """

    prior_mean_tokens: float = 1024.0
    memory_s: tuple[float, ...] = (900.0, 150.0, 25.0)
    class_weight: float = 1.0
    pace_weight: float = 10.0
    pace_share: float = 0.5


class _Memory:
    """Decaying exposure and ends per class and bin."""

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self.tokens: Floats = np.zeros((0, BINS))
        self.ends: Floats = np.zeros((0, BINS))

    def grow(self, classes: int) -> None:
        """Grow the tables for classes."""
        more = np.zeros((classes - len(self.tokens), BINS))
        self.tokens, self.ends = np.concatenate((self.tokens, more)), np.concatenate((self.ends, more))

    def forget(self, seconds: float) -> None:
        """Let time pass."""
        keep = 0.5 ** (seconds / self._half_life_s)
        self.tokens *= keep
        self.ends *= keep


class LengthForecaster:
    """Curves of all classes. Memory grows with classes, not with requests.

    Example:
        >>> forecaster = LengthForecaster()
        >>> chat = forecaster.class_of("chat")
        >>> lengths = np.random.default_rng(0).exponential(300.0, 2000)
        >>> forecaster.observe(np.full(2000, chat), np.zeros(2000), lengths, np.ones(2000, bool))
        >>> 280 < forecaster.mean_left("chat", 0) < 330
        True
    """

    def __init__(self, settings: LengthSettings | None = None) -> None:
        self.settings = settings or LengthSettings()
        self._classes: dict[Hashable, int] = {}
        self._memories = [_Memory(half_life_s) for half_life_s in self.settings.memory_s]
        self._now_s: float | None = None
        self._curves: Curves | None = None

    @property
    def classes(self) -> Sequence[Hashable]:
        """Classes seen, by index."""
        return list(self._classes)

    def class_of(self, key: Hashable) -> int:
        """Index of a class; a new one begins with what is known of all."""
        index = self._classes.get(key)
        if index is None:
            index = self._classes[key] = len(self._classes)
            for memory in self._memories:
                memory.grow(index + 1)
            self._curves = None
        return index

    def classes_of(self, keys: Sequence[Hashable]) -> Ints:
        """Indices of many classes."""
        found = list(map(self._classes.get, keys))
        if None in found:
            found = [self.class_of(key) for key in keys]
        return np.array(found, np.int64)

    def advance(self, now_s: float) -> None:
        """Let old traffic fade."""
        if self._now_s is not None and now_s > self._now_s:
            for memory in self._memories:
                memory.forget(now_s - self._now_s)
            self._curves = None
        self._now_s = now_s

    def observe(self, classes: Ints, start: Floats, end: Floats, ended: npt.NDArray[np.bool_]) -> None:
        """Requests went on from ``start`` to ``end`` generated tokens; some ended there, the others are in flight."""
        if not len(classes):
            return
        spent = exposure(classes, start, end, len(self._classes))
        ends = np.zeros_like(spent)
        np.add.at(ends, (classes[ended], bin_of(np.maximum(end[ended] - 1e-9, 0.0))), 1.0)
        for memory in self._memories:
            memory.tokens += spent
            memory.ends += ends
        self._curves = None

    def pace(self) -> Floats:
        """Ends in the shortest memory over those the longest expects, by class, all traffic last; 1 if none came."""
        return self._pace(self._memories[-1], self._shape())

    def curves(self) -> Curves:
        """The curves as they stand; the last row is that of all traffic, for classes not seen yet."""
        if self._curves is None:
            rates, weight = self._shape(), self.settings.pace_weight
            for memory in self._memories[1:]:
                expected = rates * self._pace(memory, rates)[:, None] ** self.settings.pace_share
                tokens, ends = self._with_all(memory.tokens), self._with_all(memory.ends)
                rates = (ends + weight) / (tokens + weight / expected)
            self._curves = Curves.of(rates)
        return self._curves

    def mean_left(self, key: Hashable, made: float) -> float:
        """Expected tokens still to come of a request that has made ``made``."""
        return float(self.curves().mean_left(self._row(key), np.array([float(made)]))[0])

    def quantile_left(self, key: Hashable, made: float, share: float = 0.9) -> float:
        """Tokens still to come that a ``share`` of such requests do not exceed."""
        return float(self.curves().quantile_left(self._row(key), np.array([float(made)]), share)[0])

    def finish_probability(self, key: Hashable, made: float, within_s: float, tokens_per_s: float) -> float:
        """Probability that the request ends within a time at this speed."""
        more = np.array([max(0.0, within_s * tokens_per_s)])
        return float(1.0 - self.curves().survival(self._row(key), np.array([float(made)]), more)[0])

    def _row(self, key: Hashable) -> Ints:
        return np.array([self._classes.get(key, len(self._classes))])

    @staticmethod
    def _with_all(values: Floats) -> Floats:
        return np.concatenate((values, values.sum(axis=0, keepdims=True)))

    def _shape(self) -> Floats:
        """Hazards by the long memory: a class leans on all traffic, and that on the prior."""
        tokens, ends = self._memories[0].tokens, self._memories[0].ends
        prior = 1.0 / self.settings.prior_mean_tokens
        everyone = (ends.sum(axis=0) + 1.0) / (tokens.sum(axis=0) + 1.0 / prior)
        weight = self.settings.class_weight
        own = (ends + weight) / (tokens + weight / everyone)
        return np.concatenate((own, everyone[None, :]))

    def _pace(self, memory: _Memory, rates: Floats) -> Floats:
        tokens, ends = self._with_all(memory.tokens), self._with_all(memory.ends)
        expected, seen, weight = (tokens * rates).sum(axis=1), ends.sum(axis=1), self.settings.pace_weight
        all_traffic = (seen[-1] + weight) / (expected[-1] + weight)
        ratio: Floats = (seen + weight * all_traffic) / (expected + weight)
        ratio[-1] = all_traffic
        return np.clip(ratio, 0.1, 10.0)
