"""Asks whether times were read in the right unit: a file does not say it, and a wrong one is off a thousandfold."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import ConfigError
from planner.simulator.trace_formats.cells import UNIT_WORDS, UNITS_S, is_epoch
from planner.simulator.trace_formats.reading import TraceReading
from planner.simulator.trace_formats.summary import span_text

_FEW = 20
_FAST_PER_S, _SHORT_S = 100.0, 60.0
_SLOW_PER_S = 1e-3
_HOW = "use --unit {}, or `unit: {}` beside the path in a YAML file"


def question(reading: TraceReading, formats_with_a_convention: frozenset[str]) -> str | None:
    """A question where the unit is the format's convention and what comes of it is unlikely; None else.

    A trace of at least 20 requests that lasts under a minute with over 100 a second, or has under one in 1,000 s.
    """
    workload = reading.workload
    if reading.unit_given or reading.unit not in UNITS_S or reading.format not in formats_with_a_convention:
        return None
    raw_start = reading.start_s / UNITS_S[reading.unit]
    for unit, factor in UNITS_S.items():
        if unit != reading.unit and is_epoch(raw_start * factor) and not is_epoch(reading.start_s):
            return f"the times are dates if they are {UNIT_WORDS[unit]}: {_HOW.format(unit, unit)}"
    span_s = float(workload.arrival_s[-1] - workload.arrival_s[0])
    count = len(workload)
    if count < _FEW or span_s <= 0:
        return None
    rate_per_s = (count - 1) / span_s
    if span_s < _SHORT_S and rate_per_s > _FAST_PER_S:
        other = {"ms": "s", "us": "ms", "ns": "us"}.get(reading.unit)
    elif rate_per_s < _SLOW_PER_S:
        other = {"s": "ms"}.get(reading.unit)
    else:
        return None
    if other is None:
        return None
    # Short spans read as 0 s, in plain words.
    shown = f"{span_s:,.0f} s" if span_s < 10 else span_text(span_s)
    keep = f"--unit {reading.unit} keeps {UNIT_WORDS[reading.unit]}"
    return f"{count:,} requests in {shown}: are these {UNIT_WORDS[other]}? {_HOW.format(other, other)} ({keep})"


def checked(path: Path, reading: TraceReading, formats_with_a_convention: frozenset[str]) -> TraceReading:
    """The reading, where its times can be meant.

    Raises:
        ConfigError: the unit has to be said.
    """
    asked = question(reading, formats_with_a_convention)
    if asked is not None:
        raise ConfigError(f"{path}: {asked}")
    return reading
