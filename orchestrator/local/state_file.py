"""What a running cluster on this machine leaves on disk, so that other commands find it and can end it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import ConfigError
from cluster.model.model_path import cache_folder


def cluster_folder(name: str) -> Path:
    """Folder for state and logs of a cluster."""
    return cache_folder() / "clusters" / name


@dataclass(slots=True)
class ProcessMark:
    """A process, distinguished from a later one with the same id by its start time."""

    pid: int
    created_s: float

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """Mark of a live process."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def process(self) -> psutil.Process | None:
        """The process, if it still is the same one."""
        try:
            found = psutil.Process(self.pid)
            return found if abs(found.create_time() - self.created_s) < 0.01 else None
        except psutil.Error:
            return None


@dataclass(slots=True)
class ClusterState:
    """Contents of ``state.json``. ``phase`` is starting, ready, stopping or failed."""

    name: str
    phase: str
    controller: ProcessMark
    spec_path: str
    host: str = "127.0.0.1"
    node_address: str = ""
    """Of this machine, where gateways listen on all of its addresses."""
    tls: bool = False
    gateways: list[dict[str, int]] = field(default_factory=list)
    """Ports of each gateway: ``grpc_port``, ``http_port`` and ``metrics_port``."""
    registry: str = ""
    ray_folder: str = ""
    processes: list[ProcessMark] = field(default_factory=list)
    error: str = ""

    @property
    def grpc_address(self) -> str:
        """Where to call the gateways from here: one address, or several with commas, as the client takes them."""
        return self._grpc(_reachable(self.host))

    @property
    def http_url(self) -> str:
        """Base of the OpenAI interface, at the first gateway, from here."""
        return self._http(_reachable(self.host))

    @property
    def callers_grpc_address(self) -> str:
        """As `grpc_address`, for callers on other machines where gateways listen on all addresses."""
        return self._grpc(_reachable(self.host, self.node_address))

    @property
    def callers_http_url(self) -> str:
        """As `http_url`, likewise."""
        return self._http(_reachable(self.host, self.node_address))

    def _grpc(self, host: str) -> str:
        return ",".join(f"{host}:{ports['grpc_port']}" for ports in self.gateways)

    def _http(self, host: str) -> str:
        port = self.gateways[0]["http_port"] if self.gateways else 0
        return f"http{'s' if self.tls else ''}://{host}:{port}"

    @property
    def metrics_port(self) -> int:
        """Metrics port of the first gateway."""
        return self.gateways[0]["metrics_port"] if self.gateways else 0

    def is_alive(self) -> bool:
        """Whether the controller runs."""
        return self.controller.process() is not None

    def save(self) -> None:
        """Write atomically; readable by the owner alone."""
        folder = cluster_folder(self.name)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "state.json.part"
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(asdict(self), indent=1))
        partial.rename(folder / "state.json")

    def remove(self) -> None:
        """Delete the file."""
        (cluster_folder(self.name) / "state.json").unlink(missing_ok=True)


def _reachable(host: str, node_address: str = "") -> str:
    host = (node_address or "127.0.0.1") if host in ("0.0.0.0", "::") else host
    return f"[{host}]" if ":" in host else host


def read_state(name: str) -> ClusterState | None:
    """State of a cluster, if there is any.

    Raises:
        ConfigError: another version of Baton wrote it, in a form that this one cannot read.
    """
    path = cluster_folder(name) / "state.json"
    try:
        tree: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    known = {each.name for each in fields(ClusterState)}
    try:
        tree = {key: value for key, value in tree.items() if key in known}
        tree["controller"] = ProcessMark(**tree["controller"])
        tree["processes"] = [ProcessMark(**mark) for mark in tree.get("processes", [])]
        return ClusterState(**tree)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} was written by another version of Baton ({error}); end that cluster with its own version, or end "
            "its processes and delete the file"
        ) from error


def running_state(name: str | None = None) -> ClusterState:
    """The running cluster of this name, or the only one that runs.

    Raises:
        ConfigError: none runs, or several do and no name was given.
    """
    folder = cache_folder() / "clusters"
    names = [name] if name else sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208
    alive = [state for item in names if (state := read_state(item)) and state.is_alive()]
    if not alive:
        raise ConfigError(f"no cluster {name or ''} runs on this machine; start one with `baton up`".replace("  ", " "))
    if len(alive) > 1:
        raise ConfigError(f"several clusters run ({', '.join(s.name for s in alive)}); name one with --name")
    return alive[0]
