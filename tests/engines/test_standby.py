"""A decode worker is killed under streams, and one on standby goes on with them before a new engine has loaded."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.gateway.gateway import Gateway
from tests.support.live_cluster import LiveCluster, start_cluster
from tests.support.streams import Stream, ready, request

pytestmark = [pytest.mark.engine, pytest.mark.ray]

SPEC = """
name: standby-test
model: {{path: {model}, served_name: small, max_model_len_tokens: 2048, dtype: float32}}
pools:
  prefill: {{replicas: 1, engine: {{kv_blocks: 512}}}}
  decode: {{replicas: 1, standby_replicas: 1, engine: {{kv_blocks: 512}}}}
gateway: {{grpc_port: 0, http_port: 0, metrics_port: 0}}
health: {{interval_s: 0.5}}
"""
LENGTHS = (20, 64, 200)


@pytest.fixture
def spare(tmp_path: Path, test_model: Path) -> Iterator[LiveCluster]:
    """One prefill and one decode worker, and one decode worker on standby."""
    live = start_cluster(tmp_path, SPEC.format(model=test_model))
    try:
        yield live
    finally:
        live.stop()


async def in_state(gateway: Gateway, worker_id: str, state: str) -> None:
    async with asyncio.timeout(300):
        while (worker := gateway.model.fleet.workers.get(worker_id)) is None or worker.member.state != state:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_streams_go_on_where_a_worker_was_on_standby(
    spare: LiveCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    async with spare.gateway("prefill", "decode") as gateway:
        await ready(gateway, "prefill-0", "decode-0")
        await in_state(gateway, "decode-1", "standby")
        alone = {isl: Stream(gateway, request(isl)) for isl in LENGTHS}
        await asyncio.gather(*(stream.task for stream in alone.values()))
        assert {stream.summary.workers.decode for stream in alone.values()} == {"decode-0"}
        streams = {isl: Stream(gateway, request(isl)) for isl in LENGTHS}
        for stream in streams.values():
            await stream.reached(30)
        old = gateway.model.fleet.workers["decode-0"].member
        killed_s = time.monotonic()
        os.kill(old.pid, signal.SIGKILL)
        await ready(gateway, "decode-1")
        promoted_s = time.monotonic() - killed_s
        await asyncio.gather(*(stream.task for stream in streams.values()))
        for isl, stream in streams.items():
            assert stream.ids == alone[isl].ids, isl
            assert (stream.summary.workers.decode, stream.summary.retries) == ("decode-1", 1), isl
        await in_state(gateway, "decode-0", "standby")
        restarted_s = time.monotonic() - killed_s
        assert gateway.model.fleet.workers["decode-0"].member.incarnation != old.incarnation
        assert promoted_s < restarted_s / 2
    with capsys.disabled():
        print(f"\nserved {promoted_s:.1f} s after the kill; the next one on standby after {restarted_s:.0f} s")
