from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.errors import ConfigError, EngineFailed
from cluster.spec.config import Role
from orchestrator.controller.role_change import change_role
from tests.fakes.live_cluster import Cluster, Reply, ask, eventually, expected, run
from tests.fakes.runtime import ControlledCluster, controlled

PROMPT = [ord(char) for char in "The baton goes from hand to hand, over forty tokens."]
FLEXIBLE = "autoscaling: {enabled: true, interval_s: 1000}\n"


def prompt(index: int) -> list[int]:
    return [65 + index, *PROMPT]


async def asked(cluster: ControlledCluster, request: Any) -> Reply:
    return await run(cast(Cluster, cluster), request)


async def held_on(cluster: ControlledCluster, worker: str, count: int, point: int = 30) -> list[asyncio.Task[Reply]]:
    """Requests that decode on the worker and wait there."""
    others = [each for each in cluster.accepting("decode") if each != worker]
    for other in others:
        cluster.gateway.model.fleet.workers[other].reserved["full"] = 64
    hold = cluster.runtime.engines[worker].hold(point)
    tasks = [asyncio.create_task(asked(cluster, ask(prompt(index), 100))) for index in range(count)]
    await asyncio.wait_for(hold.reached.wait(), 20)
    await eventually(lambda: len(cluster.runtime.engines[worker]._legs) == count)
    for other in others:
        del cluster.gateway.model.fleet.workers[other].reserved["full"]
    return tasks


async def test_a_decode_worker_becomes_a_prefill_worker_and_its_requests_move(tmp_path: Path) -> None:
    async with controlled(tmp_path) as cluster:
        incarnation = cluster.gateway.model.fleet.workers["decode-1"].member.incarnation
        tasks = await held_on(cluster, "decode-1", 3)
        answer = await change_role(cluster.registry, "decode-1", Role.PREFILL)
        assert answer.elapsed_s > 0
        for index, reply in enumerate(await asyncio.gather(*tasks)):
            assert reply.token_ids[0] == expected(prompt(index), 100)
            assert (reply.summary.moves, reply.summary.retries) == (1, 0)
        assert cluster.accepting("prefill") == ["decode-1", "prefill-0"]
        assert cluster.accepting("decode") == ["decode-0"]
        # The same engine: nothing was started and no incarnation ended.
        assert cluster.gateway.model.fleet.workers["decode-1"].member.incarnation == incarnation
        assert cluster.runtime.started == ["prefill-0", "decode-0", "decode-1"]
        assert cluster.runtime.hosts["decode-1"]._role == "prefill"
        # It prefills for the other one.
        cluster.gateway.model.fleet.workers["prefill-0"].queued_tokens["load"] = 100_000
        reply = await asked(cluster, ask([90, *PROMPT], 20))
        assert reply.summary.workers.prefill == "decode-1"
        assert reply.token_ids[0] == expected([90, *PROMPT], 20)


async def test_a_prefill_worker_decodes_and_what_it_prefilled_is_read(tmp_path: Path) -> None:
    async with controlled(tmp_path, prefill=2, decode=1, more=FLEXIBLE) as cluster:
        hold = cluster.runtime.engines["decode-0"].hold("import")
        cluster.gateway.model.fleet.workers["prefill-0"].queued_tokens["load"] = 500
        task = asyncio.create_task(asked(cluster, ask(prompt(1), 40)))
        await asyncio.wait_for(hold.reached.wait(), 20)  # prefill-1 keeps KV that nobody has read
        assert cluster.runtime.engines["prefill-1"].leases
        await cluster.model.roles.change_role("prefill-1", Role.DECODE)
        hold.open()
        reply = await task
        assert reply.token_ids[0] == expected(prompt(1), 40)
        assert (reply.summary.workers.prefill, reply.summary.retries) == ("prefill-1", 0)
        await eventually(lambda: cluster.accepting("decode") == ["decode-0", "prefill-1"])
        # And back: its pairs have completed their handshake before.
        tried = len(cluster.runtime.engines["prefill-1"].started)
        await cluster.model.roles.change_role("prefill-1", Role.PREFILL)
        assert len(cluster.runtime.engines["prefill-1"].started) == tried


async def test_with_nowhere_to_go_requests_finish_where_they_are(tmp_path: Path) -> None:
    async with controlled(tmp_path) as cluster:
        tasks = await held_on(cluster, "decode-1", 2)
        cluster.gateway.model.fleet.workers["decode-0"].reserved["full"] = 64
        await change_role(cluster.registry, "decode-1", Role.PREFILL)
        cluster.runtime.engines["decode-1"].holds.pop(30).open()
        for index, reply in enumerate(await asyncio.gather(*tasks)):
            assert reply.token_ids[0] == expected(prompt(index), 100)
            assert (reply.summary.moves, reply.summary.retries) == (0, 0)


@pytest.mark.parametrize(
    ("worker", "role", "why"),
    [
        ("decode-7", Role.PREFILL, "decode-7 is not ready, or unknown"),
        ("prefill-1", Role.DECODE, "was started to prefill alone"),
        ("decode-0", Role.PREFILL, "the last decode worker"),
    ],
)
async def test_what_cannot_be_says_why(tmp_path: Path, worker: str, role: Role, why: str) -> None:
    async with controlled(tmp_path, prefill=2, decode=1) as cluster:
        with pytest.raises(ConfigError, match=why):
            await change_role(cluster.registry, worker, role)
        assert cluster.accepting("decode") == ["decode-0"]


async def test_a_worker_that_died_comes_back_in_its_present_role(tmp_path: Path) -> None:
    async with controlled(tmp_path) as cluster:
        await cluster.model.roles.change_role("decode-1", Role.PREFILL)
        old = cluster.runtime.engines["decode-1"]
        old.die()
        await eventually(lambda: cluster.runtime.engines.get("decode-1") not in (old, None))
        await eventually(lambda: cluster.accepting("prefill") == ["decode-1", "prefill-0"])


async def test_a_pool_grows_and_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=1) as cluster:
        assert cluster.model.growth.grow(Role.DECODE) == "decode-1"
        await eventually(lambda: cluster.accepting("decode") == ["decode-0", "decode-1"])
        assert cluster.model.growth.started_in_s is not None
        # Two at a time do their handshake with the same prefill worker.
        assert [cluster.model.growth.grow(Role.DECODE) for _ in range(2)] == ["decode-2", "decode-3"]
        await eventually(lambda: len(cluster.accepting("decode")) == 4)
        cluster.runtime.fail_start = EngineFailed("no memory")
        assert cluster.model.growth.grow(Role.PREFILL) == "prefill-1"
        await eventually(lambda: any(stage == "failed" for _, stage, _ in cluster.said))
        await eventually(lambda: len(cluster.model.pool.workers()) == 5)
        assert "prefill-1" not in cluster.runtime.engines


async def test_a_start_that_waits_for_its_place_is_given_up_at_once(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=1, places=2) as cluster:
        cluster.model.growth.grow(Role.DECODE)
        await eventually(lambda: ("decode-1", "placing", "") in cluster.said)
        cluster.model.growth.cancel_start("decode-1")
        await eventually(lambda: len(cluster.model.pool.workers()) == 2)
        assert cluster.runtime.started == ["prefill-0", "decode-0"]


async def test_a_drained_worker_is_known_no_more_and_its_name_is_free(tmp_path: Path) -> None:
    async with controlled(tmp_path) as cluster:
        await cluster.model.drains.drain(["decode-0"], 10).task
        assert [worker.plan.worker_id for worker in cluster.model.pool.workers()] == ["prefill-0", "decode-1"]
        assert cluster.model.growth.grow(Role.DECODE) == "decode-0"
        await eventually(lambda: cluster.accepting("decode") == ["decode-0", "decode-1"])


async def test_a_start_that_is_given_up_while_it_shakes_hands_ends_in_a_drain(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=1) as cluster:
        hold = cluster.runtime.engines["prefill-0"].hold("prefill")
        cluster.model.growth.grow(Role.DECODE)
        await asyncio.wait_for(hold.reached.wait(), 20)
        cluster.model.growth.cancel_start("decode-1")
        hold.open()
        await eventually(lambda: "decode-1" not in cluster.runtime.engines)
        await eventually(lambda: cluster.accepting("decode") == ["decode-0"])
        assert len(cluster.model.pool.workers()) == 2
