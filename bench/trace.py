"""Traces as `baton bench` plays them: when each request came and how long it was.

The readers are the simulator's (`planner.simulator.traces`): what is simulated is what is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planner.simulator.trace_formats.reading import TraceReading
from planner.simulator.traces import load


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request. ``arrival_s`` counts from the first request of the trace.

    ``session`` numbers the session that it is a turn of, -1 for none. With ``think_s`` it is sent so long after the
    answer to the turn before it, and ``arrival_s`` is not used.
    """

    arrival_s: float
    isl_tokens: int
    osl_tokens: int
    session: int = -1
    think_s: float | None = None


def read_trace(path: Path) -> list[TraceRow]:
    """Read a trace file of any known form, in order of arrival.

    Raises:
        ConfigError: the file cannot be read, is of no known form, or a row is malformed; the text names the line.
    """
    return trace_rows(load(path))


def trace_rows(reading: TraceReading) -> list[TraceRow]:
    """The requests of a reading."""
    workload = reading.workload
    start_s = float(workload.arrival_s[0]) if len(workload) else 0.0
    columns = (workload.arrival_s, workload.isl_tokens, workload.osl_tokens, workload.session, workload.think_s)
    follows = workload.follows.tolist()
    return [
        TraceRow(at_s - start_s, isl, osl, session, think_s if after else None)
        for (at_s, isl, osl, session, think_s), after in zip(
            zip(*(column.tolist() for column in columns), strict=True), follows, strict=True
        )
    ]
