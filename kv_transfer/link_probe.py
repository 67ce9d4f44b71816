"""Measures the link between two places with NIXL reads: what UCX uses, latency, bandwidth.

One end serves memory, the other reads it, as prefill and decode do. Each end runs in a child process, started where
the worker would be: here, or inside a Ray task on the worker's node. Only plain values cross between the ends::

    server = ProbeServer(ProbeRequest(ucx_tls="self,sm,tcp"))   # on the prefill worker's node
    host, port = server.start()
    measurement = probe_client(request, host, port)               # on the decode worker's node
    server.stop()
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from cluster.engine.nixl_progress import CPU_PROGRESS_DELAY_US, PROGRESS_DELAY_ENV
from cluster.errors import TransferBroken, TransferError, TransferTimeout
from kv_transfer import ucx_report
from kv_transfer.link_fit import LinkFit, fit, typical_s
from kv_transfer.ucx_report import ReadProtocol

SIZES_BYTES = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20)
"""The smallest shows the latency, the largest the bandwidth. 256 MiB is 2,000 tokens of Llama-3.1-8B."""
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What to measure, and with what settings. Plain values, so that Ray can carry it."""

    ucx_tls: str
    memory: Literal["cpu", "cuda"] = "cpu"
    sizes_bytes: tuple[int, ...] = SIZES_BYTES
    repetitions: int = 5
    host: str = "127.0.0.1"
    """Address the serving end listens on and the other end reaches."""
    server_device: int = 0
    client_device: int = 0
    connect_timeout_s: float = 10
    timeout_s: float = 120
    """For the whole of one end, start-up included."""
    environment: tuple[tuple[str, str], ...] = ()
    """More variables for both ends, such as `UCX_NET_DEVICES`."""

    def at(self, host: str) -> ProbeRequest:
        """The same with the serving end on another address."""
        return replace(self, host=host)


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """What was measured. Bandwidths in bytes per second."""

    handshake_s: float
    """First read of the pair, connection set-up included."""
    fit: LinkFit
    copy_bytes_per_s: float
    """A plain copy in the reading process, taken in turn with the largest reads."""
    intact: bool
    """Whether the bytes that arrived were those that were sent."""
    protocol: ReadProtocol | None
    """How UCX did the largest reads; None where its log does not say."""
    ucx_tls: str

    @property
    def used(self) -> str:
        """The transport in the spec's word, else what UCX calls it, else empty: then only the allowed is known."""
        if self.protocol is None or not self.protocol.lanes:
            return ""
        transport = self.protocol.transport
        return transport.value if transport is not None else self.protocol.lanes[0]


class ProbeServer:
    """The serving end. `start` gives the address to hand to `probe_client`; `stop` always ends the child."""

    def __init__(self, request: ProbeRequest) -> None:
        self._request = request
        self._child: _Child | None = None

    def start(self) -> tuple[str, int]:
        """Start the child and wait until it serves.

        Raises:
            TransferBroken: UCX does not start, or the memory cannot be had; the text says which.
            TransferTimeout: it was not ready in time.
        """
        request = self._request
        self._child = _Child(
            request,
            {
                "do": "serve",
                "host": request.host,
                "max_bytes": max(request.sizes_bytes),
                "memory": request.memory,
                "device": request.server_device,
                "timeout_s": request.timeout_s,
            },
        )
        try:
            return request.host, int(self._child.answer(request.timeout_s)["port"])
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the child and remove what it wrote."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> tuple[str, int]:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def probe_client(request: ProbeRequest, host: str, port: int) -> LinkMeasurement:
    """Read from the serving end at ``host:port`` and measure.

    Raises:
        TransferTimeout: no answer within ``connect_timeout_s``, or not done within ``timeout_s``.
        TransferBroken: the address cannot be reached, UCX does not start, or a read failed.
    """
    child = _Child(
        request,
        {
            "do": "measure",
            "host": host,
            "port": port,
            "sizes_bytes": list(request.sizes_bytes),
            "repetitions": request.repetitions,
            "memory": request.memory,
            "device": request.client_device,
            "connect_timeout_s": request.connect_timeout_s,
            "timeout_s": request.timeout_s,
        },
    )
    try:
        answer = child.answer(request.timeout_s)
        log = child.ucx_log()
    finally:
        child.close()
    reads = [(int(size), float(seconds)) for size, seconds in answer["reads"]]
    return LinkMeasurement(
        handshake_s=answer["handshake_s"],
        fit=fit(reads),
        copy_bytes_per_s=answer["copy_bytes"] / typical_s(answer["copies_s"]),
        intact=bool(answer["intact"]),
        protocol=ucx_report.used_for(ucx_report.read_protocols(log), max(request.sizes_bytes)),
        ucx_tls=request.ucx_tls,
    )


def probe_local(request: ProbeRequest) -> LinkMeasurement:
    """Both ends on this machine, each in its own process. Raises as the two ends do."""
    with ProbeServer(request) as (host, port):
        return probe_client(request, host, port)


def check_backend(ucx_tls: str, *, timeout_s: float = 60) -> float:
    """Seconds that NIXL's UCX backend takes to start with these transports, on its own.

    Raises:
        TransferError: it does not start; the text holds UCX's own words.
    """
    start = time.perf_counter()
    with ProbeServer(replace(ProbeRequest(ucx_tls=ucx_tls), sizes_bytes=(4096,), timeout_s=timeout_s)):
        return time.perf_counter() - start


class _Child:
    """A `kv_transfer.link_child` process: its answers, its UCX log, and its end."""

    def __init__(self, request: ProbeRequest, task: Mapping[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="baton-probe-")
        folder = Path(self._folder.name)
        self._stderr: IO[bytes] = (folder / "stderr").open("w+b")
        self._ucx_log = folder / "ucx.log"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "UCX_TLS": request.ucx_tls,
            "UCX_LOG_LEVEL": "info",
            "UCX_PROTO_INFO": "y",
            "UCX_LOG_FILE": str(self._ucx_log),
            # As the workers have it, or the probe would measure a thread that they do not run.
            **({PROGRESS_DELAY_ENV: str(CPU_PROGRESS_DELAY_US)} if request.memory == "cpu" else {}),
            **dict(request.environment),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kv_transfer.link_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; `answer` says why
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        self._buffer = b""

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """The next JSON line of the child."""
        assert self._process.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not selector.select(left_s):
                    raise TransferTimeout(f"the link probe was not done within {timeout_s:g} s")
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise TransferBroken(f"the link probe's process ended without an answer{self._reason()}")
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kinds: dict[str, type[TransferError]] = {"TransferTimeout": TransferTimeout}
            raise kinds.get(answer["kind"], TransferBroken)(f"{answer['error']}{self._reason()}")
        return answer

    def ucx_log(self) -> str:
        """What UCX logged; complete once the process has ended, because it is buffered. Waits a moment for that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        text = self._ucx_log.read_text(errors="replace") if self._ucx_log.exists() else ""
        return text + self._error_text()

    def _error_text(self) -> str:
        return (Path(self._folder.name) / "stderr").read_text(errors="replace")

    def _reason(self) -> str:
        said = ucx_report.problem(self.ucx_log())
        if not said:
            lines = [line for line in self._error_text().splitlines() if line.strip()]
            said = lines[-1].strip() if lines and self._process.poll() is not None else ""
        return f"; UCX says: {said}" if said else ""

    def close(self) -> None:
        """Let the child end by itself for a moment, then kill it; remove its files."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):  # unsent input of a child that died
                stream.close()
        self._folder.cleanup()
