"""A whole cluster in one process: real worker services over fake engines, and the real gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from baton.internal.v1 import registry_pb2, worker_pb2_grpc
from baton.v1 import inference_pb2 as pb
from cluster.spec.config import ClusterSpec, parse
from cluster.spec.portfolio import Portfolio
from orchestrator.controller.worker_roles import leg_kinds
from orchestrator.gateway.gateway import Gateway
from orchestrator.request.model_front import ModelFront
from tests.fakes.engine import BLOCK_SIZE_TOKENS, FakeEngine, Network, continuation
from tests.fakes.tokenizer import MARKERS, front
from workers.worker_service import WorkerService

SPEC = """
model:
  {{path: m, served_name: fake, max_model_len_tokens: 1024, reasoning: {{hard_stop_slack_tokens: 2,
   closing_window_tokens: 0}}}}
pools: {{prefill: {{replicas: 1}}, decode: {{replicas: 1}}}}
gateway: {{max_queued_requests: {queue}}}
transfer: {{retry_budget: 2}}
"""


def gateway_of(spec: ClusterSpec, front: ModelFront) -> Gateway:
    """A gateway of a cluster with one model."""
    return Gateway(Portfolio({front.name: spec}), {front.name: front})


async def eventually(condition: Callable[[], bool], what: str = "") -> None:
    """Wait for what another task does; gRPC's own tasks cannot be stepped by hand."""
    try:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what}") from None


@dataclass
class Worker:
    engine: FakeEngine
    service: WorkerService
    server: Any
    member: registry_pb2.Member


@dataclass
class Cluster:
    """Real worker services over fake engines, and the real gateway, in one process."""

    gateway: Gateway
    network: Network = field(default_factory=Network)
    workers: dict[str, Worker] = field(default_factory=dict)
    retired: list[FakeEngine] = field(default_factory=list)

    async def add(self, worker_id: str, **engine_settings: Any) -> FakeEngine:
        engine = FakeEngine(self.network, **engine_settings)
        info = await engine.start()
        service = WorkerService(worker_id, engine, info, leg_kinds(engine))
        server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        member = registry_pb2.Member(
            worker_id=worker_id,
            role=worker_id.split("-")[0],
            state="ready",
            address=f"127.0.0.1:{port}",
            incarnation=info.incarnation,
            total_blocks=info.total_blocks,
            block_size_tokens=BLOCK_SIZE_TOKENS,
            cpus=1,
        )
        self.workers[worker_id] = Worker(engine, service, server, member)
        return engine

    def publish(self, *, starting: int = 0) -> None:
        """``starting`` decode workers are on their way."""
        members = [worker.member for worker in self.workers.values()]
        self.gateway.update_members(
            registry_pb2.WatchMembersResponse(members=members, starting_decode_workers=starting)
        )

    async def connected(self) -> None:
        """Every worker has reported; before that the gateway sends it nothing."""
        fleet = self.gateway.model.fleet
        await eventually(lambda: all(worker.connected for worker in fleet.workers.values()), "workers report")

    async def kill(self, worker_id: str) -> None:
        worker = self.workers.pop(worker_id)
        worker.engine.die()
        await worker.server.stop(0)
        await eventually(lambda: worker_id not in self.gateway.model.fleet.workers, "the gateway notices")

    def engine(self, worker_id: str) -> FakeEngine:
        return self.workers[worker_id].engine

    async def idle(self) -> None:
        """Every block, reservation and leg has come back."""
        for worker_id, worker in self.workers.items():
            await eventually(lambda worker=worker: worker.engine.used_blocks == 0, f"blocks of {worker_id}")
        for worker in self.gateway.model.fleet.workers.values():
            assert not worker.reserved
            assert not worker.queued_tokens
            assert not worker.legs
        status = self.gateway.status().requests
        assert (status.queued, status.prefilling, status.decoding) == (0, 0, 0)

    async def close(self) -> None:
        await self.gateway.close()
        for worker in self.workers.values():
            await worker.server.stop(0)


@contextlib.asynccontextmanager
async def cluster_of(
    *worker_ids: str,
    queue: int = 8,
    more: str = "",
    closing_window_tokens: int = 0,
    **engine_settings: Any,
) -> AsyncIterator[Cluster]:
    """``more`` is YAML added to the spec."""
    text = SPEC.format(queue=queue).replace("window_tokens: 0", f"window_tokens: {closing_window_tokens}")
    spec = parse(text + more)
    cluster = Cluster(gateway_of(spec, front(markers=MARKERS)))
    try:
        for worker_id in worker_ids:
            await cluster.add(worker_id, **engine_settings)
        cluster.publish()
        await cluster.connected()
        yield cluster
    finally:
        await cluster.close()


def ask(prompt: list[int], max_tokens: int = 8, **fields: Any) -> pb.GenerateRequest:
    sampling = pb.Sampling(temperature=0.0, max_tokens=max_tokens)
    for name in list(fields):
        if name in pb.Sampling.DESCRIPTOR.fields_by_name:
            value = fields.pop(name)
            if isinstance(value, list):
                getattr(sampling, name).extend(value)
            elif name == "structured_output":
                sampling.structured_output.CopyFrom(value)
            else:
                setattr(sampling, name, value)
    return pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=prompt), sampling=sampling, **fields)


@dataclass
class Reply:
    """What a caller got, by choice."""

    token_ids: dict[int, list[int]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    deltas: list[pb.Delta] = field(default_factory=list)
    admitted: list[pb.Admitted] = field(default_factory=list)
    first_tokens: list[pb.FirstToken] = field(default_factory=list)
    finished: pb.Finished | None = None

    def take(self, event: pb.GenerateResponse) -> None:
        match event.WhichOneof("event"):
            case "admitted":
                self.admitted.append(event.admitted)
            case "first_token":
                self.first_tokens.append(event.first_token)
            case "delta":
                delta = event.delta
                self.deltas.append(delta)
                self.token_ids.setdefault(delta.choice, []).extend(delta.token_ids)
                self.text[delta.choice] = self.text.get(delta.choice, "") + delta.text
            case "finished":
                self.finished = event.finished

    @property
    def summary(self) -> pb.ChoiceSummary:
        assert self.finished is not None
        return self.finished.choices[0]


async def run(cluster: Cluster, request: pb.GenerateRequest) -> Reply:
    reply = Reply()
    async with asyncio.timeout(30):
        async for event in cluster.gateway.generate(request):
            reply.take(event)
    return reply


def expected(prompt: list[int], count: int) -> list[int]:
    return continuation(prompt, count)
