"""Budgets in tokens, seconds and dollars, as arithmetic. Pure.

Tokens are kept by limits: a branch is given one when it starts, and the limits of all that run are never more than what
is left. Seconds and dollars are kept by stopping in time: a *closing reserve* is held back, within which one trace can
be closed and answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TICK_S = 0.5
"""Seconds between two reckonings; what may be spent until the next one belongs to the reserve."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a request may spend; None where it is not limited."""

    tokens: int | None = None
    seconds: float | None = None
    usd: float | None = None


@dataclass(frozen=True, slots=True)
class Meters:
    """What has been spent, and what spending goes on at, as measured.

    ``itl_s`` is the time of a token of one branch, ``usd_per_s`` the price of one branch for a second; ``start_s`` and
    ``start_usd`` are what it takes until a branch has its first token.
    """

    seconds: float = 0.0
    usd: float = 0.0
    itl_s: float = 0.0
    usd_per_s: float = 0.0
    start_s: float = 0.0
    start_usd: float = 0.0
    may_start: int = 1 << 20
    """Further branches that the load allows."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a branch: its limit, what one is expected to take, and what closing one takes, its answer included."""

    limit_tokens: int
    expected_tokens: int
    closing_tokens: int


def closing_s(meters: Meters, lengths: Lengths, every_s: float = TICK_S) -> float:
    """Seconds before the end at which a trace has to be closed.

    Example:
        >>> closing_s(Meters(itl_s=0.01), Lengths(1000, 500, 50))
        1.0
    """
    return every_s + lengths.closing_tokens * meters.itl_s


def closing_usd(meters: Meters, lengths: Lengths, running: int, every_s: float = TICK_S) -> float:
    """Dollars to hold back: until the next reckoning for all that run, then for one that is closed."""
    return meters.usd_per_s * (max(1, running) * every_s + lengths.closing_tokens * meters.itl_s)


def spent_up(budget: Budget, meters: Meters, lengths: Lengths, running: int, every_s: float = TICK_S) -> str:
    """Which budget has come to its closing reserve: ``seconds``, ``usd``, or empty for none.

    Example:
        >>> lengths = Lengths(1000, 500, 50)
        >>> [spent_up(Budget(seconds=10), Meters(seconds=at, itl_s=0.01), lengths, 1) for at in (8.9, 9.0)]
        ['', 'seconds']
    """
    if budget.seconds is not None and meters.seconds >= budget.seconds - closing_s(meters, lengths, every_s):
        return "seconds"
    if budget.usd is not None and meters.usd >= budget.usd - closing_usd(meters, lengths, running, every_s):
        return "usd"
    return ""


def over(budget: Budget, meters: Meters) -> str:
    """Which budget is used up, closing reserve and all."""
    if budget.seconds is not None and meters.seconds >= budget.seconds:
        return "seconds"
    return "usd" if budget.usd is not None and meters.usd >= budget.usd else ""


def startable(budget: Budget, meters: Meters, lengths: Lengths, running: int, unreserved_tokens: float) -> int:
    """Branches that may start beside those that run, so that each can be expected to end within the budget.

    One may start where nothing runs, as long as it could at least be closed.
    """
    expected, closing = lengths.expected_tokens, lengths.closing_tokens
    by_tokens = unreserved_tokens / max(1, expected)
    by_usd = by_seconds = math.inf
    alone = unreserved_tokens > closing
    if budget.usd is not None and meters.usd_per_s > 0:
        left = budget.usd - meters.usd - closing_usd(meters, lengths, running)
        by_usd = left / (meters.start_usd + expected * meters.itl_s * meters.usd_per_s) - running
        alone &= left > meters.start_usd
    if budget.seconds is not None:
        left_s = budget.seconds - meters.seconds - closing_s(meters, lengths)
        by_seconds = math.inf if left_s >= meters.start_s + expected * meters.itl_s else 0.0
        alone &= left_s > meters.start_s
    most = int(max(0.0, min(by_tokens, by_usd, by_seconds, float(meters.may_start))))
    return max(most, int(alone)) if not running else most


def least(budget: Budget, meters: Meters, lengths: Lengths) -> Budget:
    """The least budget that would do, in the fields that have too little of it; empty where the budget does.

    Example:
        >>> rates = Meters(itl_s=0.01, usd_per_s=0.001, start_s=0.2, start_usd=0.0002)
        >>> least(Budget(seconds=0.5, tokens=10), rates, Lengths(1000, 500, 50))
        Budget(tokens=51, seconds=1.3, usd=None)
    """
    first = Meters(0.0, 0.0, meters.itl_s, meters.usd_per_s)
    tokens = lengths.closing_tokens + 1
    # A tenth of a second in which to think at all.
    seconds = round(meters.start_s + closing_s(first, lengths) + 0.1, 3)
    usd = meters.start_usd + closing_usd(first, lengths, 1) + 0.1 * meters.usd_per_s
    return Budget(
        tokens if budget.tokens is not None and budget.tokens < tokens else None,
        seconds if budget.seconds is not None and budget.seconds < seconds else None,
        usd if budget.usd is not None and budget.usd < usd else None,
    )
