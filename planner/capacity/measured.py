"""Measured points to calibrate on: our records, ``baton bench``, guidellm, aiperf and vLLM ``bench serve`` output.

A point is a closed loop: so many clients, mean lengths, mean TTFT and mean time per output token.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError


@dataclass(frozen=True)
class Point:
    """One measured closed loop.

    Args:
        clients: Requests in flight.
        isl_tokens: Mean input.
        osl_tokens: Mean output.
        ttft_s: Mean time to first token.
        tpot_s: Mean time per output token after the first.
    """

    clients: int
    isl_tokens: int
    osl_tokens: int
    ttft_s: float
    tpot_s: float

    def __post_init__(self) -> None:
        if min(self.clients, self.isl_tokens, self.osl_tokens) < 1 or not (self.ttft_s > 0 and self.tpot_s > 0):
            raise ConfigError(f"measured point {self}: expected clients, lengths and times above 0")


def read_points(paths: Sequence[Path]) -> list[Point]:
    """All points of some files, each in any of the known forms.

    Raises:
        ConfigError: a file cannot be read or is in none of the forms.
    """
    return [point for path in paths for point in _read(path)]


def _read(path: Path) -> list[Point]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    try:
        if path.suffix == ".csv":
            return [_own(row) for row in csv.DictReader(text.splitlines())]
        return [point for tree in _trees(text) for point in _points(tree)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: not our records, baton bench, guidellm, aiperf or vLLM bench serve output "
            f"({type(error).__name__}: {error})"
        ) from error


def _trees(text: str) -> list[Any]:
    """One JSON document, or one a line: JSON lines, and what ``vllm bench serve --append-result`` writes."""
    try:
        return [json.loads(text)]
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        return [json.loads(line) for line in lines]


def _points(tree: Any) -> list[Point]:
    if isinstance(tree, list):
        return [point for each in tree for point in _points(each)]
    if isinstance(tree.get("benchmarks"), list):
        return [_guidellm(each) for each in tree["benchmarks"]]
    if isinstance(tree.get("points"), list):
        return _points(tree["points"])
    if "mean_ttft_ms" in tree:
        return [_vllm(tree)]
    if isinstance(tree.get("time_to_first_token"), dict):
        return [_aiperf(tree)]
    return [_bench(tree) if isinstance(tree.get("ttft_s"), dict) else _own(tree)]


def _own(tree: Mapping[str, Any]) -> Point:
    return Point(
        clients=int(tree["clients"]),
        isl_tokens=round(float(tree["isl_tokens"])),
        osl_tokens=round(float(tree["osl_tokens"])),
        ttft_s=float(tree["ttft_s"]),
        tpot_s=float(tree["tpot_s"]),
    )


def _in_flight(requests_per_s: float, ttft_s: float, tpot_s: float, osl_tokens: float) -> int:
    """Mean requests in flight of an open loop, by Little's law."""
    return max(1, round(requests_per_s * (ttft_s + (osl_tokens - 1) * tpot_s)))


def _bench(tree: Mapping[str, Any]) -> Point:
    """``baton bench --json`` or ``--out``."""
    done = int(tree["completed"])
    ttft_s, tpot_s = float(tree["ttft_s"]["mean"]), float(tree["tpot_s"]["mean"])
    osl = tree["output_tokens"] / done
    clients = tree["clients"]
    return Point(
        clients=int(clients) if clients else _in_flight(tree["requests_per_s"], ttft_s, tpot_s, osl),
        isl_tokens=round(tree["prompt_tokens"] / done),
        osl_tokens=round(osl),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
    )


def _vllm(tree: Mapping[str, Any]) -> Point:
    """``vllm bench serve --save-result`` (0.32): times in ms; ``request_rate`` is ``inf`` where all start at once."""
    done = int(tree["completed"])
    ttft_s, tpot_s, osl = tree["mean_ttft_ms"] / 1e3, tree["mean_tpot_ms"] / 1e3, tree["total_output_tokens"] / done
    clients = tree.get("max_concurrency")
    rate = float(tree.get("request_rate") or math.inf)
    if rate < math.inf:
        mean = _in_flight(tree["request_throughput"], ttft_s, tpot_s, osl)
        clients = min(clients or mean, mean)
    return Point(
        clients=int(clients or done),
        isl_tokens=round(tree["total_input_tokens"] / done),
        osl_tokens=round(osl),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
    )


_UNITS_S = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def _aiperf(tree: Mapping[str, Any]) -> Point:
    """``profile_export_aiperf.json``: the load is under ``loadgen`` (to 0.5) or ``phases`` (schema 1.3, 0.10)."""

    def seconds(name: str) -> float:
        return float(tree[name]["avg"]) * _UNITS_S[tree[name].get("unit", "ms")]

    ttft_s, tpot_s, osl = seconds("time_to_first_token"), seconds("inter_token_latency"), _average(tree, "output")
    config = tree["input_config"]
    counted = [each for each in config.get("phases", ()) if not each.get("exclude_from_results")]
    clients = next((each["concurrency"] for each in counted if each.get("concurrency")), None)
    clients = clients or config.get("loadgen", {}).get("concurrency")
    return Point(
        clients=int(clients) if clients else _in_flight(tree["request_throughput"]["avg"], ttft_s, tpot_s, osl),
        isl_tokens=round(_average(tree, "input")),
        osl_tokens=round(osl),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
    )


def _average(tree: Mapping[str, Any], side: str) -> float:
    return float(tree[f"{side}_sequence_length"]["avg"])


def _guidellm(tree: Mapping[str, Any]) -> Point:
    """One entry of ``benchmarks``; the strategy is under ``args`` (0.3) or ``config`` (since)."""
    metrics = tree["metrics"]

    def mean(name: str) -> float:
        return float(metrics[name]["successful"]["mean"])

    strategy = (tree.get("config") or tree.get("args") or {}).get("strategy") or {}
    # The streams asked for: the measured mean counts the ends of the run, when fewer are left.
    streams = strategy.get("streams") if strategy.get("type_") == "concurrent" else None
    return Point(
        clients=int(streams) if streams else max(1, round(mean("request_concurrency"))),
        isl_tokens=round(mean("prompt_token_count")),
        osl_tokens=round(mean("output_token_count")),
        ttft_s=mean("time_to_first_token_ms") / 1e3,
        # Not `time_per_output_token_ms`, whose numerator holds the first token's wait.
        tpot_s=mean("inter_token_latency_ms") / 1e3,
    )
