"""`baton status` and `baton drain` from a laptop: through an API server of the test to real processes and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.errors import ConfigError, NoReadyWorker, Unauthenticated
from cluster.internal_rpc import InternalRpc
from cluster.kubernetes.api import Forbidden, KubernetesUnavailable
from cluster.spec.config import GatewaySettings, SecuritySettings
from cluster.spec.security_settings import ListenerTls
from interface.api_keys import add_to_file, make_key
from interface.authentication import Authentication
from interface.cli import main as cli
from interface.grpc_server import serve_grpc
from orchestrator.registry import RegistryService
from tests.fakes.backend import FakeBackend
from tests.support.certificates import Authority
from tests.support.kube_server import KubeServer, kube_server

SECRET = "0123456789abcdef0123456789abcdef"
AT_LAB = ("--release", "trial", "--kube-context", "lab", "-n", "serving")


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    with kube_server() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        yield server


@contextlib.contextmanager
def in_background(start: Callable[[], Any]) -> Iterator[Any]:
    """Run an async context in a loop of its own: the commands block the test's thread."""
    loop = asyncio.new_event_loop()
    ready: list[Any] = []
    entered, leave = threading.Event(), asyncio.Event()

    async def run() -> None:
        async with start() as value:
            ready.append(value)
            entered.set()
            await leave.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert entered.wait(20)
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join(20)
        loop.close()


@contextlib.asynccontextmanager
async def gateway(security: SecuritySettings) -> AsyncIterator[int]:
    """A gateway's gRPC server over a fake backend; yields its port."""
    server, port = await serve_grpc(FakeBackend(), GatewaySettings(grpc_port=0), Authentication(security))
    yield port
    await server.stop(0)


def baton(*arguments: str) -> None:
    cli.app(list(arguments), standalone_mode=False)


# --- status -------------------------------------------------------------------------------------------------------


def test_status_through_a_forwarded_port(kube: KubeServer, capsys: pytest.CaptureFixture[str]) -> None:
    with in_background(lambda: gateway(SecuritySettings())) as port:
        kube.pod("gateway", "gateway-b", ready=False)
        kube.pod("gateway", "gateway-a")
        kube.pod("gateway", "other", release="other")
        kube.ports = {50051: port}
        baton("status", "--json", *AT_LAB)
    status = json.loads(capsys.readouterr().out)
    assert "workers" in status
    assert kube.forwards == 1


def test_status_with_tls_and_key(kube: KubeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The certificate is for the Service's name, which the pod's annotation gives; the call goes to loopback."""
    authority = Authority(tmp_path)
    pair = authority.pair("gateway")
    key, entry = make_key("acme")
    add_to_file(tmp_path / "keys.yaml", entry)
    (tmp_path / "key").write_text(key)
    security = SecuritySettings(
        tls=ListenerTls(certificate_file=str(pair.certificate), private_key_file=str(pair.key)),
        api_keys_file=str(tmp_path / "keys.yaml"),
    )
    ca = ("--ca-file", str(authority.file))
    with in_background(lambda: gateway(security)) as port:
        kube.pod("gateway", "gateway-a", tls=True, annotations={"baton.io/server-name": "baton.internal"})
        kube.ports = {50051: port}
        baton("status", "--json", *AT_LAB, *ca, "--key-file", str(tmp_path / "key"))
        assert "workers" in json.loads(capsys.readouterr().out)
        with pytest.raises(Unauthenticated):
            baton("status", "--json", *AT_LAB, *ca)
    for thread in threading.enumerate():
        if thread.name == "port-forward":
            thread.join(10)
            assert not thread.is_alive()


# --- drain --------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def controller(security: SecuritySettings) -> AsyncIterator[tuple[str, list[registry_pb2.DrainRequest]]]:
    """A registry with one worker, whose drains end at once; yields its address and what it was asked."""
    asked: list[registry_pb2.DrainRequest] = []

    async def drained(request: registry_pb2.DrainRequest) -> AsyncIterator[registry_pb2.DrainResponse]:
        if list(request.worker_ids) != ["decode-0"]:
            raise ConfigError(f"{request.worker_ids[0]} is unknown")
        asked.append(request)
        workers = [registry_pb2.WorkerDrain(worker_id="decode-0", stage=registry_pb2.DRAIN_STAGE_DRAINED)]
        yield registry_pb2.DrainResponse(workers=workers)

    service = RegistryService(drained)
    await service.publish("m", [registry_pb2.Member(worker_id="decode-0", role="decode", state="ready")], [])
    rpc = InternalRpc(security)
    server = rpc.server()
    registry_pb2_grpc.add_RegistryServicer_to_server(service, server)
    port = rpc.bind(server, "127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", asked
    await server.stop(0)


@contextlib.contextmanager
def head(kube: KubeServer, tmp_path: Path) -> Iterator[list[registry_pb2.DrainRequest]]:
    """A head pod of the chart, with its environment and a cluster secret that the laptop does not have."""
    (tmp_path / "secret").write_text(SECRET)
    security = SecuritySettings(cluster_secret_file=str(tmp_path / "secret"))
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"model: {{path: m, served_name: m, max_model_len_tokens: 64}}\n"
        f"pools: {{prefill: {{replicas: 1}}, decode: {{replicas: 1}}}}\n"
        f"security: {{cluster_secret_file: {tmp_path / 'secret'}}}\n"
    )
    with in_background(lambda: controller(security)) as (address, asked):
        kube.pod("head", "head-r1")
        kube.env = os.environ | {"BATON_CONTROLLER": address, "BATON_SPEC": str(spec), "BATON_CACHE": str(tmp_path)}
        kube.programs = {"baton": [sys.executable, "-m", "interface.cli.main"]}
        yield asked


def test_drain_runs_where_the_secrets_are(kube: KubeServer, capfdbinary: Any, tmp_path: Path) -> None:
    with head(kube, tmp_path) as asked:
        baton("drain", "decode-0", "--json", "--timeout-s", "45", "--replace", *AT_LAB)
    (request,) = asked
    assert (request.timeout_s, request.replace, request.node_leaves) == (45, True, False)
    assert kube.commands == [
        ("head-r1", "head", ["baton", "drain", "--replace", "--timeout-s", "45", "--json", "--", "decode-0"])
    ]
    (worker,) = json.loads(capfdbinary.readouterr().out)["workers"]
    assert worker["stage"] == "DRAIN_STAGE_DRAINED"


def test_on_a_terminal_the_bar_is_drawn_there_at_our_width(
    kube: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((132, 40)))
    with head(kube, tmp_path):
        kube.programs["env"] = ["/usr/bin/env"]
        kube.env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        baton("drain", "decode-0", *AT_LAB)
    ((_, _, command),) = kube.commands
    assert command == ["env", "COLUMNS=132", "LINES=40", "baton", "drain", "--", "decode-0"]
    assert kube.terminals == 1


def test_a_drain_that_fails_there_fails_here(kube: KubeServer, capfd: Any, tmp_path: Path) -> None:
    with head(kube, tmp_path) as asked, pytest.raises(SystemExit) as ended:
        baton("drain", "decode-9", *AT_LAB)
    assert ended.value.code == 2
    assert "decode-9 is unknown" in capfd.readouterr().err
    assert not asked


def test_roles_change_from_a_laptop(kube: KubeServer, capfd: Any, tmp_path: Path) -> None:
    with head(kube, tmp_path), pytest.raises(SystemExit) as ended:
        baton("role", "decode-0", "cook", *AT_LAB)
    assert kube.commands[0][2] == ["baton", "role", "--", "decode-0", "cook"]
    assert ended.value.code == 2
    assert "expected prefill or decode" in capfd.readouterr().err


def test_a_connection_that_breaks_says_that_the_drain_may_go_on(kube: KubeServer, tmp_path: Path) -> None:
    with head(kube, tmp_path) as asked, pytest.raises(KubernetesUnavailable, match=r"broke|before"):
        kube.cut = True
        baton("drain", "decode-0", "--json", *AT_LAB)
    assert len(asked) == 1


def test_an_image_without_the_command(kube: KubeServer) -> None:
    kube.pod("head", "head-r1")
    with pytest.raises(ConfigError, match="could not be started: exec: baton: not found"):
        baton("drain", "decode-0", *AT_LAB)


# --- what can be wrong ----------------------------------------------------------------------------------------------


def test_an_unknown_context_names_those_there_are(kube: KubeServer) -> None:
    with pytest.raises(ConfigError, match="no context moon; there are lab"):
        baton("status", "--release", "trial", "--kube-context", "moon")


def test_no_kubeconfig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --kubeconfig"):
        baton("status", "--release", "trial", "--kubeconfig", str(tmp_path / "none"))


def test_an_unknown_release_names_those_there_are(kube: KubeServer) -> None:
    kube.pod("gateway", "gateway-a", release="prod")
    with pytest.raises(ConfigError, match="no release trial in namespace serving; there: prod"):
        baton("status", *AT_LAB)
    with pytest.raises(ConfigError, match="no release prod in namespace lost; there: none"):
        baton("status", "--release", "prod", "-n", "lost")


def test_during_an_upgrade_a_revision_must_be_named(kube: KubeServer) -> None:
    kube.pod("head", "head-r1")
    kube.pod("head", "head-r2", revision="r2")
    with pytest.raises(ConfigError, match="choose one with --revision: r1, r2"):
        baton("drain", "decode-0", *AT_LAB)
    with pytest.raises(ConfigError, match="no revision r3; it has r1, r2"):
        baton("drain", "decode-0", *AT_LAB, "--revision", "r3")
    with pytest.raises(ConfigError, match="could not be started"):
        baton("drain", "decode-0", *AT_LAB, "--revision", "r2")
    assert [pod for pod, _, _ in kube.commands] == ["head-r2"]


def test_no_pod_is_ready(kube: KubeServer) -> None:
    kube.pod("gateway", "gateway-a", ready=False)
    with pytest.raises(NoReadyWorker, match="none of its 1 gateway pods is ready"):
        baton("status", *AT_LAB)


@pytest.mark.parametrize(
    ("right", "command", "says"),
    [
        ("pods", ("status",), 'User "ann" cannot list resource "pods"'),
        ("portforward", ("status",), "pods/portforward"),
        ("exec", ("drain", "decode-0"), "pods/exec"),
    ],
)
def test_a_missing_right_is_named(kube: KubeServer, right: str, command: tuple[str, ...], says: str) -> None:
    kube.pod("gateway", "gateway-a")
    kube.pod("head", "head-r1")
    kube.forbidden = {right}
    with pytest.raises(Forbidden, match=says):
        baton(*command, *AT_LAB)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("status", "--kube-context", "lab"), "need --release"),
        (("status", "--release", "trial", "--endpoint", "h:1"), "leave --name and --endpoint out"),
        (("drain", "--release", "trial"), "name the workers"),
        (("drain", "--release", "trial", "--local"), "name the workers"),
    ],
)
def test_options_that_contradict(arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        baton(*arguments)
