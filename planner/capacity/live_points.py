"""Measure closed loops on a live OpenAI-compatible server, for ``baton calibrate --url``."""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
import urllib.parse

from cluster.errors import ConfigError
from planner.capacity.measured import Point


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
