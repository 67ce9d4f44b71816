"""The ports between gateway, worker and controller: a peer without a credential of the cluster gets nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.internal.v1 import registry_pb2, registry_pb2_grpc, worker_pb2_grpc
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import SecuritySettings, parse
from orchestrator.controller.warm_up import WarmUp
from orchestrator.controller.worker_roles import leg_kinds
from orchestrator.registry import RegistryService, watch
from tests.fakes.engine import BLOCK_SIZE_TOKENS, FakeEngine, Network
from tests.fakes.live_cluster import SPEC, Cluster, ask, eventually, expected, gateway_of, run
from tests.fakes.tokenizer import MARKERS, front
from tests.support.certificates import Authority
from workers.worker_host import WorkerHost

PROMPT = [ord(char) for char in "Only who belongs to the team may touch the baton."]


def secured(folder: Path, *, secret: bool, tls: bool, name: str = "ours") -> SecuritySettings:
    tree: dict[str, Any] = {}
    if secret:
        (folder / f"{name}-secret").write_text(f"{name}-" + "s" * 32)
        tree["cluster_secret_file"] = str(folder / f"{name}-secret")
    if tls:
        authority = Authority(folder / name, name)
        pair = authority.pair("member")
        tree["internal_tls"] = {
            "ca_file": str(authority.file),
            "certificate_file": str(pair.certificate),
            "private_key_file": str(pair.key),
        }
    return SecuritySettings.model_validate(tree)


@contextlib.asynccontextmanager
async def workers(security: SecuritySettings) -> AsyncIterator[list[registry_pb2.Member]]:
    """A prefill and a decode worker as Ray would start them, over fake engines."""
    network = Network()
    hosts, members = [], []
    for worker_id in ("prefill-0", "decode-0"):
        engine = FakeEngine(network)
        host = WorkerHost(worker_id, worker_id[:-2], "127.0.0.1", lambda engine=engine: engine, leg_kinds, security)
        facts = await host.start()
        hosts.append(host)
        members.append(
            registry_pb2.Member(
                worker_id=worker_id,
                role=worker_id[:-2],
                state="ready",
                address=facts["address"],
                metrics_address=facts["metrics_address"],
                incarnation=facts["engine"]["incarnation"],
                total_blocks=facts["engine"]["total_blocks"],
                block_size_tokens=BLOCK_SIZE_TOKENS,
            )
        )
    try:
        yield members
    finally:
        for host in hosts:
            await host.stop()


@pytest.mark.parametrize(("secret", "tls"), [(True, False), (False, True), (True, True)])
async def test_a_whole_cluster_works_with_credentials_and_not_without(
    tmp_path: Path, secret: bool, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "")  # the worker sets both; put back afterwards
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "")
    ours = secured(tmp_path, secret=secret, tls=tls)
    theirs = secured(tmp_path, secret=secret, tls=tls, name="theirs")
    async with workers(ours) as members:
        address = members[0].address
        for security in (SecuritySettings(), theirs):
            rpc = InternalRpc(security)
            async with rpc.channel(address) as channel:
                call = worker_pb2_grpc.WorkerStub(channel).Connect(metadata=rpc.metadata, timeout=10)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call.read()
                assert refused.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
                assert "ssss" not in str(refused.value)
        rpc = InternalRpc(ours)
        async with rpc.channel(address) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        warm_up = WarmUp({member.worker_id: member for member in members}, rpc)
        assert await warm_up.pair("prefill-0", "decode-0") >= 0
        await warm_up.close()

        registry = RegistryService()
        await registry.publish("", members, [])
        server = rpc.server()
        registry_pb2_grpc.add_RegistryServicer_to_server(registry, server)
        port = rpc.bind(server, "127.0.0.1:0")
        await server.start()
        spec = parse(SPEC.format(queue=8)).model_copy(update={"security": ours})
        gateway = gateway_of(spec, front(markers=MARKERS))
        seen: list[registry_pb2.WatchMembersResponse] = []
        strangers = asyncio.create_task(watch(f"127.0.0.1:{port}", seen.append, InternalRpc(theirs)))
        watcher = asyncio.create_task(watch(f"127.0.0.1:{port}", gateway.update_members, rpc))
        try:
            cluster = Cluster(gateway)
            await eventually(lambda: len(gateway.model.fleet.workers) == 2, "members")
            await cluster.connected()
            assert (await run(cluster, ask(PROMPT, 9))).token_ids[0] == expected(PROMPT, 9)
            assert not seen
        finally:
            for task in (strangers, watcher):
                task.cancel()
            await asyncio.gather(strangers, watcher, return_exceptions=True)
            await gateway.close()
            await server.stop(0)


@pytest.mark.parametrize("open_metrics", [False, True])
async def test_worker_metrics_ask_for_the_secret_too(
    tmp_path: Path, open_metrics: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "")
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "")
    security = secured(tmp_path, secret=True, tls=False).model_copy(update={"open_metrics": open_metrics})
    async with workers(security) as members, aiohttp.ClientSession() as session:
        url = f"http://{members[0].metrics_address}/metrics"
        async with session.get(url) as answer:
            assert answer.status == (200 if open_metrics else 401)
        async with session.get(url, headers=dict(InternalRpc(security).metadata)) as answer:
            assert answer.status == 200
            assert "baton_worker_running_requests" in await answer.text()


async def test_the_nixl_side_channel_is_bound_to_the_workers_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "")
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "")
    async with workers(SecuritySettings()):
        assert os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "127.0.0.1"
        assert int(os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"]) > 0
