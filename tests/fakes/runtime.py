"""Ray's part for a controller in a test: workers are hosts over fake engines, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from cluster.errors import PlacementInfeasible, WorkerDied
from cluster.placement import WorkerPlan
from cluster.ray_runtime import ProcessId, RayRuntime, WorkerHandle
from cluster.spec.config import Role, parse
from cluster.spec.portfolio import Portfolio
from cluster.topology import NodeView
from orchestrator.controller.controller import Controller
from orchestrator.controller.model_controller import ModelController
from orchestrator.gateway.gateway import Gateway
from orchestrator.registry import watch
from tests.fakes.engine import FakeEngine, Network
from tests.fakes.live_cluster import eventually, gateway_of
from tests.fakes.tokenizer import MARKERS, front
from workers.worker_host import WorkerHost


class FakeRuntime:
    """`cluster.ray_runtime.RayRuntime` over one imagined node. ``engine_settings`` are those of every fake engine.

    Workers named in ``spot`` are as if on a spot node.
    """

    session_folder: Path | None = None

    def __init__(self, *, places: int = 8, spot: Sequence[str] = (), **engine_settings: Any) -> None:
        self.network = Network()
        self.engines: dict[str, FakeEngine] = {}
        self.hosts: dict[str, WorkerHost] = {}
        self.started: list[str] = []
        self.fail_start: Exception | None = None
        self.places = threading.Semaphore(places)
        self._settings = engine_settings
        self._spot = spot

    def nodes(self) -> list[NodeView]:
        return [NodeView("node", "127.0.0.1", {"CPU": 100.0})]

    def create(
        self,
        plan: WorkerPlan,
        actor_class: type,
        arguments: Callable[[str], Sequence[Any]],
        *,
        env: Mapping[str, str],
        node_id: str | None = None,
        cancelled: threading.Event | None = None,
    ) -> WorkerHandle:
        while not self.places.acquire(timeout=0.01):
            if cancelled is not None and cancelled.is_set():
                raise PlacementInfeasible("not wanted any more")
        spec, _, worker_id, host, leg_kinds = arguments("127.0.0.1")
        engine = FakeEngine(self.network, **self._settings)
        self.engines[worker_id] = engine
        role = getattr(actor_class, "role", Role.PREFILL)
        self.hosts[worker_id] = worker = WorkerHost(worker_id, role, host, lambda: engine, leg_kinds, spec.security)
        self.started.append(worker_id)
        node = replace(self.nodes()[0], spot=worker_id in self._spot)
        return WorkerHandle(worker_id, worker, None, node, ("127.0.0.1",))

    def host_of(self, node: NodeView) -> str:
        return "127.0.0.1"

    async def call(self, handle: WorkerHandle, method: str, *arguments: Any) -> Any:
        if self.hosts.get(handle.worker_id) is not handle.actor:
            raise WorkerDied("removed", worker_id=handle.worker_id)
        if method == "start" and self.fail_start is not None:
            error, self.fail_start = self.fail_start, None
            raise error
        await asyncio.sleep(0)
        facts = await getattr(handle.actor, method)(*arguments)
        if method == "start":
            facts["processes"] = []  # this process is not to be ended with the worker
        return facts

    def remove(self, handle: WorkerHandle, processes: Sequence[ProcessId] = ()) -> None:
        self.places.release()
        if self.hosts.get(handle.worker_id) is handle.actor:
            del self.hosts[handle.worker_id], self.engines[handle.worker_id]


MODEL = Path(__file__).resolve().parents[2] / "models" / "reasoner"
SPEC = """
model:
  {{path: {model}, served_name: fake, max_model_len_tokens: 1024, reasoning: {{hard_stop_slack_tokens: 2}}}}
pools:
  prefill: {{replicas: {prefill}, max_replicas: 4}}
  decode: {{replicas: {decode}, standby_replicas: {standby}, max_replicas: 4, engine: {{max_num_seqs: {seqs}}}}}
health: {{interval_s: 0.05}}
drain: {{timeout_s: 20}}
"""


@dataclass
class ControlledCluster:
    """A controller over fake engines, and a gateway that follows its registry."""

    controller: Controller
    runtime: FakeRuntime
    gateway: Gateway
    registry: str
    said: list[tuple[str, str, str]]

    @property
    def model(self) -> ModelController:
        """The controller of the one model."""
        return next(iter(self.controller.models.values()))

    def accepting(self, role: str) -> list[str]:
        """Workers that the gateway gives new work of a role."""
        return sorted(
            view.worker_id for view in self.gateway.model.fleet.views() if view.role == role and view.accepting
        )


@contextlib.asynccontextmanager
async def controlled(
    folder: Path,
    *,
    prefill: int = 1,
    decode: int = 2,
    standby: int = 0,
    more: str = "",
    places: int = 8,
    seqs: int = 64,
    **engine_settings: Any,
) -> AsyncIterator[ControlledCluster]:
    """``standby`` are decode workers; ``more`` is YAML added to the spec."""
    spec = parse(SPEC.format(model=MODEL, prefill=prefill, decode=decode, standby=standby, seqs=seqs) + more)
    runtime = FakeRuntime(places=places, **engine_settings)
    said: list[tuple[str, str, str]] = []
    controller = Controller(
        Portfolio.of(spec), cast(RayRuntime, runtime), on_progress=lambda *words: said.append(words), log_folder=folder
    )
    registry = await controller.serve_registry("127.0.0.1")
    gateway = gateway_of(spec, front(markers=MARKERS))
    watcher = asyncio.create_task(watch(registry, gateway.update_members))
    gateway.report_to(registry)
    cluster = ControlledCluster(controller, runtime, gateway, registry, said)
    try:
        await controller.start()
        await eventually(
            lambda: len(cluster.accepting("prefill")) == prefill and len(cluster.accepting("decode")) == decode
        )
        yield cluster
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        await gateway.close()
        await controller.stop()
