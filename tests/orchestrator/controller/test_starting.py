"""What the controller reports to gateways of decode workers that start."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import EngineFailed
from cluster.spec.config import Role
from orchestrator.controller import worker_replacement
from tests.fakes.live_cluster import eventually
from tests.fakes.runtime import ControlledCluster, controlled


def reported(cluster: ControlledCluster) -> int:
    return cluster.controller.registry._current.starting_decode_workers


async def test_only_decode_workers_that_will_serve_are_on_their_way(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=1, standby=1, places=3) as cluster:
        assert reported(cluster) == 0
        grow = cluster.model.growth.grow
        grow(Role.PREFILL)
        await cluster.model.pool.publish()
        assert reported(cluster) == 0
        grow(Role.DECODE)
        await cluster.model.pool.publish()
        assert reported(cluster) == 0  # the one on standby serves at once
        ordered = grow(Role.DECODE)
        await cluster.model.pool.publish()
        assert reported(cluster) == 1
        cluster.model.growth.cancel_start(ordered)
        await eventually(lambda: reported(cluster) == 0)


async def test_a_lost_workers_successor_is_on_its_way_until_a_start_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_replacement, "RESTART_BACKOFF_S", (0.3, 2.0))
    async with controlled(tmp_path, decode=2) as cluster:
        cluster.runtime.fail_start = EngineFailed("no memory")
        cluster.runtime.engines["decode-1"].die()
        await eventually(lambda: reported(cluster) == 1)
        await eventually(lambda: reported(cluster) == 0)
        (back,) = [each for each in cluster.model.pool.workers() if each.plan.worker_id == "decode-1"]
        assert not back.up
        await eventually(lambda: back.up)
        assert not back.start_failed
