"""Traces as `baton bench` plays them: when each request came and how long it was.

The readers are the simulator's (`orchestrator.simulator.traces`): what is simulated is what is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.simulator.traces import read


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request. ``arrival_s`` counts from the first request of the trace."""

    arrival_s: float
    isl_tokens: int
    osl_tokens: int


def read_trace(path: Path) -> list[TraceRow]:
    """Read a trace file of any known form, in order of arrival.

    Raises:
        ConfigError: the file cannot be read, is of no known form, or a row is malformed; the text names the line.
    """
    workload = read(path)
    start_s = float(workload.arrival_s[0]) if len(workload) else 0.0
    return [
        TraceRow(float(at_s) - start_s, int(isl), int(osl))
        for at_s, isl, osl in zip(workload.arrival_s, workload.isl_tokens, workload.osl_tokens, strict=True)
    ]
