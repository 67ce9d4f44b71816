"""Readers of request traces: Azure CSV, Mooncake JSONL, ServeGen sample CSV, and Baton's own request log."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import ConfigError
from orchestrator.simulator.workload import Workload

MOONCAKE_UNIT_TOKENS = 512


def read_azure(path: Path) -> Workload:
    """Azure LLM inference trace: ``TIMESTAMP, ContextTokens, GeneratedTokens``. All output counts as answer.

    Raises:
        ConfigError: the file cannot be read or a row is malformed; the text names the line.
    """

    def row(values: dict[str, str]) -> tuple[float, int, int]:
        stamp = values["TIMESTAMP"]
        # Seven decimals, one more than fromisoformat takes in every version.
        head, _, fraction = stamp.partition(".")
        seconds = datetime.fromisoformat(head + "+00:00").timestamp() + float(f"0.{fraction or 0}")
        return seconds, int(values["ContextTokens"]), int(values["GeneratedTokens"])

    rows = _csv_rows(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), row)
    rows = [each for each in rows if each[1] > 0 and each[2] > 0]
    rows.sort(key=lambda each: each[0])
    table = np.array(rows, np.float64).reshape(-1, 3)
    start_s = table[0, 0] if len(table) else 0.0
    isl, answer = table[:, 1].astype(np.int64), table[:, 2].astype(np.int64)
    return Workload(table[:, 0] - start_s, isl, np.zeros_like(answer), answer)


def read_mooncake(path: Path) -> Workload:
    """Mooncake trace: ``timestamp`` in ms, lengths, and ``hash_ids`` of 512-token prefix units (full ones are kept).

    Raises:
        ConfigError: as for `read_azure`.
    """
    rows: list[tuple[float, int, int]] = []
    hashes: list[list[int]] = []

    def take(values: dict[str, Any]) -> None:
        isl, osl = int(values["input_length"]), int(values["output_length"])
        if isl > 0 and osl > 0:
            rows.append((values["timestamp"] / 1000.0, isl, osl))
            hashes.append([int(each) for each in values.get("hash_ids", ())[: isl // MOONCAKE_UNIT_TOKENS]])

    _json_rows(path, take)
    table = np.array(rows, np.float64).reshape(-1, 3)
    order = np.argsort(table[:, 0], kind="stable")
    hashes = [hashes[index] for index in order]
    table = table[order]
    answer = table[:, 2].astype(np.int64)
    return Workload(
        table[:, 0],
        table[:, 1].astype(np.int64),
        np.zeros_like(answer),
        answer,
        unit_starts=np.concatenate(([0], np.cumsum([len(each) for each in hashes]))).astype(np.int64),
        units=np.array([unit for each in hashes for unit in each], np.int64),
        unit_tokens=MOONCAKE_UNIT_TOKENS,
    )


def read_sample(path: Path) -> Workload:
    """A sampled reasoning trace: ``arrival_s, client_id, input_tokens, output_tokens, reason_tokens, answer_tokens``.

    Raises:
        ConfigError: as for `read_azure`.
    """
    names = ("arrival_s", "client_id", "input_tokens", "output_tokens", "reason_tokens", "answer_tokens")

    def row(values: dict[str, str]) -> tuple[float, str, int, int, int]:
        reason, answer = int(values["reason_tokens"]), int(values["answer_tokens"])
        return float(values["arrival_s"]), values["client_id"], int(values["input_tokens"]), reason, answer

    rows = [each for each in _csv_rows(path, names, row) if each[2] > 0 and each[3] + each[4] > 0]
    rows.sort(key=lambda each: each[0])
    tenants = tuple(sorted({each[1] for each in rows}, key=lambda name: (len(name), name))) or ("",)
    number = {name: index for index, name in enumerate(tenants)}
    return Workload(
        np.array([each[0] for each in rows], np.float64),
        np.array([each[2] for each in rows], np.int64),
        np.array([each[3] for each in rows], np.int64),
        np.array([each[4] for each in rows], np.int64),
        tenant=np.array([number[each[1]] for each in rows], np.int64),
        tenants=tenants,
    )


LOG_KEYS = ("arrival_s", "isl_tokens", "cached_tokens", "reasoning_tokens", "answer_tokens", "tenant", "priority")


def read_log(path: Path) -> Workload:
    """Baton's request log: one JSON object a line with the keys of `LOG_KEYS`; the last two and cached may be left out.

    Raises:
        ConfigError: as for `read_azure`; an unknown key is an error too.
    """
    rows: list[dict[str, Any]] = []

    def take(values: dict[str, Any]) -> None:
        unknown = values.keys() - set(LOG_KEYS)
        if unknown:
            raise ValueError(f"unknown key {sorted(unknown)[0]}")
        for key in ("arrival_s", "isl_tokens", "reasoning_tokens", "answer_tokens"):
            float(values[key])
        rows.append(values)

    _json_rows(path, take)
    rows.sort(key=lambda each: float(each["arrival_s"]))
    tenants = tuple(sorted({str(each.get("tenant", "")) for each in rows})) or ("",)
    number = {name: index for index, name in enumerate(tenants)}

    def column(key: str) -> Any:
        return np.array([int(each.get(key, 0)) for each in rows], np.int64)

    return Workload(
        np.array([float(each["arrival_s"]) for each in rows], np.float64),
        column("isl_tokens"),
        column("reasoning_tokens"),
        column("answer_tokens"),
        cached_tokens=column("cached_tokens"),
        tenant=np.array([number[str(each.get("tenant", ""))] for each in rows], np.int64),
        tenants=tenants,
        priority=column("priority"),
    )


def write_log(workload: Workload, path: Path) -> None:
    """Write a workload as a request log; what prompts share is not kept."""
    with path.open("w") as file:
        for index in range(len(workload)):
            line = {
                "arrival_s": round(float(workload.arrival_s[index]), 6),
                "isl_tokens": int(workload.isl_tokens[index]),
                "cached_tokens": int(workload.cached_tokens[index]),
                "reasoning_tokens": int(workload.reasoning_tokens[index]),
                "answer_tokens": int(workload.answer_tokens[index]),
                "tenant": workload.tenants[int(workload.tenant[index])],
                "priority": int(workload.priority[index]),
            }
            file.write(json.dumps(line) + "\n")


READERS: dict[str, Callable[[Path], Workload]] = {
    "azure": read_azure,
    "mooncake": read_mooncake,
    "sample": read_sample,
    "log": read_log,
}


def read(path: Path) -> Workload:
    """A trace of any form that one file holds.

    Raises:
        ConfigError: no reader knows it, or a row is malformed; the text names the line.
    """
    kind = detect(path)
    if kind not in READERS:
        raise ConfigError(f"{path}: client windows hold no requests; draw some with `baton trace fit --quantiles`")
    return READERS[kind](path)


def detect(path: Path) -> str:
    """Name of the reader for a file, by its first line.

    Raises:
        ConfigError: none knows it.
    """
    try:
        with path.open() as file:
            first = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error
    squeezed = first.replace(" ", "")
    marks = {
        "TIMESTAMP,ContextTokens": "azure",
        '"input_length"': "mooncake",
        "reason_tokens": "sample",
        '"isl_tokens"': "log",
        "client_id,window_start_s": "servegen",
    }
    for mark, name in marks.items():
        if mark in squeezed:
            return name
    raise ConfigError(f"{path}: not a trace I know; expected one of {', '.join(sorted({*READERS, 'servegen'}))}")


def _csv_rows(path: Path, names: Iterable[str], row: Callable[[dict[str, str]], Any]) -> list[Any]:
    rows = []
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = [name for name in names if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(f"{path}: column {missing[0]} is missing")
            for values in reader:
                try:
                    rows.append(row(values))
                except (ValueError, TypeError) as error:
                    raise ConfigError(f"{path}: line {reader.line_num}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error
    return rows


def _json_rows(path: Path, take: Callable[[dict[str, Any]], None]) -> None:
    try:
        with path.open() as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    take(json.loads(line))
                except KeyError as error:
                    raise ConfigError(f"{path}: line {number}: {error.args[0]} is missing") from error
                except (ValueError, TypeError, AttributeError) as error:
                    raise ConfigError(f"{path}: line {number}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error
