from __future__ import annotations

import asyncio

import pytest

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest, RequestRejected
from tests.fakes.live_cluster import Cluster, ask, cluster_of, eventually, expected, run

PROMPT = [ord(char) for char in "Whose turn is it to carry the baton, and if so how?"]


async def queued(cluster: Cluster, count: int) -> None:
    await eventually(lambda: cluster.gateway.status().requests.queued == count, f"{count} queued")


async def test_a_tenant_at_its_limit_is_refused_and_another_is_served() -> None:
    async with cluster_of("prefill-0", "decode-0", more="tenants: {acme: {max_in_flight: 1}}") as cluster:
        hold = cluster.engine("decode-0").hold(1)
        first = asyncio.create_task(run(cluster, ask(PROMPT, 8, tenant="acme")))
        await asyncio.wait_for(hold.reached.wait(), 20)
        with pytest.raises(RequestRejected, match="in flight") as refused:
            await run(cluster, ask(PROMPT, 8, tenant="acme"))
        assert refused.value.retry_after_s >= 1
        other = asyncio.create_task(run(cluster, ask(PROMPT, 8, tenant="other")))
        await eventually(lambda: len(cluster.gateway.model.runs) == 2)
        hold.open()
        for task in (first, other):
            assert (await task).token_ids[0] == expected(PROMPT, 8)
        assert (await run(cluster, ask(PROMPT, 8, tenant="acme"))).token_ids[0] == expected(PROMPT, 8)
        await cluster.idle()


async def test_a_tenant_pays_for_prompt_and_output_and_is_refused_in_debt() -> None:
    more = "tenants: {default: {tokens_per_s: 0.001, burst_tokens: 100}}"
    async with cluster_of("prefill-0", "decode-0", more=more) as cluster:
        await run(cluster, ask(PROMPT, 8, tenant="a"))  # 59 of 100
        await run(cluster, ask(PROMPT, 8, tenant="a"))
        with pytest.raises(RequestRejected, match="over its rate") as refused:
            await run(cluster, ask(PROMPT, 8, tenant="a"))
        assert refused.value.retry_after_s == 60
        await run(cluster, ask(PROMPT, 8, tenant="b"))
        await cluster.idle()


async def test_a_request_that_never_ran_costs_its_tenant_nothing() -> None:
    more = "tenants: {default: {tokens_per_s: 0.001, burst_tokens: 100}}"
    async with cluster_of("prefill-0", "decode-0", more=more, total_blocks=3, queue=0) as cluster:
        hold = cluster.engine("decode-0").hold(1)
        first = asyncio.create_task(run(cluster, ask(PROMPT, 8, tenant="busy")))
        await asyncio.wait_for(hold.reached.wait(), 20)
        for _ in range(5):
            with pytest.raises(RequestRejected, match="queue is full"):
                await run(cluster, ask(PROMPT, 8, tenant="a"))
        hold.open()
        await first
        await run(cluster, ask(PROMPT, 8, tenant="a"))
        await cluster.idle()


async def test_one_that_loses_its_place_to_a_higher_priority_is_reported_to_come_back() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=3, queue=1) as cluster:
        hold = cluster.engine("decode-0").hold(1)
        first = asyncio.create_task(run(cluster, ask(PROMPT, 8)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        batch = asyncio.create_task(run(cluster, ask(PROMPT, 8, priority=-5)))
        await queued(cluster, 1)
        urgent = asyncio.create_task(run(cluster, ask(PROMPT, 8, priority=5)))
        with pytest.raises(RequestRejected, match="took this one's") as refused:
            await batch
        assert refused.value.retry_after_s >= 1
        hold.open()
        for task in (first, urgent):
            assert (await task).token_ids[0] == expected(PROMPT, 8)
        await cluster.idle()


async def test_a_tenant_may_not_claim_more_priority_than_it_has() -> None:
    more = "tenants: {pushy: {max_priority: 0}}"
    async with cluster_of("prefill-0", "decode-0", more=more, total_blocks=3, queue=1) as cluster:
        hold = cluster.engine("decode-0").hold(1)
        first = asyncio.create_task(run(cluster, ask(PROMPT, 8)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        modest = asyncio.create_task(run(cluster, ask(PROMPT, 8)))
        await queued(cluster, 1)
        with pytest.raises(RequestRejected, match="queue is full"):
            await run(cluster, ask(PROMPT, 8, tenant="pushy", priority=1000))
        hold.open()
        for task in (first, modest):
            await task
        await cluster.idle()


async def test_a_gateway_holds_no_more_streams_than_it_may() -> None:
    async with cluster_of("prefill-0", "decode-0") as cluster:
        cluster.gateway._entry._max_streams = 1
        hold = cluster.engine("decode-0").hold(1)
        first = asyncio.create_task(run(cluster, ask(PROMPT, 8)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        with pytest.raises(RequestRejected, match="holds 1 requests"):
            await run(cluster, ask(PROMPT, 8))
        hold.open()
        await first
        await run(cluster, ask(PROMPT, 8))
        await cluster.idle()


async def test_while_tenants_compete_tokens_go_by_weight() -> None:
    """One place on the worker, two tenants with ten waiting each: the order of service follows the weights."""
    more = "tenants: {big: {weight: 4}}"
    async with cluster_of("prefill-0", "decode-0", more=more, total_blocks=3, queue=20) as cluster:
        hold = cluster.engine("decode-0").hold(1)
        first = asyncio.create_task(run(cluster, ask(PROMPT, 8)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        order: list[str] = []

        async def one(tenant: str) -> None:
            await run(cluster, ask(PROMPT, 8, tenant=tenant))
            order.append(tenant)

        tasks = [asyncio.create_task(one(tenant)) for _ in range(10) for tenant in ("big", "small")]
        await queued(cluster, 20)
        hold.open()
        await asyncio.gather(first, *tasks)
        assert 7 <= order[:10].count("big") <= 9
        await cluster.idle()


async def test_a_tenant_that_has_spent_its_day_is_refused_and_others_are_served() -> None:
    more = "tenants: {acme: {usd_per_day: 0.000001}}\ncost: {usd_per_cpu_hour: 1000.0}"
    async with cluster_of("prefill-0", "decode-0", more=more) as cluster:
        await run(cluster, ask(PROMPT, 8, tenant="acme"))
        with pytest.raises(RequestRejected, match="dollars a day") as refused:
            await run(cluster, ask(PROMPT, 8, tenant="acme"))
        assert refused.value.reason == "tenant_usd"
        await run(cluster, ask(PROMPT, 8, tenant="other"))
        await cluster.idle()


async def test_a_tenants_traces_and_dollars_of_an_answer_are_limited() -> None:
    more = "tenants: {acme: {max_branches: 2, max_answer_usd: 0.0000001}}\ncost: {usd_per_cpu_hour: 1000.0}"
    async with cluster_of("prefill-0", "decode-0", more=more) as cluster:
        vote = pb.InferenceScaling(samples=pb.Samples(max=3))
        with pytest.raises(InvalidRequest, match="at most 2"):
            await run(cluster, ask(PROMPT, 8, tenant="acme", inference_scaling=vote))
        with pytest.raises(InvalidRequest) as refused:
            await run(cluster, ask(PROMPT, 8, tenant="acme", inference_scaling=pb.InferenceScaling()))
        assert refused.value.field == "inference_scaling.budget.usd"
        reply = await run(cluster, ask(PROMPT, 8, tenant="other", inference_scaling=vote))
        assert reply.finished is not None
        assert reply.finished.inference_scaling.branches.started == 3
        await cluster.idle()
