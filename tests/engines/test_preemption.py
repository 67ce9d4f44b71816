"""A long trace is preempted for a new request while a decode worker starts, and goes on with exact tokens."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.live_cluster import LiveCluster, used_blocks
from tests.support.streams import Stream, ready, request

pytestmark = [pytest.mark.engine, pytest.mark.ray]

SCALED = "autoscaling: {enabled: true, change_roles: false}\n"
KV_BLOCKS = 64
"""The long trace reserves 45 of them and comes to hold 57; the new request needs 26."""


async def test_a_new_request_is_served_and_the_long_trace_continues(cluster: LiveCluster) -> None:
    long, incoming = request(900, max_tokens=900), request(301, max_tokens=500)
    long.prompt_token_ids.ids.append(3)  # <think>
    long.reasoning.budget_tokens = 600
    async with cluster.gateway("colocated") as colocated:
        alone = [Stream(colocated, message) for message in (long, incoming)]
        await asyncio.gather(*(stream.task for stream in alone))
        expected = [stream.ids for stream in alone]
    async with cluster.gateway("prefill", "decode", more=SCALED, decode_kv_blocks=KV_BLOCKS) as gateway:
        await ready(gateway, "prefill-0", "decode-0", "decode-1")
        result = await asyncio.to_thread(cluster.baton, "drain", "decode-1", "--replace", timeout_s=180)
        assert result.returncode == 0, result.stderr
        first = Stream(gateway, long)
        await first.reached(40)
        second = Stream(gateway, incoming)
        await second.reached(1)
        assert not first.task.done()
        assert gateway.status().requests.preempted == 1
        await second.task
        assert not first.task.done()
        await first.task
        assert [first.ids, second.ids] == expected
        assert (first.summary.preempted, first.summary.retries, first.summary.moves) == (True, 0, 0)
        assert not second.summary.preempted
        await ready(gateway, "decode-1")
        assert not gateway.model.preemption.growing
        async with asyncio.timeout(45):  # the lease is 30 s
            while any(used_blocks(gateway.status()).values()):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
