"""Baton's own request log, one JSON object a line, and the records of ``baton bench --out``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from planner.simulator.trace_formats.cells import Clock, seconds, tokens
from planner.simulator.trace_formats.reading import Rows, TraceOptions, TraceReading
from planner.simulator.trace_formats.source import clean, document, json_objects, shown

KEYS = (
    *("arrival_s", "isl_tokens", "cached_tokens", "reasoning_tokens", "answer_tokens", "tenant", "priority"),
    *("session", "think_s"),
)
_NEEDED = ("isl_tokens", "reasoning_tokens", "answer_tokens")


def read(path: Path, options: TraceOptions) -> TraceReading:
    """Read a log. It is our own, so a request that cannot be served is an error, as is an unknown key.

    Raises:
        ConfigError: the file cannot be read or a row is malformed; the text names the line.
    """
    rows, clock, sessions = Rows(), Clock("arrival_s", "auto", "s"), dict[str, int]()
    for where, values in json_objects(path):
        try:
            _take(rows, clock, values, sessions)
        except KeyError as error:
            raise ConfigError(f"{path}: {where}: {error.args[0]} is missing") from error
        except ValueError as error:
            raise ConfigError(f"{path}: {where}: {error}") from error
    return rows.reading("log", path, clock)


def _take(rows: Rows, clock: Clock, values: dict[str, Any], sessions: dict[str, int]) -> None:
    unknown = values.keys() - set(KEYS)
    if unknown:
        raise ValueError(f"unknown key {clean(sorted(unknown)[0])}")
    at_s = clock.seconds(values["arrival_s"])
    isl, reasoning, answer = (tokens(values[key], key) for key in _NEEDED)
    cached = max(0, tokens(values.get("cached_tokens"), "cached_tokens"))
    priority = values.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) >= 1 << 62:
        raise ValueError(f"priority: expected a whole number, got {shown(priority)}")
    if isl < 1 or min(reasoning, answer) < 0 or reasoning + answer < 1:
        raise ValueError("every request needs isl_tokens >= 1 and at least one output token")
    session, think_s = values.get("session"), values.get("think_s")
    rows.session.append(-1 if session is None else sessions.setdefault(str(session), len(sessions)))
    rows.think_s.append(math.nan if think_s is None else seconds(think_s, "think_s", least=0.0))
    rows.at_s.append(at_s)
    rows.isl.append(isl)
    rows.reasoning.append(reasoning)
    rows.answer.append(answer)
    rows.cached.append(cached)
    rows.priority.append(priority)
    rows.tenant.append(rows.tenant_number(clean(str(values.get("tenant", "")))))


def read_bench(path: Path, options: TraceOptions) -> TraceReading:
    """Read what ``baton bench --out`` wrote: when each request was sent and how long it became.

    Raises:
        ConfigError: the file cannot be read or a record is malformed; the text names it.
    """
    rows, clock = Rows(), Clock("start_s", "auto", "s")
    records = document(path).get("records")
    for number, record in enumerate(records if isinstance(records, list) else (), 1):
        try:
            if not isinstance(record, dict):
                raise ValueError(f"expected an object {{...}}, got {shown(record)}")
            if record.get("failure"):
                rows.dropped["failed"] += 1
                continue
            output = tokens(record["output_tokens"], "output_tokens")
            reasoning = min(output, max(0, tokens(record.get("reasoning_tokens", 0), "reasoning_tokens")))
            isl = tokens(record["isl_tokens"], "isl_tokens")
            if isl < 1 or output < 1:
                rows.drop(isl, output)
                continue
            rows.at_s.append(clock.seconds(record["start_s"]))
        except KeyError as error:
            raise ConfigError(f"{path}: record {number}: {error.args[0]} is missing") from error
        except ValueError as error:
            raise ConfigError(f"{path}: record {number}: {error}") from error
        rows.isl.append(isl)
        rows.reasoning.append(reasoning)
        rows.answer.append(output - reasoning)
    return rows.reading("baton_bench", path, clock)
