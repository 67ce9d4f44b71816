"""Recognises a trace's format by its first line: the names in a CSV header, the keys of the first JSON object."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from cluster.errors import ConfigError
from planner.simulator.trace_formats.results import refuse_totals
from planner.simulator.trace_formats.source import clean, csv_table, json_items, opened, parsed, squeezed

_CSV: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens")),
    ("burstgpt", ("Timestamp", "Request tokens", "Response tokens")),
    ("sample", ("arrival_s", "input_tokens", "reason_tokens", "answer_tokens")),
    ("servegen", ("client_id", "window_start_s")),
)
_OBJECTS: tuple[tuple[str, frozenset[str]], ...] = (
    ("vllm_bench", frozenset({"input_lens", "output_lens"})),
    ("guidellm", frozenset({"benchmarks"})),
    ("baton_bench", frozenset({"records"})),
)
_LINES: tuple[tuple[str, frozenset[str]], ...] = (
    ("bailian", frozenset({"chat_id", "input_length"})),
    ("mooncake", frozenset({"input_length"})),
    ("mooncake", frozenset({"text_input"})),
    ("mooncake", frozenset({"messages", "output_length"})),
    ("log", frozenset({"isl_tokens"})),
    ("log", frozenset({"arrival_s"})),
    ("aiperf", frozenset({"metadata", "metrics"})),
    ("aiperf", frozenset({"metadata", "error"})),
    ("sharegpt", frozenset({"conversations"})),
    ("sharegpt", frozenset({"messages"})),
    ("inference_perf", frozenset({"start_time", "end_time", "info"})),
)
NAMES = (
    *("azure", "burstgpt", "mooncake", "bailian", "servegen", "sample", "log", "sharegpt"),
    *("vllm_bench", "guidellm", "aiperf", "inference_perf", "baton_bench"),
)
_FIRST_LINE = 1 << 26


def sniff(path: Path) -> str:
    """Name of a file's format.

    Raises:
        ConfigError: the file cannot be read, is empty, or is of no known format; the text says what was found.
    """
    if path.is_dir():
        if any(path.glob("chunk-*-trace.csv")):
            return "servegen"
        raise ConfigError(f"{path}: a folder without ServeGen's chunk-*-trace.csv; pass a file")
    with opened(path) as file:
        first = _first_line(file)
        rest = bool(first) and any(line.strip() for line in islice(file, 64))
    start = first.lstrip()[:1]
    if not start:
        raise ConfigError(f"{path}: not a trace I know: the file is empty")
    if start == "[":
        return _array(path)
    if start == "{":
        return _object(path, first, rest)
    return _csv(path)


def _first_line(file: TextIO) -> str:
    for _ in range(1000):
        line = file.readline(_FIRST_LINE)
        if line.strip():
            return line
        if not line:
            return ""
    return ""


def _csv(path: Path) -> str:
    with csv_table(path) as table:
        header = {squeezed(name) for name in table.names}
        names = [name for name in table.names if name]
    for name, columns in _CSV:
        if header >= {squeezed(column) for column in columns}:
            return name
    # Enough to name the column that is missing.
    for name, columns in _CSV:
        if len(header & {squeezed(column) for column in columns}) > 1:
            return name
    raise _unknown(path, "columns", names)


def _object(path: Path, first: str, rest: bool) -> str:
    try:
        value: Any = parsed(first)
    except ValueError as error:
        if not rest:
            raise ConfigError(f"{path}: not a trace I know: {error}") from error
        # Written over several lines: one document, or none that can be read.
        with opened(path) as file:
            try:
                value = parsed(file.read())
            except ValueError:
                raise ConfigError(f"{path}: not a trace I know: line 1 is no whole JSON object ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a trace I know: line 1 is no JSON object")
    for name, keys in (*_OBJECTS, *_LINES):
        if keys <= value.keys():
            return name
    refuse_totals(path, value)
    raise _unknown(path, "keys", value)


def _array(path: Path) -> str:
    first = next(iter(json_items(path)), None)
    if first is None:
        raise ConfigError(f"{path}: an empty JSON array")
    for name, keys in _LINES:
        if keys <= first[1].keys():
            return name
    raise _unknown(path, "keys", first[1])


def _unknown(path: Path, what: str, names: Iterable[Any]) -> ConfigError:
    listed = [clean(str(name))[:40] for name in islice(names, 8)]
    found = f"{what} {', '.join(listed)}" if listed else f"no {what}"
    return ConfigError(f"{path}: not a trace I know ({found}); expected one of {', '.join(NAMES)}")
