"""A decode worker prefills, and decodes again, in one and the same engine; no stream notices."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from orchestrator.gateway.gateway import Gateway
from tests.support.live_cluster import LiveCluster
from tests.support.streams import Stream, ready, request

pytestmark = [pytest.mark.engine, pytest.mark.ray]

LENGTHS = (20, 32, 64, 200, 500)
LATER = (33, 96, 301)


async def change(cluster: LiveCluster, role: str) -> dict[str, Any]:
    result = await asyncio.to_thread(cluster.baton, "role", "decode-1", role, "--json")
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


async def notified(gateway: Gateway, role: str) -> None:
    async with asyncio.timeout(30):
        while gateway.model.fleet.workers["decode-1"].member.role != role:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_worker_changes_its_role_and_back_under_load(cluster: LiveCluster) -> None:
    async with cluster.gateway("colocated") as colocated:
        alone = {isl: Stream(colocated, request(isl)) for isl in (*LENGTHS, *LATER)}
        await asyncio.gather(*(stream.task for stream in alone.values()))
    async with cluster.gateway("prefill", "decode") as gateway:
        await ready(gateway, "decode-0", "decode-1")
        pid = gateway.model.fleet.workers["decode-1"].member.pid
        incarnation = gateway.model.fleet.workers["decode-1"].member.incarnation
        # None of them fits decode-0, so all decode on the worker that is to change.
        gateway.model.fleet.workers["decode-0"].reserved["full"] = 1 << 30
        streams = {isl: Stream(gateway, request(isl)) for isl in LENGTHS}
        for stream in streams.values():
            await stream.reached(30)
        assert {run.life.decode_id for run in gateway.model.runs.values()} == {"decode-1"}
        del gateway.model.fleet.workers["decode-0"].reserved["full"]
        assert (await change(cluster, "prefill"))["pid"] == pid
        await notified(gateway, "prefill")
        # It prefills for the other decode worker.
        gateway.model.fleet.workers["prefill-0"].queued_tokens["load"] = 1 << 30
        streams |= {isl: Stream(gateway, request(isl)) for isl in LATER}
        await asyncio.gather(*(stream.task for stream in streams.values()))
        del gateway.model.fleet.workers["prefill-0"].queued_tokens["load"]
        for isl, stream in streams.items():
            assert stream.ids == alone[isl].ids, isl
            assert stream.summary.retries == 0, isl
        assert any(streams[isl].summary.moves for isl in LENGTHS)
        for isl in LATER:
            workers = streams[isl].summary.workers
            assert (workers.prefill, workers.decode) == ("decode-1", "decode-0")
        assert (await change(cluster, "decode"))["pid"] == pid
        await notified(gateway, "decode")
        await ready(gateway, "decode-0", "decode-1")
        assert gateway.model.fleet.workers["decode-1"].member.incarnation == incarnation
        again = Stream(gateway, request(LATER[0]))
        await again.task
        assert again.ids == alone[LATER[0]].ids
        assert again.summary.workers.prefill == "prefill-0"
