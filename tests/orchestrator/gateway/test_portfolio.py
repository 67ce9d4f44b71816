"""A gateway of two models over fake engines: each request at its model, routes, and figures by model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from prometheus_client import generate_latest

from baton.internal.v1 import registry_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest, ModelNotFound
from cluster.spec.portfolio import parse
from orchestrator.gateway.gateway import Gateway
from tests.fakes.live_cluster import Cluster, ask, eventually, expected, run
from tests.fakes.tokenizer import MARKERS, front

SPEC = """
models:
  fast: {path: m, max_model_len_tokens: 1024, pools: {colocated: {replicas: 1}}}
  thinking:
    path: m
    max_model_len_tokens: 512
    reasoning: {hard_stop_slack_tokens: 2, closing_window_tokens: 0}
    pools: {prefill: {replicas: 1}, decode: {replicas: 1}}
routes:
  auto: {arms: {fast: 1, thinking: 1}}
  latest: {arms: {thinking: 1}}
"""
PROMPT = list(b"a prompt of some length")
MODEL_OF = {"colocated-0": "fast", "prefill-0": "thinking", "decode-0": "thinking"}


@contextlib.asynccontextmanager
async def two_models() -> AsyncIterator[Cluster]:
    fast = replace(front(), name="fast")
    thinking = replace(front(markers=MARKERS, max_model_len_tokens=512), name="thinking")
    cluster = Cluster(Gateway(parse(SPEC), {"fast": fast, "thinking": thinking}))
    try:
        for worker_id in MODEL_OF:
            await cluster.add(worker_id)
        publish(cluster)
        await connected(cluster)
        yield cluster
    finally:
        await cluster.close()


def publish(cluster: Cluster, *gone: str) -> None:
    for worker_id, model in MODEL_OF.items():
        cluster.workers[worker_id].member.model = model
    members = [worker.member for worker_id, worker in cluster.workers.items() if worker_id not in gone]
    cluster.gateway.update_members(
        registry_pb2.WatchMembersResponse(members=members, starting_by_model={"thinking": 1, "fast": 0})
    )


async def connected(cluster: Cluster) -> None:
    fleets = [model.fleet for model in cluster.gateway.models_served.values()]
    await eventually(
        lambda: all(fleet.workers and all(each.connected for each in fleet.workers.values()) for fleet in fleets)
    )


async def test_each_request_runs_on_workers_of_its_model() -> None:
    async with two_models() as cluster:
        for model, decode in (("fast", "colocated-0"), ("thinking", "decode-0"), ("", "colocated-0")):
            reply = await run(cluster, ask(PROMPT, 8, model=model))
            assert reply.token_ids[0] == expected(PROMPT, 8)
            assert reply.summary.workers.decode == decode
            assert reply.finished is not None
            assert (reply.finished.model, reply.finished.route) == (model or "fast", "")
        fleets = {name: set(model.fleet.workers) for name, model in cluster.gateway.models_served.items()}
        assert fleets == {"fast": {"colocated-0"}, "thinking": {"prefill-0", "decode-0"}}


async def test_each_model_has_its_own_limits() -> None:
    async with two_models() as cluster:
        with pytest.raises(InvalidRequest, match="reason"):
            await run(cluster, ask(PROMPT, 8, model="fast", reasoning=pb.Reasoning(effort=pb.EFFORT_LOW)))
        with pytest.raises(InvalidRequest):
            await run(cluster, ask(PROMPT * 30, 8, model="thinking"))
        await run(cluster, ask(PROMPT * 30, 8, model="fast"))
        with pytest.raises(ModelNotFound, match="'big' here; this cluster serves 'fast', 'thinking', 'auto', 'latest'"):
            await run(cluster, ask(PROMPT, 8, model="big"))


async def test_a_route_deals_requests_out_and_the_reply_says_to_whom() -> None:
    async with two_models() as cluster:
        answered = []
        for _ in range(4):
            finished = (await run(cluster, ask(PROMPT, 2, model="auto"))).finished
            assert finished is not None
            assert finished.route == "auto"
            answered.append(finished.model)
        assert sorted(answered) == ["fast", "fast", "thinking", "thinking"]
        sessions = {(await run(cluster, ask(PROMPT, 2, model="auto", session="s"))).finished.model for _ in range(4)}  # type: ignore[union-attr]
        assert len(sessions) == 1
        alias = (await run(cluster, ask(PROMPT, 2, model="latest"))).finished
        assert alias is not None
        assert (alias.model, alias.route) == ("thinking", "latest")


async def test_models_and_routes_are_listed() -> None:
    async with two_models() as cluster:
        rows = {model.name: (model.max_model_len_tokens, model.reasoning) for model in cluster.gateway.models()}
        assert rows == {
            "fast": (1024, False), "thinking": (512, True), "auto": (512, False), "latest": (512, True),
        }  # fmt: skip


async def test_status_and_metrics_are_by_model() -> None:
    async with two_models() as cluster:
        for model in ("fast", "thinking", "thinking"):
            await run(cluster, ask(PROMPT, 5, model=model))
        with pytest.raises(InvalidRequest):
            await run(cluster, ask([], 5, model="thinking"))
        with pytest.raises(ModelNotFound):
            await run(cluster, ask(PROMPT, 5, model="none"))
        status = cluster.gateway.status()
        assert [(row.name, row.requests.finished) for row in status.models] == [("fast", 1), ("thinking", 2)]
        assert (status.model, status.requests.finished) == ("fast", 3)
        assert {(row.worker_id, row.model) for row in status.workers} == set(MODEL_OF.items())
        cluster.gateway.refresh_gauges()
        page = generate_latest(cluster.gateway.metrics.registry).decode().splitlines()
        for line in (
            'baton_requests_finished_total{model="fast",reason="FINISH_REASON_LENGTH"} 1.0',
            'baton_requests_finished_total{model="thinking",reason="FINISH_REASON_LENGTH"} 2.0',
            'baton_requests_failed_total{error="InvalidRequest",model="thinking"} 1.0',
            'baton_requests_failed_total{error="ModelNotFound",model=""} 1.0',
            'baton_handoff_seconds_count{model="thinking"} 2.0',
        ):
            assert line in page
        helps = [line for line in page if line.startswith("# HELP")]
        assert len(helps) == len(set(helps))


async def test_a_lost_worker_of_one_model_leaves_the_other_alone() -> None:
    async with two_models() as cluster:
        publish(cluster, "decode-0")
        served = cluster.gateway.models_served
        assert set(served["thinking"].fleet.workers) == {"prefill-0"}
        assert set(served["fast"].fleet.workers) == {"colocated-0"}
        assert served["thinking"].preemption.starting
        assert not served["fast"].preemption.starting
        assert (await run(cluster, ask(PROMPT, 4, model="fast"))).token_ids[0] == expected(PROMPT, 4)
