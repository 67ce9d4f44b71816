"""BurstGPT: ``Timestamp`` in seconds from midnight of the first day, ``Request tokens``, ``Response tokens``.

Releases 1 and 2 have ``Model, Total tokens, Log Type`` beside them, release 3 ``Session ID`` and ``Elapsed time`` too.
A failed request has 0 response tokens. Models become tenants.
"""

from __future__ import annotations

from pathlib import Path

from planner.simulator.trace_formats.azure import header_notes
from planner.simulator.trace_formats.cells import Clock, tokens
from planner.simulator.trace_formats.reading import Rows, TraceOptions, TraceReading
from planner.simulator.trace_formats.source import clean, csv_table

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
_DESCRIBED = ("Session ID", "Elapsed time", "Model", "Total tokens", "Log Type")


def read(path: Path, options: TraceOptions) -> TraceReading:
    """Read one.

    Raises:
        ConfigError: the file cannot be read or a row is malformed; the text names the line.
    """
    rows, clock, sessions = Rows(), Clock("Timestamp", options.unit, "s"), set[str]()
    wrong_sums = 0
    with csv_table(path) as table:
        at, isl, osl = (table.column(name) for name in COLUMNS)
        model, session, total = (table.maybe(name) for name in ("Model", "Session ID", "Total tokens"))
        for row in table:
            try:
                prompt, response = tokens(row[isl], "Request tokens"), tokens(row[osl], "Response tokens")
                if rows.add(clock.seconds(row[at]), prompt, response):
                    rows.tenant.append(rows.tenant_number(clean(row[model].strip()) if model is not None else ""))
                    if session is not None and row[session].strip():
                        sessions.add(row[session])
                    if total is not None:
                        wrong_sums += tokens(row[total], "Total tokens") not in (prompt + response, -1)
            except ValueError as error:
                raise table.wrong(error) from error
        rows.notes += header_notes(table.unused(*COLUMNS, *_DESCRIBED), table.repeated_headers)
    if sessions:
        rows.notes.append(f"{len(sessions):,} sessions (Session ID): each turn comes at its own time")
    if wrong_sums:
        rows.notes.append(f"{wrong_sums:,} rows whose Total tokens is not the sum of the other two: the two were taken")
    return rows.reading("burstgpt", path, clock)
