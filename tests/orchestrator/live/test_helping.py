"""The gateway tells the router which decode workers rest from helping."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.live import gateway
from orchestrator.policy.router import Placement, Wait, place
from tests.fakes.live_cluster import ask, cluster_of, eventually, run

PROMPT = [65 + i % 26 for i in range(100)]


async def test_a_decode_worker_that_reads_a_prompt_beside_others_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[set[str]] = []

    def noted(*views: Any, resting: set[str], **options: Any) -> Placement | Wait:
        told.append(set(resting))
        return place(*views, resting=resting, **options)

    monkeypatch.setattr(gateway, "place", noted)
    local = "transfer: {local_prefill_below_tokens: 500}\n"
    async with cluster_of("prefill-0", "decode-0", more=local, step_s=0.01) as cluster:
        first = asyncio.create_task(run(cluster, ask(PROMPT, 200)))
        await eventually(lambda: bool(cluster.gateway.fleet.workers["decode-0"].legs))
        await run(cluster, ask(PROMPT[::-1], 2))
        await run(cluster, ask(PROMPT[1:], 2))
        await first
    assert told == [set(), set(), {"decode-0"}]
