"""The controller over a runtime of the test: real worker services and handshakes, no Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import pytest

from baton.internal.v1 import registry_pb2, worker_pb2_grpc
from cluster.errors import ConfigError
from cluster.placement import WorkerPlan
from cluster.ray_runtime import WorkerHandle
from cluster.spec.config import ClusterSpec, parse
from cluster.spec.portfolio import Portfolio
from cluster.topology import NodeView
from orchestrator.controller.controller import Controller
from orchestrator.controller.model_controller import ModelController
from orchestrator.controller.worker_drain import serve_drain
from orchestrator.controller.worker_roles import leg_kinds
from tests.fakes.engine import FakeEngine, Network
from workers.worker_service import WorkerService

SPEC = """
model: {{path: {model}, served_name: m, max_model_len_tokens: 1024}}
pools: {{prefill: {{replicas: 1}}, decode: {{replicas: 2}}}}
"""


class Runtime:
    """A node for each worker; its address is that of the node."""

    def __init__(self, versions: dict[str, str], shared: Sequence[str] = ()) -> None:
        self.versions = versions
        self.shared = shared
        """Workers that are on one node."""
        self.network = Network()
        self.servers: dict[str, Any] = {}

    def nodes(self) -> list[NodeView]:
        return [NodeView("n", "10.0.0.1", {"CPU": 9.0}, zone="rack-1", gpu="NVIDIA-H200")]

    def create(self, plan: WorkerPlan, *_: Any, **__: Any) -> WorkerHandle:
        host = "10.0.0.9" if plan.worker_id in self.shared else f"10.0.1.{len(self.servers)}"
        self.servers[plan.worker_id] = None
        node = NodeView(plan.worker_id, host, {}, zone="rack-1", gpu="NVIDIA-H200")
        return WorkerHandle(plan.worker_id, None, None, node, (host,))

    def host_of(self, node: NodeView) -> str:
        return node.host

    async def call(self, handle: WorkerHandle, method: str, *_: Any) -> Any:
        if method == "start":
            return await self._start(handle.worker_id)
        if method == "check_health":
            return {"legs": 0, "running_requests": 0, "waiting_requests": 0, "used_blocks": 0, "draining": False}
        return None

    async def _start(self, worker_id: str) -> dict[str, Any]:
        engine = FakeEngine(self.network)
        info = await engine.start()
        server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServicer_to_server(WorkerService(worker_id, engine, info, leg_kinds(engine)), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.servers[worker_id] = server
        facts = {**asdict(info), "version": self.versions.get(worker_id, "vllm 1")}
        return {"address": f"127.0.0.1:{port}", "metrics_address": "", "pid": 1, "processes": [], "engine": facts}

    def remove(self, *_: Any) -> None:
        pass


@contextlib.asynccontextmanager
async def controlled(
    spec: ClusterSpec, folder: Path, runtime: Runtime, give_back: Callable[[Sequence[str]], Any]
) -> AsyncIterator[Controller]:
    controller = Controller(
        Portfolio.of(spec),
        runtime,
        on_progress=lambda *_: None,
        log_folder=folder,
        give_back=give_back,  # type: ignore[arg-type]
    )
    await controller.start()
    try:
        yield controller
    finally:
        await controller.stop()
        for server in runtime.servers.values():
            await server.stop(0)


@pytest.fixture
def spec(test_model: Path) -> ClusterSpec:
    return parse(SPEC.format(model=test_model))


@pytest.fixture
def gone() -> list[Sequence[str]]:
    return []


@pytest.fixture
def give_back(gone: list[Sequence[str]]) -> Callable[[Sequence[str]], Any]:
    async def take(hosts: Sequence[str]) -> None:
        gone.append(tuple(hosts))

    return take


def only(controller: Controller) -> ModelController:
    (model,) = controller.models.values()
    return model


async def drain(controller: Controller, worker_id: str, **settings: bool) -> None:
    request = registry_pb2.DrainRequest(worker_ids=[worker_id], **settings)
    last = [progress async for progress in serve_drain(request, controller.drain, 10.0)][-1]
    assert last.workers[0].stage == registry_pb2.DRAIN_STAGE_DRAINED


async def test_a_drained_workers_node_is_given_back(
    spec: ClusterSpec, tmp_path: Path, gone: list[Sequence[str]], give_back: Any
) -> None:
    runtime = Runtime({})
    async with controlled(spec, tmp_path, runtime, give_back) as controller:
        at = {worker.worker_id: worker.handle.hosts for worker in only(controller).pool.workers() if worker.handle}
        await drain(controller, "decode-1")
        assert gone == [at["decode-1"]]


@pytest.mark.parametrize("settings", [{"replace": True}, {"replace": True, "node_leaves": True}, {"node_leaves": True}])
async def test_a_node_that_is_needed_or_goes_anyway_is_not(
    spec: ClusterSpec, tmp_path: Path, gone: list[Sequence[str]], give_back: Any, settings: dict[str, bool]
) -> None:
    async with controlled(spec, tmp_path, Runtime({}), give_back) as controller:
        await drain(controller, "decode-1", **settings)
        assert gone == []


async def test_a_node_that_another_worker_is_on_stays(
    spec: ClusterSpec, tmp_path: Path, gone: list[Sequence[str]], give_back: Any
) -> None:
    async with controlled(spec, tmp_path, Runtime({}, shared=["decode-0", "decode-1"]), give_back) as controller:
        await drain(controller, "decode-1")
        assert gone == []
        await drain(controller, "decode-0")
        assert gone == [("10.0.0.9",)]


async def test_a_group_at_its_least_keeps_the_pod(
    spec: ClusterSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(_: Sequence[str]) -> None:
        raise ConfigError("decode: 0 replicas are outside 1 to 4; change minReplicas")

    async with controlled(spec, tmp_path, Runtime({}), refuse) as controller:
        await drain(controller, "decode-1")
        assert "stay: decode: 0 replicas are outside 1 to 4" in caplog.text


async def test_two_engine_versions_shake_no_hands(
    spec: ClusterSpec, tmp_path: Path, give_back: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Images of two versions in one Ray cluster, which the chart never makes: they serve side by side."""
    async with controlled(spec, tmp_path, Runtime({"decode-1": "vllm 2"}), give_back) as controller:
        assert only(controller).pairs.known() == {("prefill-0", "decode-0")}
        assert "decode-1 runs vllm 2: not paired" in caplog.text


async def test_members_say_where_they_are(spec: ClusterSpec, tmp_path: Path, give_back: Any) -> None:
    async with controlled(spec, tmp_path, Runtime({}), give_back) as controller:
        members = [worker.member for worker in only(controller).pool.workers()]
        assert {member.domain for member in members} == {"rack-1"}
        assert {member.revision for member in members} == {"vllm 1"}
        assert {member.state for member in members} == {"ready"}
        await asyncio.sleep(0)
