"""The requests of a run, as arrays: when each comes, how long it is, what it shares with others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import ConfigError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in order of arrival.

    Args:
        arrival_s: Seconds from the start, rising.
        isl_tokens: Prompt lengths, at least 1.
        reasoning_tokens: Output tokens before the answer.
        answer_tokens: Output tokens of the answer; with the reasoning at least 1.
        cached_tokens: Prompt tokens to be taken as cached on any worker. Left out, none.
        tenant: Index into ``tenants`` of each request.
        tenants: Names.
        priority: Higher goes first. Left out, 0.
        session: Number of the session that a request is a turn of; -1 for none. Left out, none.
        think_s: Pause between the answer to a session's turn before and this one, in place of a time of its own;
            NaN for a request that comes at its time. Arrival is then the earliest: what comes of instant answers.
        unit_starts, units: Prompt units: those of request ``i`` are ``units[unit_starts[i]:unit_starts[i + 1]]``.
            Equal leading units are equal prompts. Only full units are listed.
        unit_tokens: Prompt tokens to a unit; 0 where prompts are not known.

    Raises:
        ConfigError: arrays of different length, arrivals out of order, or a length out of range.
    """

    arrival_s: Floats
    isl_tokens: Ints
    reasoning_tokens: Ints
    answer_tokens: Ints
    cached_tokens: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    tenant: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    tenants: tuple[str, ...] = ("",)
    priority: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    session: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    think_s: Floats = field(default_factory=lambda: np.zeros(0))
    unit_starts: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    units: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    unit_tokens: int = 0

    def __post_init__(self) -> None:
        size = len(self.arrival_s)
        for name in ("cached_tokens", "tenant", "priority"):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.zeros(size, np.int64))
        if not len(self.session):
            object.__setattr__(self, "session", np.full(size, -1, np.int64))
        if not len(self.think_s):
            object.__setattr__(self, "think_s", np.full(size, np.nan))
        if not len(self.unit_starts):
            object.__setattr__(self, "unit_starts", np.zeros(size + 1, np.int64))
        for name in _PER_REQUEST:
            if len(getattr(self, name)) != size:
                raise ConfigError(f"workload.{name}: {len(getattr(self, name))} values for {size} requests")
        if len(self.unit_starts) != size + 1:
            raise ConfigError(f"workload.unit_starts: expected {size + 1} values")
        if not size:
            return
        if not np.isfinite(self.arrival_s).all() or self.arrival_s[0] < 0 or (np.diff(self.arrival_s) < 0).any():
            raise ConfigError("workload.arrival_s: expected rising seconds >= 0")
        if self.isl_tokens.min() < 1 or self.osl_tokens.min() < 1:
            raise ConfigError("workload: every request needs isl_tokens >= 1 and at least one output token")
        if min(self.reasoning_tokens.min(), self.answer_tokens.min(), self.cached_tokens.min()) < 0:
            raise ConfigError("workload: token counts must be >= 0")
        if self.tenant.min() < 0 or self.tenant.max() >= len(self.tenants):
            raise ConfigError(f"workload.tenant: expected indices below {len(self.tenants)}")
        if (self.think_s < 0).any() or np.isinf(self.think_s).any():
            raise ConfigError("workload.think_s: expected seconds >= 0, or NaN")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def osl_tokens(self) -> Ints:
        """Output lengths: reasoning and answer."""
        return self.reasoning_tokens + self.answer_tokens

    @property
    def duration_s(self) -> float:
        """Time of the last arrival."""
        return float(self.arrival_s[-1]) if len(self) else 0.0

    @cached_property
    def turn_before(self) -> Ints:
        """Position of the turn whose answer a request waits for; -1 for one that comes at its time."""
        before = np.full(len(self), -1, np.int64)
        members = np.flatnonzero(self.session >= 0)
        members = members[np.argsort(self.session[members], kind="stable")]
        same = self.session[members[1:]] == self.session[members[:-1]]
        before[members[1:][same]] = members[:-1][same]
        before[np.isnan(self.think_s)] = -1
        return before

    @property
    def follows(self) -> npt.NDArray[np.bool_]:
        """Whether each request waits for the turn before it."""
        return np.asarray(self.turn_before >= 0)

    def units_of(self, index: int) -> tuple[int, ...]:
        """Prompt units of one request."""
        return tuple(self.units[self.unit_starts[index] : self.unit_starts[index + 1]].tolist())

    def select(self, index: npt.NDArray[Any]) -> Workload:
        """The requests at ``index`` (positions or a mask), in order of arrival."""
        chosen = np.flatnonzero(index) if index.dtype == np.bool_ else np.asarray(index)
        chosen = chosen[np.argsort(self.arrival_s[chosen], kind="stable")]
        return self.rows(chosen, self.arrival_s[chosen])

    def rows(self, index: Ints, arrival_s: Floats) -> Workload:
        """The requests at ``index``, arriving at these times, which must rise."""
        counts = np.diff(self.unit_starts)[index]
        starts = np.concatenate(([0], np.cumsum(counts)))
        offsets = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        columns = {name: getattr(self, name)[index] for name in _PER_REQUEST}
        units = self.units[np.repeat(self.unit_starts[:-1][index], counts) + offsets]
        return replace(self, **columns, arrival_s=arrival_s, unit_starts=starts.astype(np.int64), units=units)

    def between(self, start_s: float, end_s: float) -> Workload:
        """The requests that arrive in ``[start_s, end_s)``, with time counted from ``start_s``."""
        index = np.flatnonzero((self.arrival_s >= start_s) & (self.arrival_s < end_s))
        return self.rows(index, self.arrival_s[index] - start_s)


_PER_REQUEST = (
    "isl_tokens",
    "reasoning_tokens",
    "answer_tokens",
    "cached_tokens",
    "tenant",
    "priority",
    "session",
    "think_s",
)


def merge(parts: list[Workload]) -> Workload:
    """All requests of several workloads, which must agree on the size of a prompt unit; equal units are shared.

    Raises:
        ConfigError: there is no part, or units differ in size.
    """
    sizes = {part.unit_tokens for part in parts if part.unit_tokens}
    if not parts or len(sizes) > 1:
        raise ConfigError("workload: parts to merge must exist and agree on unit_tokens")
    names = tuple(dict.fromkeys(name for part in parts for name in part.tenants))
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _PER_REQUEST}
    columns["tenant"] = np.concatenate(
        [np.array([names.index(name) for name in part.tenants], np.int64)[part.tenant] for part in parts]
    )
    columns["session"] = np.concatenate(_apart([part.session for part in parts]))
    arrival_s = np.concatenate([part.arrival_s for part in parts])
    order = np.argsort(arrival_s, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.concatenate([np.diff(part.unit_starts) for part in parts]))))
    whole = Workload(
        arrival_s=np.sort(arrival_s),
        **columns,
        tenants=names,
        unit_starts=starts.astype(np.int64),
        units=np.concatenate([part.units for part in parts]),
        unit_tokens=max(sizes, default=0),
    )
    return whole.rows(order, arrival_s[order])


def _apart(sessions: list[Ints]) -> list[Ints]:
    """Numbers of sessions such that those of different parts differ."""
    moved, base = [], 0
    for numbers in sessions:
        moved.append(np.where(numbers >= 0, numbers + base, -1))
        base = max(base, int(moved[-1].max(initial=-1)) + 1)
    return moved


@dataclass(frozen=True, slots=True)
class Change:
    """What-if on a workload: each number multiplies, 1 leaves alone.

    Args:
        rate: Requests per second. Above 1, requests are repeated within half a minute of the original, as other
            prompts of the same lengths; below 1, requests are left out. The shape over the day stays.
        isl, reasoning, answer: Mean lengths.
        spread: Spread of reasoning and answer about their log-mean, the mean kept. 0 makes all equal.
        cached: Cached tokens.
    """

    rate: float = 1.0
    isl: float = 1.0
    reasoning: float = 1.0
    answer: float = 1.0
    spread: float = 1.0
    cached: float = 1.0

    def apply(self, workload: Workload, rng: np.random.Generator) -> Workload:
        """The changed workload. The generator decides which requests are repeated or left out."""
        if min(self.rate, self.isl, self.reasoning, self.answer, self.spread, self.cached) < 0:
            raise ConfigError("workload.change: factors must be >= 0")
        changed = replace(
            workload,
            isl_tokens=np.maximum(1, _scaled(workload.isl_tokens, self.isl, 1.0, rng)),
            reasoning_tokens=_scaled(workload.reasoning_tokens, self.reasoning, self.spread, rng),
            answer_tokens=np.maximum(
                _scaled(workload.answer_tokens, self.answer, self.spread, rng), workload.answer_tokens > 0
            ),
            cached_tokens=_scaled(workload.cached_tokens, self.cached, 1.0, rng),
        )
        changed = replace(changed, cached_tokens=np.minimum(changed.cached_tokens, changed.isl_tokens))
        empty = changed.osl_tokens == 0
        changed = replace(changed, answer_tokens=changed.answer_tokens + empty)
        return changed if self.rate == 1 else _repeat(changed, self.rate, rng)


def _scaled(values: Ints, factor: float, spread: float, rng: np.random.Generator) -> Ints:
    """Integers whose mean is ``factor`` times as large; fractions are rounded at random, so the mean is kept."""
    if factor == 1 and spread == 1:
        return values
    target = values.astype(np.float64)
    positive = values > 0
    if spread != 1 and positive.any():
        logs = np.log(target[positive])
        moved = np.exp(logs.mean() + spread * (logs - logs.mean()))
        target[positive] = moved * (values[positive].mean() / moved.mean())
    target *= factor
    return np.floor(target + rng.random(len(target))).astype(np.int64)


def _repeat(workload: Workload, rate: float, rng: np.random.Generator) -> Workload:
    whole = int(rate)
    parts = []
    top = int(workload.units.max()) + 1 if len(workload.units) else 0
    for copy in range(whole + 1):
        part = workload if copy < whole else workload.select(_chosen(workload, rate - whole, rng))
        if not len(part):
            continue
        if copy:
            jittered = _jittered(part, rng)
            order = np.argsort(jittered, kind="stable")
            part = part.rows(order, jittered[order])
            part = replace(part, units=part.units + top * copy)
        parts.append(part)
    return merge(parts) if parts else workload.select(np.zeros(len(workload), np.bool_))


def _chosen(workload: Workload, share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Requests kept, at random; the turns of a session together."""
    drawn = rng.random(len(workload))
    return np.asarray(_by_session(workload, drawn) < share)


def _jittered(part: Workload, rng: np.random.Generator) -> Floats:
    moves = rng.uniform(-30.0, 30.0, len(part))
    moved = np.abs(part.arrival_s + moves)
    inside = part.session >= 0
    if inside.any():
        # The turns of a session move together, or they would change places.
        moved[inside] = np.maximum(0.0, part.arrival_s + _by_session(part, moves))[inside]
    return moved


def _by_session(workload: Workload, values: Floats) -> Floats:
    """For each turn the value of its session's first; others keep their own."""
    inside = np.flatnonzero(workload.session >= 0)
    if not len(inside):
        return values
    _, first, place = np.unique(workload.session[inside], return_index=True, return_inverse=True)
    shared = values.copy()
    shared[inside] = values[inside[first]][place]
    return shared
