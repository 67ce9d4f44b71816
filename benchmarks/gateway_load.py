"""What one gateway process carries: CPU time a token, the delay it adds to each, and its memory.

Stub workers (`benchmarks.gateway_stubs`) say a token for every leg at a fixed pace, the real gateway serves them in a
process of its own, and `benchmarks.gateway_client` reads. CPU time is the gateway process' own, from /proc, so that
other load on the machine matters little; admission is in it, shared by the tokens of a request. The delay is taken on
the outside, from before the stub writes to after the client has read, so it holds both of theirs, too::

    python -m benchmarks.gateway_load --streams 256 1024 --tokens-per-s 5000 --protocols http grpc

``tok/msg`` over 1 means that tokens came together somewhere: the gateway, a client or a stub was late.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.gateway_stubs import SILENT_PRIORITY, Leg, StubWorker, start_stubs

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 120.0
READY_S = 1.0
"""After the ports are known, until the workers have reported their load."""


@contextlib.asynccontextmanager
async def gateway(arguments: argparse.Namespace, registry: str) -> AsyncIterator[tuple[psutil.Process, dict[str, int]]]:
    """The gateway process and its ports."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-load-"))
    spec = {
        "name": "load",
        "model": {
            "path": arguments.model,
            "served_name": "fake",
            "max_model_len_tokens": 8192,
            **({"reasoning": {}} if arguments.reasoning else {}),
        },
        "pools": {"colocated": {"replicas": arguments.workers}},
        "gateway": {
            "grpc_port": 0,
            "http_port": 0,
            "metrics_port": 0,
            "max_queued_requests": 5000,
            "max_streams": 20000,
        },
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    ports = folder / "ports"
    log = folder / "log"
    command = [
        *(sys.executable, "-m", "interface.gateway_main", "--spec", str(folder / "spec.json")),
        *("--controller", registry, "--ports-file", str(ports)),
    ]
    began_s = time.monotonic()
    with log.open("w") as out:
        process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out, cwd=arguments.tree)
    try:
        while not ports.is_file():
            if process.returncode is not None or time.monotonic() - began_s > START_TIMEOUT_S:
                raise RuntimeError(f"the gateway did not start:\n{log.read_text()}")
            await asyncio.sleep(0.05)
        seen = psutil.Process(process.pid)
        print(f"gateway ready after {time.monotonic() - began_s:.1f} s, {_cpu_s(seen):.1f} s of CPU", end="; ")
        await asyncio.sleep(READY_S)
        print(f"idle RSS {_rss_mib(seen):.0f} MiB", flush=True)
        yield seen, json.loads(ports.read_text())
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def measure(
    process: psutil.Process, url: str, streams: int, arguments: argparse.Namespace, workers: list[StubWorker], tag: str
) -> tuple[list[dict[str, Any]], float, float]:
    """One load; returns what the client saw, the gateway's CPU seconds and the wall seconds."""
    for worker in workers:
        worker.step_s = streams / arguments.tokens_per_s
    requests = streams * arguments.rounds
    command = [
        *(sys.executable, "-m", "benchmarks.gateway_client", url, "--streams", str(streams), "--tag", tag),
        *("--requests", str(requests), "--isl", str(arguments.isl), "--osl", str(arguments.osl)),
        *("--connections", str(arguments.connections)),
    ]
    cpu_s, wall_s = _cpu_s(process), time.monotonic()
    client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT, limit=1 << 30)
    out, _ = await client.communicate()
    if client.returncode:
        raise RuntimeError("the client failed")
    return json.loads(out), _cpu_s(process) - cpu_s, time.monotonic() - wall_s


@contextlib.asynccontextmanager
async def idle_streams(count: int, url: str, legs: dict[str, Leg], process: psutil.Process) -> AsyncIterator[None]:
    """So many HTTP streams that got a token and wait for the next one."""
    command = [
        *(sys.executable, "-m", "benchmarks.gateway_client", url, "--streams", str(count), "--requests", str(count)),
        *("--isl", "16", "--osl", "1000", "--priority", str(-SILENT_PRIORITY), "--tag", "idle"),
    ]
    client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, cwd=ROOT)
    try:
        while sum(leg.silent for leg in legs.values()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        await asyncio.sleep(2)
        print(f"{count} idle HTTP streams: RSS {_rss_mib(process):.0f} MiB", flush=True)
        yield
    finally:
        client.kill()
        await client.wait()


def report(sent: list[dict[str, Any]], legs: dict[str, Leg], osl: int) -> str:
    """Tokens a message, and the delays of tokens and of first ones."""
    by_request = {leg_id.rsplit(".", 2)[0]: leg for leg_id, leg in legs.items()}
    delays_s: list[float] = []
    firsts_s: list[float] = []
    messages = 0
    for each in sent:
        leg = by_request[each["request_id"]]
        tokens = 0
        messages += len(each["messages"])
        for at_s, count in each["messages"]:
            delays_s += [at_s - left_s for left_s in leg.left_s[tokens : tokens + count]]
            tokens += count
        if tokens != osl:
            raise RuntimeError(f"{each['request_id']}: {tokens} tokens of {osl}")
        served_s = leg.left_s[0] - leg.came_s
        firsts_s.append(each["messages"][0][0] - each["sent_s"] - served_s)
    delay = np.percentile(delays_s, [50, 99]) * 1e3
    first = np.percentile(firsts_s, [50, 95]) * 1e3
    return (
        f"tok/msg {len(delays_s) / messages:.2f}, delay p50 {delay[0]:.2f} p99 {delay[1]:.2f} ms, "
        f"TTFT added p50 {first[0]:.2f} p95 {first[1]:.2f} ms"
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _rss_mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / (1 << 20)


async def main_async(arguments: argparse.Namespace) -> None:
    workers, legs, registry, servers = await start_stubs(arguments.workers, 0.02)
    try:
        await measure_all(arguments, workers, legs, registry)
    finally:
        for server in servers:
            await server.stop(None)


async def measure_all(
    arguments: argparse.Namespace, workers: list[StubWorker], legs: dict[str, Leg], registry: str
) -> None:
    async with gateway(arguments, registry) as (process, ports), contextlib.AsyncExitStack() as stack:
        if arguments.idle:
            url = f"http://127.0.0.1:{ports['http_port']}"
            await stack.enter_async_context(idle_streams(arguments.idle, url, legs, process))
        for round_number in range(arguments.repetitions):
            for protocol in arguments.protocols:
                url = f"{protocol}://127.0.0.1:{ports[f'{protocol}_port']}"
                for streams in arguments.streams:
                    tag = f"{protocol}{streams}-{round_number}"
                    legs.clear()
                    sent, cpu_s, wall_s = await measure(process, url, streams, arguments, workers, tag)
                    token_us = cpu_s / (len(sent) * arguments.osl) * 1e6
                    print(
                        f"{protocol} {streams:5d} streams: {token_us:6.1f} us a token ({cpu_s:.1f} s of CPU, "
                        f"{cpu_s / wall_s:.2f} cores), {report(sent, legs, arguments.osl)}, "
                        f"RSS {_rss_mib(process):.0f} MiB",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--protocols", nargs="+", default=["http", "grpc"], choices=["http", "grpc"])
    parser.add_argument("--idle", type=int, default=0, help="HTTP streams that wait meanwhile")
    parser.add_argument("--tokens-per-s", type=float, default=5000, help="of all streams together")
    parser.add_argument("--isl", type=int, default=100)
    parser.add_argument("--osl", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1, help="requests of a stream, one after another")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--connections", type=int, default=4, help="of the gRPC client")
    parser.add_argument("--model", default=str(ROOT / "models" / "reasoner"))
    parser.add_argument("--reasoning", action="store_true", help="serve the model as one that reasons")
    parser.add_argument("--tree", default=str(ROOT), help="source tree of the gateway, to compare one with another")
    asyncio.run(main_async(parser.parse_args()))


if __name__ == "__main__":
    main()
