"""Measured points to calibrate on: our own records, guidellm, aiperf and vLLM ``bench serve`` JSON, or a live server.

A point is a closed loop: so many clients, mean lengths, mean TTFT and mean time per output token.
"""

from __future__ import annotations

import csv
import http.client
import json
import math
import threading
import time
import urllib.parse
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
        if path.suffix == ".jsonl":
            return [_any(json.loads(line)) for line in text.splitlines() if line.strip()]
        tree = json.loads(text)
        if isinstance(tree, dict) and isinstance(tree.get("benchmarks"), list):
            return [_guidellm(each) for each in tree["benchmarks"]]
        if isinstance(tree, dict) and isinstance(tree.get("points"), list):
            tree = tree["points"]
        return [_any(each) for each in tree] if isinstance(tree, list) else [_any(tree)]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: not our records, guidellm, aiperf or vLLM bench serve JSON ({type(error).__name__}: {error})"
        ) from error


def _any(tree: Mapping[str, Any]) -> Point:
    if "mean_ttft_ms" in tree:
        return _vllm(tree)
    if isinstance(tree.get("time_to_first_token"), dict):
        return _aiperf(tree)
    return _own(tree)


def _own(tree: Mapping[str, Any]) -> Point:
    return Point(
        clients=int(tree["clients"]),
        isl_tokens=round(float(tree["isl_tokens"])),
        osl_tokens=round(float(tree["osl_tokens"])),
        ttft_s=float(tree["ttft_s"]),
        tpot_s=float(tree["tpot_s"]),
    )


def _vllm(tree: Mapping[str, Any]) -> Point:
    done = int(tree["completed"])
    clients = tree.get("max_concurrency") or done
    return Point(
        clients=int(clients),
        isl_tokens=round(tree["total_input_tokens"] / done),
        osl_tokens=round(tree["total_output_tokens"] / done),
        ttft_s=tree["mean_ttft_ms"] / 1e3,
        tpot_s=tree["mean_tpot_ms"] / 1e3,
    )


def _aiperf(tree: Mapping[str, Any]) -> Point:
    def seconds(name: str) -> float:
        unit = {"ms": 1e-3, "s": 1.0, "us": 1e-6, "ns": 1e-9}[tree[name].get("unit", "ms")]
        return float(tree[name]["avg"]) * unit

    return Point(
        clients=int(tree["input_config"]["loadgen"]["concurrency"]),
        isl_tokens=round(tree["input_sequence_length"]["avg"]),
        osl_tokens=round(tree["output_sequence_length"]["avg"]),
        ttft_s=seconds("time_to_first_token"),
        tpot_s=seconds("inter_token_latency"),
    )


def _guidellm(tree: Mapping[str, Any]) -> Point:
    metrics = tree["metrics"]

    def mean(name: str) -> float:
        return float(metrics[name]["successful"]["mean"])

    return Point(
        clients=max(1, round(mean("request_concurrency"))),
        isl_tokens=round(mean("prompt_token_count")),
        osl_tokens=round(mean("output_token_count")),
        ttft_s=mean("time_to_first_token_ms") / 1e3,
        tpot_s=mean("inter_token_latency_ms") / 1e3,
    )


def measure(url: str, model: str, clients: int, isl_tokens: int, osl_tokens: int, rounds: int = 3) -> Point:
    """Measure one closed loop on a live OpenAI-compatible server, with prompts of random short words.

    Args:
        url: Base address, such as ``http://127.0.0.1:8000``.
        model: Name it is served under.
        clients: Requests in flight.
        isl_tokens: Prompt length asked for; what the server counted is what is recorded.
        osl_tokens: Output length, kept by ``ignore_eos``.
        rounds: Requests of each client.
    Raises:
        ConfigError: the server does not answer as an OpenAI completions stream.
    """
    found: list[tuple[float, float, int, int]] = []
    errors: list[str] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        for turn in range(rounds):
            try:
                one = _one(url, model, number * rounds + turn, isl_tokens, osl_tokens)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                with lock:
                    errors.append(f"{type(error).__name__}: {error}")
                return
            with lock:
                found.append(one)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors or not found:
        raise ConfigError(f"{url}: {errors[0] if errors else 'no answer'}")
    count = len(found)
    return Point(
        clients=clients,
        isl_tokens=round(sum(each[2] for each in found) / count),
        osl_tokens=round(sum(each[3] for each in found) / count),
        ttft_s=sum(each[0] for each in found) / count,
        tpot_s=sum(each[1] for each in found) / count,
    )


def _one(url: str, model: str, seed: int, isl_tokens: int, osl_tokens: int) -> tuple[float, float, int, int]:
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=600)
    body = {
        "model": model,
        "prompt": " ".join(str((seed * 7919 + i * 31) % 1000) for i in range(math.ceil(isl_tokens / 2))),
        "max_tokens": osl_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    connection.request("POST", f"{parts.path}/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise ValueError(f"status {response.status}: {response.read(200).decode(errors='replace')}")
    first = last = 0.0
    usage: dict[str, int] = {}
    for raw in response:
        line = raw.decode().strip()
        if not line.startswith("data:") or line.endswith("[DONE]"):
            continue
        event = json.loads(line[5:])
        usage = event.get("usage") or usage
        if event.get("choices"):
            last = time.perf_counter()
            first = first or last
    connection.close()
    output = int(usage["completion_tokens"])
    return first - started, (last - first) / max(1, output - 1), int(usage["prompt_tokens"]), output
