"""Azure's LLM inference traces of 2023, 2024 and 2025: ``TIMESTAMP, ContextTokens, GeneratedTokens``.

Dates come without a zone and with seven decimals (2023), with ``+00:00`` and with or without a fraction (2024), and
as ``2024-10-15T12:00:00.269Z`` beside ``NumImages`` (2025). All output counts as answer.
"""

from __future__ import annotations

from pathlib import Path

from planner.simulator.trace_formats.cells import Clock, tokens
from planner.simulator.trace_formats.reading import Rows, TraceOptions, TraceReading
from planner.simulator.trace_formats.source import csv_table

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(path: Path, options: TraceOptions) -> TraceReading:
    """Read one.

    Raises:
        ConfigError: the file cannot be read or a row is malformed; the text names the line.
    """
    rows, clock, with_images = Rows(), Clock("TIMESTAMP", options.unit, None), 0
    with csv_table(path) as table:
        at, isl, osl = (table.column(name) for name in COLUMNS)
        images = table.maybe("NumImages")
        for row in table:
            try:
                taken = rows.add(
                    clock.seconds(row[at]), tokens(row[isl], "ContextTokens"), tokens(row[osl], "GeneratedTokens")
                )
                if images is not None and taken:
                    with_images += tokens(row[images], "NumImages") > 0
            except ValueError as error:
                raise table.wrong(error) from error
        rows.notes += header_notes(table.unused(*COLUMNS, "NumImages"), table.repeated_headers)
    if with_images:
        rows.notes.append(f"{with_images:,} requests carry images (NumImages); only ContextTokens counts as prompt")
    if clock.zoned is False:
        rows.notes.append("dates have no time zone: taken as UTC")
    return rows.reading("azure", path, clock)


def header_notes(unused: list[str], repeated: int) -> list[str]:
    """What is said of columns that are not read and of headers between rows."""
    notes = [f"columns not used: {', '.join(unused)}"] if unused else []
    return notes + ([f"{repeated:,} more header lines between the rows: skipped"] if repeated else [])
