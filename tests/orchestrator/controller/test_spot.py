"""Spot workers: batch work goes to them, and the notice that one goes is a drain."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from interface.cli.status_command import render
from tests.fakes.live_cluster import Cluster, Reply, ask, eventually, expected, run
from tests.fakes.runtime import ControlledCluster, controlled

PROMPT = [ord(char) for char in "Cheap by the hour, gone by the minute: forty."]


async def asked(cluster: ControlledCluster, prompt: list[int], priority: int) -> Reply:
    reply = await run(cast(Cluster, cluster), ask(prompt, 40, priority=priority))
    assert reply.token_ids[0] == expected(prompt, 40)
    return reply


async def test_batch_work_goes_to_spot_and_other_work_does_not(tmp_path: Path) -> None:
    async with controlled(tmp_path, spot=("decode-1",)) as cluster:
        priorities = (-1, 0, 5, -1000)
        replies = await asyncio.gather(*(asked(cluster, [65 + abs(n) % 26, *PROMPT], n) for n in priorities))
        assert [reply.summary.workers.decode for reply in replies] == ["decode-1", "decode-0", "decode-0", "decode-1"]
        assert [row.worker_id for row in cluster.gateway.status().workers if row.spot] == ["decode-1"]
        assert render(cluster.gateway.status())


async def test_a_spot_workers_notice_moves_its_requests_with_their_kv(tmp_path: Path) -> None:
    async with controlled(tmp_path, spot=("decode-1",)) as cluster:
        hold = cluster.runtime.engines["decode-1"].hold(10)
        task = asyncio.create_task(asked(cluster, PROMPT, -1))
        await asyncio.wait_for(hold.reached.wait(), 20)
        old = cluster.runtime.engines["decode-1"]
        await cluster.runtime.hosts["decode-1"].drain()  # what SIGTERM does in a worker that has requests
        reply = await task
        assert (reply.summary.moves, reply.summary.retries) == (1, 0)
        await eventually(lambda: cluster.runtime.engines.get("decode-1") not in (old, None))
        await eventually(lambda: cluster.accepting("decode") == ["decode-0", "decode-1"])
