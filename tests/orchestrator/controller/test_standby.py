"""Workers on standby: loaded and paired, without requests, until one is needed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from baton.v1 import cluster_pb2
from cluster.errors import EngineFailed
from cluster.spec.config import Role
from interface.cli.status_command import render
from orchestrator.controller import worker_replacement
from orchestrator.controller.scaling_setup import policy_settings
from orchestrator.controller.scaling_view import WorkerStatuses
from tests.fakes.live_cluster import Cluster, ask, eventually, expected, run
from tests.fakes.runtime import ControlledCluster, controlled

PROMPT = [ord(char) for char in "Waiting in the wings, over forty tokens long."]
SCALED = "autoscaling: {enabled: true, interval_s: 1000, max_gpus: 6}\n"


def states(cluster: ControlledCluster) -> dict[str, str]:
    return {
        row.worker_id: cluster_pb2.WorkerState.Name(row.state).removeprefix("WORKER_STATE_")
        for row in cluster.gateway.status().workers
    }


def on_standby(cluster: ControlledCluster) -> list[str]:
    return [worker for worker, state in states(cluster).items() if state == "STANDBY"]


async def test_one_on_standby_has_shaken_hands_and_gets_no_requests(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=1, standby=1) as cluster:
        await eventually(lambda: states(cluster).get("decode-1") == "STANDBY")
        assert states(cluster) == {"prefill-0": "READY", "decode-0": "READY", "decode-1": "STANDBY"}
        assert render(cluster.gateway.status())
        assert ("prefill-0", "decode-1") in cluster.gateway.model.fleet.pairs
        warmed = len(cluster.runtime.engines["decode-1"].started)
        prompts = [[65 + index, *PROMPT] for index in range(6)]
        replies = await asyncio.gather(*(run(cast(Cluster, cluster), ask(prompt, 20)) for prompt in prompts))
        for prompt, reply in zip(prompts, replies, strict=True):
            assert reply.token_ids[0] == expected(prompt, 20)
            assert reply.summary.workers.decode == "decode-0"
        assert len(cluster.runtime.engines["decode-1"].started) == warmed


async def test_a_pool_grows_before_anything_has_started(tmp_path: Path) -> None:
    """There is no place for a further worker: without standby the pool could not grow at all."""
    async with controlled(tmp_path, decode=1, standby=1, places=3) as cluster:
        cluster.model.growth.grow(Role.DECODE)
        await eventually(lambda: cluster.accepting("decode") == ["decode-0", "decode-1"])
        assert "decode-2" not in cluster.runtime.started
        cluster.runtime.places.release()
        await eventually(lambda: on_standby(cluster) == ["decode-2"])
        assert cluster.accepting("decode") == ["decode-0", "decode-1"]


async def test_a_dead_worker_is_replaced_at_once_and_comes_back_on_standby(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_replacement, "RESTART_BACKOFF_S", (0.2,))
    async with controlled(tmp_path, decode=1, standby=1) as cluster:
        hold = cluster.runtime.engines["decode-0"].hold(10)
        task = asyncio.create_task(run(cast(Cluster, cluster), ask(PROMPT, 40)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        old = cluster.runtime.engines["decode-0"]
        old.die()
        reply = await task
        assert reply.token_ids[0] == expected(PROMPT, 40)
        assert reply.summary.workers.decode == "decode-1"
        await eventually(lambda: on_standby(cluster) == ["decode-0"])
        assert cluster.runtime.engines["decode-0"] is not old


async def test_what_drains_to_be_replaced_moves_to_the_one_on_standby(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=1, standby=1) as cluster:
        hold = cluster.runtime.engines["decode-0"].hold(10)
        task = asyncio.create_task(run(cast(Cluster, cluster), ask(PROMPT, 40)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        work = cluster.model.drains.drain(["decode-0"], 20, replace=True)
        reply = await task
        assert reply.token_ids[0] == expected(PROMPT, 40)
        assert (reply.summary.moves, reply.summary.retries) == (1, 0)
        await work.task
        await eventually(lambda: on_standby(cluster) == ["decode-0"])
        # A drain that takes a worker away takes it from the pool, not from the standby.
        await cluster.model.drains.drain(["decode-1"], 20).task
        assert cluster.accepting("decode") == []
        assert on_standby(cluster) == ["decode-0"]


async def test_a_standby_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_replacement, "RESTART_BACKOFF_S", (0.05,))
    async with controlled(tmp_path, decode=1, standby=1) as cluster:
        cluster.runtime.fail_start = EngineFailed("no memory")
        cluster.model.growth.grow(Role.DECODE)
        await eventually(lambda: cluster.accepting("decode") == ["decode-0", "decode-1"])
        await eventually(lambda: on_standby(cluster) == ["decode-2"])
        assert any(stage == "failed" for _, stage, _ in cluster.said)


async def test_a_changed_role_pairs_with_the_one_on_standby(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=2, standby=1) as cluster:
        await cluster.model.roles.change_role("decode-1", Role.PREFILL)
        assert ("decode-1", "decode-2") in cluster.model.pairs.known()
        cluster.model.growth.grow(Role.DECODE)
        await eventually(lambda: cluster.accepting("decode") == ["decode-0", "decode-2"])
        cluster.gateway.model.fleet.workers["prefill-0"].queued_tokens["load"] = 100_000
        cluster.gateway.model.fleet.workers["decode-0"].reserved["full"] = 64
        reply = await run(cast(Cluster, cluster), ask(PROMPT, 20))
        assert (reply.summary.workers.prefill, reply.summary.workers.decode) == ("decode-1", "decode-2")
        assert reply.token_ids[0] == expected(PROMPT, 20)


async def test_the_policy_sees_those_that_serve_within_gpus_less_the_standby(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=2, standby=1, more=SCALED) as cluster:
        spec = cluster.gateway.spec
        assert policy_settings(spec).max_gpus == 5
        statuses = WorkerStatuses(cluster.model.pool.workers, {}, began_s=0.0)
        seen = [(row.view.worker_id, row.state) for row in statuses.all()]
        assert seen == [("prefill-0", "ready"), ("decode-0", "ready"), ("decode-1", "ready")]
