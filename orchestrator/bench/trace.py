"""Reads request traces: when each request came and how long it was. Pure.

Three forms, told apart by their first line: Azure's CSV (``TIMESTAMP, ContextTokens, GeneratedTokens``), Mooncake's
JSONL (``timestamp`` in ms, ``input_length``, ``output_length``) and Baton's request log (JSONL: ``arrival_s``,
``isl_tokens``, ``reasoning_tokens``, ``answer_tokens``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request. ``arrival_s`` counts from the first request of the trace."""

    arrival_s: float
    isl_tokens: int
    osl_tokens: int


def read_trace(path: Path) -> list[TraceRow]:
    """Read a trace file, in order of arrival. Rows without a prompt or an output are left out.

    Raises:
        ConfigError: the file cannot be read, is of no known form, or a row is malformed; the text names the line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error
    return parse_trace(text.splitlines(), source=str(path))


def parse_trace(lines: Iterable[str], *, source: str = "trace") -> list[TraceRow]:
    """As `read_trace`, of lines.

    Example:
        >>> parse_trace(['{"arrival_s": 5, "isl_tokens": 9, "reasoning_tokens": 2, "answer_tokens": 1}'])
        [TraceRow(arrival_s=0.0, isl_tokens=9, osl_tokens=3)]
    """
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ConfigError(f"{source}: empty")
    first = numbered[0][1]
    if first.lstrip().startswith("{"):
        read = _from_json
    else:
        names = [name.strip() for name in next(csv.reader([first]))]
        numbered = numbered[1:]

        def read(line: str) -> TraceRow:
            return _from_azure(dict(zip(names, next(csv.reader([line])), strict=True)))

    rows = [_row(read, line, f"{source}:{number}") for number, line in numbered]
    rows = sorted((row for row in rows if row.isl_tokens > 0 and row.osl_tokens > 0), key=lambda row: row.arrival_s)
    start_s = rows[0].arrival_s if rows else 0.0
    return [TraceRow(row.arrival_s - start_s, row.isl_tokens, row.osl_tokens) for row in rows]


def _row(read: Callable[[str], TraceRow], line: str, where: str) -> TraceRow:
    try:
        return read(line)
    except KeyError as error:
        raise ConfigError(f"{where}: {error} is missing; expected an Azure, Mooncake or Baton row") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _from_json(line: str) -> TraceRow:
    row = json.loads(line)
    if "arrival_s" in row:
        output = int(row["reasoning_tokens"]) + int(row["answer_tokens"])
        return TraceRow(float(row["arrival_s"]), int(row["isl_tokens"]), output)
    return TraceRow(float(row["timestamp"]) / 1000, int(row["input_length"]), int(row["output_length"]))


def _from_azure(row: dict[str, str]) -> TraceRow:
    # Seven decimals, one more than `fromisoformat` takes.
    head, _, fraction = row["TIMESTAMP"].partition(".")
    arrival_s = datetime.fromisoformat(head).replace(tzinfo=UTC).timestamp() + float(f"0.{fraction or 0}")
    return TraceRow(arrival_s, int(row["ContextTokens"]), int(row["GeneratedTokens"]))
