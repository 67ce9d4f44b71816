"""Which requests are sent, and when. Pure: everything follows from the seed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.trace import TraceRow

_WORDS = (
    "the",
    "a",
    "model",
    "thinks",
    "of",
    "water",
    "light",
    "stone",
    "river",
    "number",
    "answer",
    "because",
    "over",
)


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send. ``arrival_s`` counts from the start of the run; None sends when a client is free.

    ``then`` is the next turn of its session, sent ``think_s`` (of that turn) after this one has ended.
    """

    index: int
    isl_tokens: int
    osl_tokens: int
    arrival_s: float | None = None
    then: PlannedRequest | None = None
    think_s: float = 0.0


class ClosedPlan(Sequence[PlannedRequest]):
    """Equal requests without arrival times; endless where ``count`` is None, for a run that is limited by time."""

    def __init__(self, isl_tokens: int, osl_tokens: int, count: int | None) -> None:
        self._isl_tokens, self._osl_tokens = isl_tokens, osl_tokens
        self._count = sys.maxsize if count is None else count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return PlannedRequest(index, self._isl_tokens, self._osl_tokens)


def open_plan(
    count: int, isl_tokens: int, osl_tokens: int, *, rate_per_s: float, burstiness: float, seed: int
) -> list[PlannedRequest]:
    """``count`` equal requests whose gaps are Gamma with mean ``1 / rate_per_s``.

    ``burstiness`` is the squared coefficient of variation of the gaps: 1 is Poisson, above 1 comes in bursts,
    towards 0 is even. (vLLM's bench takes the Gamma's shape, the inverse.)

    Example:
        >>> [round(each.arrival_s, 2) for each in open_plan(3, 1, 1, rate_per_s=2, burstiness=1e-9, seed=0)]
        [0.5, 1.0, 1.5]
    """
    gaps = np.random.default_rng([seed, 1]).gamma(1 / burstiness, burstiness / rate_per_s, count)
    return [
        PlannedRequest(index, isl_tokens, osl_tokens, float(arrival_s))
        for index, arrival_s in enumerate(np.cumsum(gaps))
    ]


def trace_plan(
    rows: Sequence[TraceRow], *, count: int | None, speed: float, timed: bool, max_total_tokens: int | None
) -> list[PlannedRequest]:
    """The first ``count`` rows that fit ``max_total_tokens``; at their times over ``speed`` when ``timed``.

    A turn that waits for the one before it hangs on that one (``then``); its pause is of people and tools, so that
    ``speed`` leaves it alone.
    """
    fitting = [row for row in rows if max_total_tokens is None or row.isl_tokens + row.osl_tokens <= max_total_tokens]
    after: dict[int, PlannedRequest] = {}
    first: list[PlannedRequest] = []
    chosen = fitting[:count]
    begun = _begun(chosen)
    # From the end, so that what a request has after it exists before it.
    for index in range(len(chosen) - 1, -1, -1):
        row = chosen[index]
        then = after.pop(row.session, None)
        waits = row.think_s is not None and begun[index]
        request = PlannedRequest(
            index,
            row.isl_tokens,
            row.osl_tokens,
            row.arrival_s / speed if timed and not waits else None,
            then,
            row.think_s or 0.0,
        )
        if waits:
            after[row.session] = request
        else:
            first.append(request)
    return first[::-1]


def _begun(rows: Sequence[TraceRow]) -> list[bool]:
    """For each row whether a turn of its session comes before it."""
    seen: set[int] = set()
    begun = []
    for row in rows:
        begun.append(row.session in seen)
        if row.session >= 0:
            seen.add(row.session)
    return begun


def prompt_ids(request: PlannedRequest, *, seed: int, low: int, high: int) -> list[int]:
    """Random token ids of exactly ``isl_tokens``, each in ``[low, high)``; the same for the same seed and index."""
    ids: list[int] = np.random.default_rng([seed, 2, request.index]).integers(low, high, request.isl_tokens).tolist()
    return ids


def prompt_text(request: PlannedRequest, *, seed: int) -> str:
    """Random words, one per token asked; the server's tokenizer decides how many tokens they are."""
    picks = np.random.default_rng([seed, 3, request.index]).integers(0, len(_WORDS), request.isl_tokens)
    return " ".join(_WORDS[pick] for pick in picks)
