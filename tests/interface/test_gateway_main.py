"""The gateway process' arguments: what of the spec they replace, and what they leave alone."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.spec.portfolio import load
from interface import gateway_main

SPEC = """
name: here
model: {path: /nowhere, served_name: m, max_model_len_tokens: 1024}
pools: {prefill: {replicas: 1}, decode: {replicas: 1}}
gateway: {host: 10.0.0.1, grpc_port: 1, http_port: 2, metrics_port: 3, max_queued_requests: 7}
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `main` with arguments; returns what `serve` was given."""
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    async def serve(*arguments: Any, **more: Any) -> None:
        given.append((arguments, more))

    monkeypatch.setattr(gateway_main, "serve", serve)
    monkeypatch.setattr(gateway_main.uvloop, "run", asyncio.run)
    monkeypatch.setattr(gateway_main.logging, "basicConfig", lambda **_: None)

    def start(*arguments: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["baton-gateway", "--spec", str(path), "--controller", "c:9", *arguments])
        gateway_main.main()
        return given.pop()

    start.spec = path  # type: ignore[attr-defined]
    return start


def test_without_more_the_spec_counts(started: Any) -> None:
    (spec, controller, ports_file), more = started()
    assert spec == load(started.spec)
    assert (controller, ports_file) == ("c:9", None)
    assert more == {"probe_port": None, "grace_s": 2}


def test_ports_and_host_replace_the_specs_and_nothing_else(started: Any, tmp_path: Path) -> None:
    arguments = ("--ports", "11,12,13", "--host", "::", "--ports-file", str(tmp_path / "ports"))
    (spec, _, ports_file), more = started(*arguments, "--probe-port", "0", "--grace-s", "0.5")
    gateway = spec.first.gateway
    assert (gateway.grpc_port, gateway.http_port, gateway.metrics_port, gateway.host) == (11, 12, 13, "::")
    assert gateway.max_queued_requests == 7
    own = load(started.spec)
    assert spec.first.model_copy(update={"gateway": own.first.gateway}) == own.first
    assert ports_file == tmp_path / "ports"
    assert more == {"probe_port": 0, "grace_s": 0.5}


@pytest.mark.parametrize("ports", ["1,2", "1,2,3,4", "1,2,x"])
def test_three_ports_are_needed(started: Any, ports: str) -> None:
    with pytest.raises(ValueError):
        started("--ports", ports)


def test_a_spec_that_is_wrong_starts_nothing(started: Any) -> None:
    started.spec.write_text(SPEC.replace("grpc_port: 1", "grpc_port: -1"))
    with pytest.raises(ConfigError, match=r"gateway\.grpc_port"):
        started()


@pytest.mark.parametrize("gone", [False, True])
def test_a_gateway_ends_with_its_starter_also_where_that_ended_meanwhile(
    started: Any, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """The kernel sends a signal when the parent ends; none comes where it ended before that was asked for."""
    asked: list[tuple[int, int]] = []
    kernel = SimpleNamespace(prctl=lambda *request: asked.append(request))
    monkeypatch.setattr(gateway_main.ctypes, "CDLL", lambda _: kernel)
    monkeypatch.setattr(gateway_main.os, "getppid", lambda: 1 if gone else 77)
    if gone:
        with pytest.raises(SystemExit, match="the process that started this gateway is gone"):
            started("--with-parent", "77")
    else:
        started("--with-parent", "77")
    assert asked == [(1, signal.SIGTERM)]  # PR_SET_PDEATHSIG
