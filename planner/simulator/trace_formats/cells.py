"""Single values of a trace: token counts and times, with what is wrong said in a few words."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

from planner.simulator.trace_formats.source import shown

MISSING = -1
"""A token count that is not there."""
MOST_TOKENS = 10_000_000
"""The longest context window that a model offers today is ten million tokens."""
UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
UNIT_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "date": "dates"}
_NOTHING = {"", "nan", "null", "none", "na", "n/a", "-"}
_YEAR_2000_S, _YEAR_2100_S = 946_684_800.0, 4_102_444_800.0


def tokens(value: Any, name: str) -> int:
    """A token count, or `MISSING`. ``100.0`` is 100.

    Raises:
        ValueError: it is no whole number from 0 to `MOST_TOKENS`.
    Example:
        >>> tokens("100.0", "ContextTokens"), tokens("", "ContextTokens")
        (100, -1)
    """
    if type(value) is str:
        try:
            count = int(value)
        except ValueError:
            if value.strip().casefold() in _NOTHING:
                return MISSING
            count = _whole(_number(value, name), value, name)
    elif type(value) is int:
        count = value
    elif value is None:
        return MISSING
    elif type(value) is float:
        if math.isnan(value):
            return MISSING
        count = _whole(value, value, name)
    else:
        raise ValueError(f"{name}: expected a number, got {shown(value)}")
    if not 0 <= count <= MOST_TOKENS:
        raise ValueError(f"{name}: {shown(value)} is no token count (0 to {MOST_TOKENS:,})")
    return count


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: {shown(value)} is no number") from error


def _whole(number: float, value: Any, name: str) -> int:
    if not math.isfinite(number) or number != int(number):
        raise ValueError(f"{name}: {shown(value)} is no whole number")
    return int(number)


def seconds(value: Any, name: str, unit: str = "s", *, least: float = -math.inf) -> float:
    """A finite number of a unit, as seconds.

    Raises:
        ValueError: it is none, or below ``least``.
    """
    if isinstance(value, bool):
        raise ValueError(f"{name}: {shown(value)} is no number")
    number = _number(value, name) * UNITS_S[unit]
    if not math.isfinite(number) or number < least:
        expected = "a finite number" if least == -math.inf else f"at least {least:g}"
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
    return number


class Clock:
    """Turns the times of one column into seconds: dates with or without a zone, or numbers of one unit.

    Args:
        name: Column or key.
        unit: ``s``, ``ms``, ``us`` or ``ns`` where the user says it, ``auto`` for what the format says.
        usual: The format's unit for numbers; None where its times are dates.
    """

    def __init__(self, name: str, unit: str, usual: str | None) -> None:
        self.name = name
        self.given = unit != "auto"
        self.unit = unit if self.given else usual
        self._factor = UNITS_S[self.unit] if self.unit is not None else 0.0
        self.dates: bool | None = None
        """Whether times are dates; None before the first."""
        self.zoned: bool | None = None
        """Whether dates have a time zone."""

    def seconds(self, value: Any) -> float:
        """One time.

        Raises:
            ValueError: it is neither a date nor a number, or of another kind than the one before.
        """
        if self.dates:
            return self._date(value)
        if self.dates is None:
            self.dates = isinstance(value, str) and not _is_number(value)
            return self.seconds(value)
        try:
            number = float(value) * self._factor
        except (ValueError, TypeError, OverflowError):
            number = math.nan
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError(f"{self.name}: {shown(value)} is no number")
        if self.unit is None:
            raise ValueError(
                f"{self.name}: {shown(value)} is a number, not a date: say its unit with --unit s, ms or us"
            )
        return number

    def _date(self, value: Any) -> float:
        try:
            date = _parsed(value)
            zoned = date.tzinfo is not None
            at_s = (date if zoned else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{self.name}: {shown(value)} is no date such as 2024-05-12 00:00:00.5+00:00") from error
        if not 0 <= at_s < _YEAR_2100_S:
            raise ValueError(f"{self.name}: {shown(value)} is outside the years 1970 to 2099")
        if self.zoned is None:
            self.zoned = zoned
        elif self.zoned is not zoned:
            raise ValueError(f"{self.name}: {shown(value)} {'has' if zoned else 'lacks'} the zone that others do not")
        return at_s

    @property
    def kind(self) -> str:
        """``date``, or the unit of the numbers."""
        return "date" if self.dates else self.unit or "s"


def _parsed(text: str) -> datetime:
    """A date, year first. More than six decimals are cut."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        # As other tools write it: slashes, a lower-case t or z, a zone by its name or behind a space.
        plain = text.strip().upper().replace("/", "-")
        return datetime.fromisoformat(re.sub(r"\s*(UTC|GMT|Z)$|\s+(?=[+-]\d\d:?\d\d$)", _zone, plain))


def _zone(found: re.Match[str]) -> str:
    return "+00:00" if found[1] else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_epoch(at_s: float) -> bool:
    """Whether seconds read as a date of this century."""
    return _YEAR_2000_S <= at_s < _YEAR_2100_S
