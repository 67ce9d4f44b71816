"""What a reading says in a terminal: a few lines of figures, and what was done with the file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np

from planner.simulator.trace_formats.cells import UNIT_WORDS, is_epoch
from planner.simulator.trace_formats.reading import TraceReading
from planner.simulator.workload import Ints, Workload


def span_text(span_s: float) -> str:
    """A span in the unit that fits it.

    Example:
        >>> span_text(0.2), span_text(59), span_text(3540), span_text(604_800)
        ('0.2 s', '59 s', '59 min', '7 days')
    """
    for most_s, unit_s, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if span_s < most_s:
            return f"{span_s / unit_s:.3g} {name}"
    return f"{span_s / 86_400:.3g} days"


def shared_share(workload: Workload) -> float | None:
    """Share of prompt tokens whose blocks came before in the trace, as a cache without end would find them.

    None where prompts are not known.
    """
    if not workload.unit_tokens or not len(workload.units):
        return None
    seen: set[int] = set()
    hits = 0
    units, starts = workload.units.tolist(), workload.unit_starts.tolist()
    for start, end in pairwise(starts):
        own = units[start:end]
        for unit in own:
            if unit not in seen:
                break
            hits += 1
        seen.update(own)
    return hits * workload.unit_tokens / float(workload.isl_tokens.sum())


def lines(reading: TraceReading) -> list[str]:
    """The reading in lines of text.

    The first says format, requests and times; then lengths, sessions, sharing, what was left out, and notes.
    """
    workload = reading.workload
    counted = f"{len(workload):,} request{'s' if len(workload) > 1 else ''}"
    lines = [f"trace      {reading.format}, {counted}{_times(reading)}"]
    lengths = [f"ISL {_quantiles(workload.isl_tokens)}", f"OSL {_quantiles(workload.osl_tokens)}"]
    if workload.reasoning_tokens.any():
        lengths.append(f"of it reasoning {_quantiles(workload.reasoning_tokens)}")
    lines.append(f"tokens     {'; '.join(lengths)}")
    if len(sessions := np.unique(workload.session[workload.session >= 0])):
        turns = int((workload.session >= 0).sum())
        line = f"sessions   {len(sessions):,} of {turns / len(sessions):.1f} turns"
        if workload.follows.any():
            think = np.median(workload.think_s[workload.follows])
            line += (
                f"; {int(workload.follows.sum()):,} turns come after the answer before them, median pause {think:.3g} s"
            )
        lines.append(line)
    share = shared_share(workload)
    if share is not None:
        lines.append(f"prefixes   {share:.0%} of prompt tokens came before, in blocks of {workload.unit_tokens} tokens")
    if len(workload.tenants) > 1:
        named = ", ".join(workload.tenants[:4]) + (", ..." if len(workload.tenants) > 4 else "")
        lines.append(f"tenants    {len(workload.tenants):,}: {named}")
    if reading.dropped:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in reading.dropped.items())
        lines.append(f"left out   of {reading.rows:,} requests {left_out}")
    return lines + [f"note       {note}" for note in reading.notes]


def _times(reading: TraceReading) -> str:
    workload = reading.workload
    if not reading.timed:
        return ", no times"
    first_s = float(workload.arrival_s[0])
    span_s = float(workload.arrival_s[-1]) - first_s
    rate = f", {(len(workload) - 1) / span_s:.3g} a second" if span_s > 0 else ", all at once"
    if reading.unit == "drawn":
        return f" in {span_text(span_s)}{rate}"
    start_s, end_s = reading.start_s + first_s, reading.start_s + first_s + span_s
    first, last = _date(start_s), _date(end_s)
    dates = f"{first} to {last.removeprefix(first[:11])} UTC"
    plain = f"{_short(start_s)} to {_short(end_s)} s"
    between = dates if is_epoch(start_s) or reading.unit == "date" else plain
    word = UNIT_WORDS[reading.unit]
    return f" in {span_text(span_s)}{rate} (times are {word}: {between})"


def _short(at_s: float) -> str:
    return f"{at_s:,.3f}".rstrip("0").rstrip(".")


def _date(at_s: float) -> str:
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at_s):%Y-%m-%d %H:%M:%S}"


def _quantiles(values: Ints) -> str:
    p50, p95 = (int(each) for each in np.quantile(values, (0.5, 0.95)))
    return f"p50 {p50:,} p95 {p95:,} max {int(values.max()):,}"
