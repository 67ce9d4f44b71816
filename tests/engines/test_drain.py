"""Running requests leave a draining decode worker with their KV, and no token changes."""

from __future__ import annotations

import asyncio
import json

import pytest

from baton.v1 import inference_pb2 as pb
from tests.support.live_cluster import LiveCluster, used_blocks
from tests.support.streams import Stream, ready, request

pytestmark = [pytest.mark.engine, pytest.mark.ray]

LENGTHS = (20, 32, 45, 64, 200, 500)


async def test_a_drained_decode_workers_requests_go_on_with_exact_tokens(cluster: LiveCluster) -> None:
    messages: dict[int | str, pb.GenerateRequest] = {isl: request(isl) for isl in LENGTHS}
    penalised = request(40, presence_penalty=1.0, max_tokens=300)
    budgeted = request(41, max_tokens=400)
    budgeted.prompt_token_ids.ids.append(3)  # <think>
    budgeted.reasoning.budget_tokens = 300
    async with cluster.gateway("colocated") as colocated:
        named = {**messages, "penalised": penalised, "budgeted": budgeted}
        alone = {name: Stream(colocated, message) for name, message in named.items()}
        await asyncio.gather(*(stream.task for stream in alone.values()))
        expected = {name: stream.ids for name, stream in alone.items()}
    async with cluster.gateway("prefill", "decode") as gateway:
        await ready(gateway, "decode-0", "decode-1")
        streams = {name: Stream(gateway, message) for name, message in named.items()}
        for stream in streams.values():
            await stream.reached(30)
        running = {run.life.decode_id for run in gateway.model.runs.values()}
        source = next(iter(gateway.model.runs.values())).life.decode_id
        assert source is not None
        assert running <= {"decode-0", "decode-1"}
        result = await asyncio.to_thread(cluster.baton, "drain", source, "--replace", "--json", timeout_s=180)
        assert result.returncode == 0, result.stderr
        (drained,) = json.loads(result.stdout)["workers"]
        assert drained["stage"] == "DRAIN_STAGE_DRAINED"
        assert drained["requests_at_start"] > 0
        await asyncio.gather(*(stream.task for stream in streams.values()))
        for name, stream in streams.items():
            assert stream.ids == expected[name], name
            assert stream.summary.retries == 0, name
        moved = [stream for stream in streams.values() if stream.summary.moves]
        assert moved
        # Out of the cache of its own worker: the last block at most is computed again, and what was on its way.
        assert all(stream.summary.moved_recomputed_tokens <= 64 for stream in moved)
        assert streams["penalised"].summary.moves == 0
        await ready(gateway, source)
        async with asyncio.timeout(45):  # the lease is 30 s
            while any(used_blocks(gateway.status()).values()):  # noqa: ASYNC110
                await asyncio.sleep(0.2)


async def test_a_prefill_worker_is_drained_when_its_kv_is_read(cluster: LiveCluster) -> None:
    async with cluster.gateway("prefill", "decode") as gateway:
        await ready(gateway, "prefill-0", "decode-0", "decode-1")
        streams = [Stream(gateway, request(300 + index, max_tokens=120)) for index in range(4)]
        await streams[0].reached(1)
        result = await asyncio.to_thread(cluster.baton, "drain", "prefill-0", "--replace", timeout_s=180)
        assert result.returncode == 0, result.stderr
        await asyncio.gather(*(stream.task for stream in streams))
        assert all(len(stream.ids) == 120 for stream in streams)
        await ready(gateway, "prefill-0")


def test_a_drain_of_an_unknown_worker_says_which_there_are(cluster: LiveCluster) -> None:
    result = cluster.baton("drain", "decode-7")
    assert result.returncode == 2
    assert "decode-7 is unknown; workers that can be drained: " in result.stderr
