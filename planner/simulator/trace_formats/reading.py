"""What was read from a trace file: the requests, and everything a reader of the figures has to know."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from cluster.errors import ConfigError
from planner.simulator.trace_formats.cells import MISSING, Clock, is_epoch
from planner.simulator.workload import Floats, Ints, Workload

Unit = Literal["auto", "s", "ms", "us", "ns"]
LONGEST_SPAN_S = 10 * 365.25 * 86_400.0
LONGEST_LEAD_S = 3600.0
"""Times count from the file's own zero where the first request comes within an hour of it, else from that request."""

NO_TIMES = "the file holds no times"


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What a user may have to say about a file.

    Args:
        unit: Of times that are numbers; ``auto`` takes the format's own.
        tokenizer: A ``tokenizer.json``, or the folder that holds one, for formats that hold text.
        chars_per_token: In place of a tokenizer, an estimate.
        block_tokens: Prompt tokens to one of ``hash_ids``; None finds it by their number.
    """

    unit: Unit = "auto"
    tokenizer: Path | None = None
    chars_per_token: float | None = None
    block_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.chars_per_token is not None and not 0.1 <= self.chars_per_token <= 100:
            raise ConfigError(f"chars_per_token={self.chars_per_token}: expected 0.1 to 100")
        if self.block_tokens is not None and not 1 <= self.block_tokens <= 1 << 20:
            raise ConfigError(f"block_tokens={self.block_tokens}: expected 1 to {1 << 20}")


def trace_options(
    unit: str, tokenizer: Path | None = None, chars_per_token: float | None = None, block_tokens: int | None = None
) -> TraceOptions:
    """What the command line says about a file.

    Raises:
        ConfigError: a value is out of range.
    """
    if unit not in get_args(Unit):
        raise ConfigError(f"--unit {unit}: expected one of {', '.join(get_args(Unit))}")
    return TraceOptions(cast(Unit, unit), tokenizer, chars_per_token, block_tokens)


@dataclass(frozen=True)
class TraceReading:
    """A trace as it was read.

    Args:
        format: Name of the format.
        workload: The requests, in order of arrival.
        unit: ``date``, the unit of numbers, or an empty text where the file holds no times.
        unit_given: The unit was said by the user, not taken from the format.
        start_s: Seconds of the workload's time 0 in the file's own time; of dates, since 1970 in UTC.
        rows: Requests in the file, with those left out.
        dropped: How many were left out, by reason.
        notes: Sentences on what was done with the file.
    """

    format: str
    workload: Workload
    unit: str = ""
    unit_given: bool = False
    start_s: float = 0.0
    rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def timed(self) -> bool:
        """Whether the file says when requests come."""
        return bool(self.unit)

    def at_rate(self, rate_per_s: float, rng: np.random.Generator) -> TraceReading:
        """The same lengths with so many requests a second, for a file without times.

        Arrivals are Poisson: those of single requests, and of sessions' first turns.
        """
        workload = self.workload
        first = np.flatnonzero(~workload.follows)
        # Each start brings the turns of its session with it.
        turns = len(workload) / max(1, len(first))
        starts_s = np.cumsum(rng.exponential(turns / rate_per_s, len(first)))
        arrival_s = workload.arrival_s.copy()
        arrival_s[first] = starts_s
        later = np.flatnonzero(workload.follows)
        if len(later):
            start_of = dict(zip(workload.session[first].tolist(), starts_s.tolist(), strict=True))
            arrival_s[later] += np.array([start_of[each] for each in workload.session[later].tolist()])
        order = np.argsort(arrival_s, kind="stable")
        what = f"{rate_per_s:g} requests a second in sessions" if len(later) else f"{rate_per_s:g} a second"
        note = f"{NO_TIMES}: arrivals are drawn at {what} (Poisson)"
        return replace(
            self, workload=workload.rows(order, arrival_s[order]), unit="drawn", notes=(*_without_times(self), note)
        )


def _without_times(reading: TraceReading) -> tuple[str, ...]:
    return tuple(note for note in reading.notes if not note.startswith(NO_TIMES))


class Rows:
    """Collects requests as a reader finds them; flat arrays, so that tens of millions of rows fit.

    Optional columns are filled by those formats that have them, for every row or for none.
    """

    def __init__(self) -> None:
        self.at_s = array("d")
        self.isl, self.answer = array("q"), array("q")
        self.reasoning, self.cached, self.priority = array("q"), array("q"), array("q")
        self.session, self.think_s = array("q"), array("d")
        self.tenants: dict[str, int] = {}
        self.tenant = array("q")
        self.unit_counts, self.units = array("q"), array("q")
        self.unit_tokens = 0
        self.dropped: Counter[str] = Counter()
        self.notes: list[str] = []

    def add(self, at_s: float, isl: int, answer: int) -> bool:
        """Take a request unless a length is missing or 0; says whether it was taken."""
        if isl > 0 and answer > 0:
            self.at_s.append(at_s)
            self.isl.append(isl)
            self.answer.append(answer)
            return True
        self.drop(isl, answer)
        return False

    def drop(self, isl: int, osl: int) -> None:
        """Count a request that cannot be served."""
        if MISSING in (isl, osl):
            self.dropped["without a token count"] += 1
        elif not osl:
            self.dropped["without output tokens"] += 1
        else:
            self.dropped["without prompt tokens"] += 1

    def tenant_number(self, name: str) -> int:
        """Number of a tenant's name."""
        return self.tenants.setdefault(name, len(self.tenants))

    def reading(self, name: str, path: Path, clock: Clock | None) -> TraceReading:
        """What was read, sorted by arrival.

        Args:
            name: The format.
            path: The file.
            clock: What turned times into seconds; None where the file has none.
        Raises:
            ConfigError: no request is left, or times lie years apart.
        """
        count, rows = len(self.at_s), len(self.at_s) + sum(self.dropped.values())
        if not count:
            why = ", ".join(f"{number:,} {reason}" for reason, number in self.dropped.items())
            raise ConfigError(f"{path}: holds no request{f' that can be served ({why})' if why else ''}")
        at_s = np.frombuffer(self.at_s, np.float64)
        start_s, late = 0.0, int((np.diff(at_s) < 0).sum())
        if clock is not None:
            first_s = float(at_s.min())
            if float(at_s.max()) - first_s > LONGEST_SPAN_S:
                years = (float(at_s.max()) - first_s) / (365.25 * 86_400)
                raise ConfigError(
                    f"{path}: times lie {years:,.0f} years apart: is one damaged, or the unit another (--unit)?"
                )
            start_s = 0.0 if 0 <= first_s <= LONGEST_LEAD_S else first_s
            at_s = at_s - start_s
            if start_s and clock.kind != "date" and not is_epoch(start_s):
                self.notes.append(f"times count from the first request, at {start_s:,.3f} s of the file's own time")
        if late and clock is not None and not len(self.session):
            self.notes.append(f"{late:,} rows came earlier than the row before: sorted by time")
        order = np.argsort(at_s, kind="stable")
        workload = self._workload(at_s, order)
        return TraceReading(
            name,
            workload,
            clock.kind if clock is not None else "",
            clock.given if clock is not None else False,
            start_s,
            rows,
            dict(self.dropped),
            tuple(self.notes),
        )

    def _workload(self, at_s: Floats, order: Ints) -> Workload:
        def column(values: array[Any]) -> Ints:
            return np.frombuffer(values, np.int64) if len(values) else np.zeros(0, np.int64)

        answer = column(self.answer)
        # In the order of tenants' names, so that a file with its rows in another order is the same workload.
        names = tuple(sorted(self.tenants, key=lambda name: (len(name), name))) or ("",)
        place = {name: index for index, name in enumerate(names)}
        number = np.array([place[name] for name in self.tenants], np.int64)
        starts = np.concatenate(([0], np.cumsum(column(self.unit_counts)))).astype(np.int64)
        try:
            plain = Workload(
                np.zeros(len(at_s)),
                column(self.isl),
                column(self.reasoning) if len(self.reasoning) else np.zeros_like(answer),
                answer,
                cached_tokens=column(self.cached),
                tenant=number[column(self.tenant)] if len(self.tenant) else np.zeros(0, np.int64),
                tenants=names,
                priority=column(self.priority),
                session=column(self.session),
                think_s=np.frombuffer(self.think_s, np.float64) if len(self.think_s) else np.zeros(0),
                unit_starts=starts if len(self.unit_counts) else np.zeros(0, np.int64),
                units=column(self.units),
                unit_tokens=self.unit_tokens,
            )
            return plain.rows(order, at_s[order])
        except ValueError as error:
            raise ConfigError(str(error)) from error
