"""What is compared: how each server is started, when it is ready, and how it is stopped."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.cpu import marked
from cluster.ray_runtime import engine_env

MARK = "BATON_BENCHMARK"
START_TIMEOUT_S = 400.0
STOP_TIMEOUT_S = 90.0
MODEL_NAME = "tiny"


@dataclass(frozen=True, slots=True)
class Server:
    """A running contender. ``pids`` are all its processes; ``endpoints`` by interface."""

    endpoints: dict[str, str]
    pids: tuple[int, ...]
    start_s: float


class DidNotStart(RuntimeError):
    """A server ended or was not ready in time; the text holds the end of its log."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(mark: str, *, engine: bool) -> dict[str, str]:
    """Environment of a contender. An engine that is started here gets what Baton gives to its own: one OpenMP thread,
    1 GiB of KV, and the faster allocator and OpenMP runtime where they are installed. How vLLM lays out its processes
    is left to vLLM."""
    own = engine_env(on_cpu=True, omp_threads=1, kv_cache_gib=1, ucx_tls="all") if engine else {}
    own.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    return {**os.environ, **own, MARK: mark}


@contextlib.contextmanager
def vllm_server(model: Path, *, dtype: str, max_model_len: int, executor: str = "") -> Iterator[Server]:
    """vLLM's own OpenAI server, one engine, as `python -m vllm.entrypoints.openai.api_server` starts it."""
    mark, port, began_s = uuid.uuid4().hex, free_port(), time.monotonic()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", dtype, "--max-model-len", str(max_model_len), "--block-size", "32"]
    command += ["--enforce-eager", "--enable-prefix-caching", "--disable-uvicorn-access-log"]
    if executor:
        command += ["--distributed-executor-backend", executor]
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment(mark, engine=True), cwd=folder
            )
        try:
            while not _answers(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() - began_s > START_TIMEOUT_S:
                    raise DidNotStart(f"vLLM's server did not start:\n{_tail(log)}")
                time.sleep(0.5)
            endpoints = {"http": f"http://127.0.0.1:{port}"}
            yield Server(endpoints, tuple(marked(MARK, mark)), time.monotonic() - began_s)
        finally:
            pids = marked(MARK, mark)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            _end_all(mark)
            remove_openmp_segments(pids)


@contextlib.contextmanager
def baton(
    model: Path, *, dtype: str, max_model_len: int, pools: dict[str, int], reasons: bool = False
) -> Iterator[Server]:
    """Baton with the given workers, by `baton up --detach` and `baton down`; ``reasons`` if the model thinks."""
    mark, began_s = uuid.uuid4().hex, time.monotonic()
    name = f"bench-{mark[:8]}"
    grpc_port, http_port = free_port(), free_port()
    lines = [
        f"name: {name}",
        "model:",
        f"  {{path: {model}, served_name: {MODEL_NAME}, max_model_len_tokens: {max_model_len}, dtype: {dtype}"
        f"{', reasoning: {}' if reasons else ''}}}",
        "pools:",
        *[
            f"  {role}: {{replicas: {count}, cpus_per_worker: 1, omp_threads: 1, engine: {{cpu_kv_cache_gib: 1}}}}"
            for role, count in pools.items()
        ],
        "transfer: {transports: [shared_memory, tcp]}",
        f"gateway: {{grpc_port: {grpc_port}, http_port: {http_port}, metrics_port: 0}}",
    ]
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        spec, log = Path(folder) / "spec.yaml", Path(folder) / "log"
        spec.write_text("\n".join(lines) + "\n")
        try:
            _baton(["up", "-f", str(spec), "--detach"], mark, log, START_TIMEOUT_S)
            endpoints = {"http": f"http://127.0.0.1:{http_port}", "grpc": f"grpc://127.0.0.1:{grpc_port}"}
            yield Server(endpoints, tuple(marked(MARK, mark)), time.monotonic() - began_s)
        finally:
            with contextlib.suppress(DidNotStart):
                _baton(["down", "--name", name], mark, log, STOP_TIMEOUT_S)
            _end_all(mark)


def _baton(arguments: list[str], mark: str, log: Path, timeout_s: float) -> None:
    with log.open("ab") as output:
        try:
            code = subprocess.run(
                [sys.executable, "-m", "interface.cli.main", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(mark, engine=False),
                timeout=timeout_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise DidNotStart(f"`baton {arguments[0]}` took over {timeout_s:g} s:\n{_tail(log)}") from error
    if code:
        raise DidNotStart(f"`baton {arguments[0]}` failed:\n{_tail(log)}")


def remove_openmp_segments(pids: Iterable[int]) -> None:
    """OpenMP's runtime leaves a page in /dev/shm for each process that did not end by itself."""
    for pid in pids:
        if not psutil.pid_exists(pid):
            for left in Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{pid}_*"):
                left.unlink(missing_ok=True)


def _end_all(mark: str) -> None:
    """End what is left of a contender, by id; each line here is a fault of that contender's own stopping."""
    left = [pid for pid in marked(MARK, mark) if pid != os.getpid()]
    if not left:
        return
    time.sleep(3)  # what is on its way out gets its time
    for pid in left:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            print(f"  left behind, ended now: {pid} {' '.join(process.cmdline())[:100]}", file=sys.stderr)
            process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-30:])
