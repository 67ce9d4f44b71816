"""Models of one cluster answer exactly through a kill -9 of a worker of each, and while another comes and goes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.v1 import inference_pb2 as pb
from benchmarks.tiny_model import write_tiny_model
from orchestrator.gateway.gateway import Gateway
from tests.support.live_cluster import LiveCluster, start_cluster
from tests.support.streams import Stream, request

pytestmark = [pytest.mark.engine, pytest.mark.ray]

SPEC = """
name: portfolio-test
models:
  reasoner:
    path: {reasoner}
    max_model_len_tokens: 2048
    dtype: float32
    pools: {{prefill: {{replicas: 1, engine: {{kv_blocks: 512}}}}, decode: {{replicas: 1, engine: {{kv_blocks: 512}}}}}}
  tiny:
    path: {tiny}
    max_model_len_tokens: 2048
    dtype: float32
    pools: {{colocated: {{replicas: 1, engine: {{kv_blocks: 512}}}}}}
routes:
  both: {{arms: {{reasoner: 1, tiny: 1}}}}
gateway: {{grpc_port: 0, http_port: 0, metrics_port: 0}}
health: {{interval_s: 0.5}}
"""
LATE = """
path: {tiny}
max_model_len_tokens: 1024
dtype: float32
pools: {{colocated: {{replicas: 1, engine: {{kv_blocks: 512}}}}}}
"""
DECODES = {"reasoner": "reasoner-decode-0", "tiny": "tiny-colocated-0"}
LENGTHS = (20, 200)
OUTPUT_TOKENS = 120


@pytest.fixture
def duo(tmp_path: Path, test_model: Path) -> Iterator[LiveCluster]:
    """A model that is handed over, and one that is not."""
    live = start_cluster(tmp_path, SPEC.format(reasoner=test_model, tiny=write_tiny_model(tmp_path / "tiny")))
    try:
        yield live
    finally:
        live.stop()


def asked(model: str, isl_tokens: int) -> pb.GenerateRequest:
    message = request(isl_tokens, max_tokens=OUTPUT_TOKENS)
    message.model = model
    return message


async def accepting(gateway: Gateway) -> None:
    async with asyncio.timeout(300):
        while not all(  # noqa: ASYNC110
            (worker := gateway.models_served[model].fleet.workers.get(worker_id)) and worker.view().accepting
            for model, worker_id in DECODES.items()
        ):
            await asyncio.sleep(0.1)


async def answered(gateway: Gateway) -> dict[tuple[str, int], Stream]:
    """Requests of all lengths to both models at once, to their end."""
    streams = {(model, isl): Stream(gateway, asked(model, isl)) for model in DECODES for isl in LENGTHS}
    await asyncio.gather(*(stream.task for stream in streams.values()))
    return streams


async def test_two_models_answer_exactly_through_kills_of_workers_of_each(duo: LiveCluster) -> None:
    async with duo.gateway("prefill", "decode", "colocated") as gateway:
        await accepting(gateway)
        alone = await answered(gateway)
        for (model, isl), stream in alone.items():
            assert stream.finished.model == model
            assert stream.summary.workers.decode == DECODES[model]
            assert bool(stream.summary.workers.prefill) == (model == "reasoner"), isl
            assert len(stream.ids) == OUTPUT_TOKENS
        assert all(alone["reasoner", isl].ids != alone["tiny", isl].ids for isl in LENGTHS)
        streams = {(model, isl): Stream(gateway, asked(model, isl)) for model in DECODES for isl in LENGTHS}
        for stream in streams.values():
            await stream.reached(20)
        for model, victim in DECODES.items():
            os.kill(gateway.models_served[model].fleet.workers[victim].member.pid, signal.SIGKILL)
        await asyncio.gather(*(stream.task for stream in streams.values()))
        for key, stream in streams.items():
            assert stream.ids == alone[key].ids, key
            assert stream.summary.retries == 1, key
        await accepting(gateway)
        routed = [Stream(gateway, asked("both", 20)) for _ in range(4)]
        await asyncio.gather(*(stream.task for stream in routed))
        for stream in routed:
            assert stream.ids == alone[stream.finished.model, 20].ids
        assert sorted(stream.finished.model for stream in routed) == ["reasoner"] * 2 + ["tiny"] * 2
        await come_and_go(duo, gateway, alone)
        status = gateway.status()
        assert {row.name: row.requests.failed for row in status.models} == {"reasoner": 0, "tiny": 0}


async def come_and_go(duo: LiveCluster, gateway: Gateway, alone: dict[tuple[str, int], Stream]) -> None:
    """A third model is added and removed while the two others answer."""
    entry = duo.folder / "entry.yaml"
    entry.write_text(LATE.format(tiny=write_tiny_model(duo.folder / "late", seed=1)))
    stop = asyncio.Event()

    async def load() -> int:
        rounds = 0
        while not stop.is_set():
            for key, stream in (await answered(gateway)).items():
                assert stream.ids == alone[key].ids, key
            rounds += 1
        return rounds

    loading = asyncio.create_task(load())
    added = await asyncio.to_thread(duo.baton, "model", "add", "late", str(entry), "--json", timeout_s=400)
    assert added.returncode == 0, added.stderr
    async with asyncio.timeout(60):
        while "late" not in gateway.models_served or not gateway.models_served["late"].fleet.workers:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    late = Stream(gateway, asked("late", 20))
    await late.reached(20)
    removing = asyncio.create_task(asyncio.to_thread(duo.baton, "model", "remove", "late", "--json", timeout_s=200))
    await late.task
    assert len(late.ids) == OUTPUT_TOKENS
    assert late.ids != alone["tiny", 20].ids
    removed = await removing
    assert removed.returncode == 0, removed.stderr
    listed = await asyncio.to_thread(duo.baton, "model", "list", "--json")
    assert [row["model"] for row in json.loads(listed.stdout)] == ["reasoner", "tiny"]
    stop.set()
    assert await loading > 0
