"""Real engines that begin to compute wrongly are found out, and nobody else is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from benchmarks.canary import SPEC, Canaries
from tests.support.live_cluster import LiveCluster, run_baton, start_cluster
from tests.support.streams import Stream, ready, request

pytestmark = [pytest.mark.engine, pytest.mark.ray]

OUT_OF_SERVICE_S = 60
"""After the next canary; they come every 2 s here. What it really takes is in docs/lab-notes.md."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("canary")
    (made / "faults").mkdir()
    return made


@pytest.fixture(scope="module")
def cluster(folder: Path, test_model: Path) -> Iterator[LiveCluster]:
    """Two prefill and two decode workers in float32, judged by a reference."""
    model = folder / "model"
    shutil.copytree(test_model, model)
    spec_text = SPEC.format(model=model, dtype="float32", interval_s=2, max_share=1)
    (folder / "spec.yaml").write_text(spec_text)
    checked = run_baton(folder, "model", "check", "-f", str(folder / "spec.yaml"), "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["path"] == str(model / "baton-reference.json")
    os.environ["BATON_TEST_FAULTS"] = str(folder / "faults")
    try:
        live = start_cluster(folder, spec_text)
    finally:
        del os.environ["BATON_TEST_FAULTS"]
    try:
        yield live
    finally:
        live.stop()


@pytest.fixture
async def canaries(cluster: LiveCluster, folder: Path) -> AsyncIterator[Canaries]:
    seen = Canaries(cluster.state.registry, folder / "faults")
    try:
        await seen.all_ready()
        yield seen
    finally:
        await seen.close()


async def test_sound_workers_answer_as_the_reference_does(cluster: LiveCluster, canaries: Canaries) -> None:
    result = await asyncio.to_thread(cluster.baton, "doctor", "-f", str(cluster.spec_path), "--json", "--max-mib", "1")
    rows = json.loads(result.stdout)["answers"]
    assert len(rows) == 4 + 4
    assert all(row["right"] and row["against"] == "the model's reference" for row in rows), rows
    assert canaries.last.canary.has_reference
    assert not canaries.last.canary.findings


async def test_each_fault_takes_its_worker_out_and_no_other(cluster: LiveCluster, canaries: Canaries) -> None:
    isls = (33, 64, 100, 200)
    async with cluster.gateway("prefill", "decode") as gateway:
        await ready(gateway, "prefill-0", "prefill-1", "decode-0", "decode-1")
        undisturbed = {isl: Stream(gateway, request(isl)) for isl in isls}
        await asyncio.gather(*(stream.task for stream in undisturbed.values()))
        for faults in (
            {"decode-1": "swapped_blocks", "prefill-1": "zeroed_v_head"},
            {"decode-0": "wrong_kernel", "prefill-0": "low_bit"},
        ):
            await canaries.all_ready()
            await ready(gateway, "prefill-0", "prefill-1", "decode-0", "decode-1")
            for victim, fault in faults.items():
                # Prompts that are prefilled and in place before the worker turns faulty.
                streams = {isl: Stream(gateway, request(isl)) for isl in isls}
                for stream in streams.values():
                    await stream.reached(20)
                elsewhere = {
                    len(run.life.prompt_ids) for run in gateway.model.runs.values() if run.life.decode_id != victim
                }
                row = await canaries.inject(victim, fault, timeout_s=OUT_OF_SERVICE_S)
                assert row["blamed"] == [victim], row
                assert victim in row["sentence"]
                await asyncio.gather(*(stream.task for stream in streams.values()))
                for isl, stream in streams.items():
                    assert len(stream.ids) == len(undisturbed[isl].ids)
                    if isl in elsewhere:
                        assert stream.ids == undisturbed[isl].ids, (victim, fault, isl)
    assert {each.worker_id for each in canaries.last.canary.findings} == {
        "decode-0", "decode-1", "prefill-0", "prefill-1",
    }  # fmt: skip
