"""Canaries on a real cluster: faults injected into one worker of four, and a soak on sound ones.

    python -m benchmarks.canary faults
    python -m benchmarks.canary soak --runs 1000 --dtype bfloat16
    python -m benchmarks.canary cost --minutes 12

Two prefill and two decode workers serve the small reasoning model, which is copied and given a reference first.
Figures are printed as JSON; docs/reliability.md and docs/lab-notes.md have them. The faults are those of
`cluster/engine/fault_injection.py`: real engines that compute wrongly from then on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from baton.internal.v1 import registry_pb2
from benchmarks.fault_cluster import FaultCluster, until
from benchmarks.fault_load import Answers, draw_questions, run_load
from orchestrator.registry import watch

ROOT = Path(__file__).resolve().parent.parent
INTERVAL_S = 5.0

SPEC = """
name: canaries
model: {{path: {model}, served_name: reasoner, max_model_len_tokens: 2048, dtype: {dtype}}}
pools:
  prefill: {{replicas: 2, engine: {{kv_blocks: 1024}}}}
  decode: {{replicas: 2, engine: {{kv_blocks: 1024}}}}
transfer: {{transports: [shared_memory, tcp], local_prefill_after_s: null, retry_budget: 4}}
gateway: {{grpc_port: 0, http_port: 0, metrics_port: 0}}
health: {{canary: {{interval_s: {interval_s}, max_share: {max_share}}}}}
"""


class Canaries:
    """What a cluster's registry reports of its workers and canaries, and a folder for faults.

    Args:
        registry: Its address.
        faults: ``BATON_TEST_FAULTS`` of the cluster's processes.
    """

    def __init__(self, registry: str, faults: Path) -> None:
        self.registry, self.faults = registry, faults
        self.last = registry_pb2.WatchMembersResponse()
        self._task = asyncio.create_task(watch(registry, self._take))

    def _take(self, message: registry_pb2.WatchMembersResponse) -> None:
        self.last = message

    async def close(self) -> None:
        """Stop watching."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def state(self, worker_id: str) -> str:
        """State of a worker; empty where it is not known."""
        return next((each.state for each in self.last.members if each.worker_id == worker_id), "")

    async def all_ready(self, workers: int = 4, timeout_s: float = 300) -> None:
        """Wait until so many workers serve."""
        await until(
            lambda: sum(each.state == "ready" for each in self.last.members) >= workers, timeout_s, "all workers serve"
        )

    @property
    def runs(self) -> int:
        """Answers of all workers."""
        return sum(row.runs for row in self.last.canary.workers)

    @property
    def failures(self) -> dict[str, dict[str, int]]:
        """Wrong answers by worker and probe."""
        return {row.worker_id: dict(row.failures) for row in self.last.canary.workers if row.failures}

    async def inject(self, victim: str, fault: str, *, timeout_s: float = 90) -> dict[str, Any]:
        """Make a worker faulty, and wait until it is out of service.

        Raises:
            TimeoutError: it was not found out.
        """
        known = len(self.last.canary.findings)
        began_s = time.monotonic()
        (self.faults / f"{victim}.{fault}").touch()
        await until((self.faults / f"{victim}.applied").exists, 30, "the fault is injected")
        injected_s = time.monotonic()
        await until(lambda: self.state(victim) != "ready", timeout_s, f"{victim} with {fault} is found out")
        out_s = time.monotonic()
        (self.faults / f"{victim}.applied").unlink()
        found = list(self.last.canary.findings)[known:]
        return {
            "fault": fault,
            "victim": victim,
            "out_after_s": round(out_s - injected_s, 1),
            "injected_in_s": round(injected_s - began_s, 1),
            "blamed": sorted({each.worker_id for each in found}),
            "sentence": found[0].sentence if found else "",
        }


@contextlib.asynccontextmanager
async def started(dtype: str, *, interval_s: float, max_share: float) -> AsyncIterator[tuple[FaultCluster, Canaries]]:
    """A cluster of its own with a reference, ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="baton-canary-") as name:
        folder = Path(name)
        model, faults = folder / "model", folder / "faults"
        shutil.copytree(ROOT / "models" / "reasoner", model)
        faults.mkdir()
        spec_path = folder / "spec.yaml"
        spec_path.write_text(SPEC.format(model=model, dtype=dtype, interval_s=interval_s, max_share=max_share))
        cluster = FaultCluster(folder, spec_path, "")
        checked = await cluster.baton("model", "check", "-f", str(spec_path))
        if checked.returncode:
            raise RuntimeError(f"no reference: {checked.stderr}")
        up = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "interface.cli.main", "up", "-f", str(spec_path), "--detach", "--json"],
            env=cluster.env | {"BATON_TEST_FAULTS": str(faults)},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if up.returncode:
            raise RuntimeError(f"the cluster did not start: {up.stdout}\n{up.stderr}")
        try:
            ready = json.loads(up.stdout.strip().splitlines()[-1])
            state = json.loads((folder / "clusters" / ready["cluster"] / "state.json").read_text())
            cluster.registry = state["registry"]
            canaries = Canaries(cluster.registry, faults)
            try:
                await canaries.all_ready()
                yield cluster, canaries
            finally:
                await canaries.close()
        finally:
            if os.environ.get("BATON_KEEP_LOGS"):
                shutil.copytree(folder / "clusters", os.environ["BATON_KEEP_LOGS"], dirs_exist_ok=True)
            await cluster.baton("down", "--json")


async def faults(dtype: str) -> list[dict[str, Any]]:
    """Each fault in one worker; two at a time, since a replacement takes long to start."""
    rows = []
    async with started(dtype, interval_s=INTERVAL_S, max_share=1) as (_, canaries):
        for pair in (
            (("decode-1", "swapped_blocks"), ("prefill-1", "zeroed_v_head")),
            (("decode-0", "wrong_kernel"), ("prefill-0", "high_bit")),
            (("decode-1", "low_bit"), ("prefill-1", "low_bit")),
        ):
            for victim, fault in pair:
                rows.append(await canaries.inject(victim, fault))
                print(json.dumps(rows[-1]), flush=True)
            await canaries.all_ready()
    return rows


async def soak(dtype: str, *, runs: int, interval_s: float, clients: int, max_minutes: float) -> dict[str, Any]:
    """So many canaries on sound workers that serve a load meanwhile."""
    async with started(dtype, interval_s=interval_s, max_share=1) as (cluster, canaries):
        await cluster.open()
        load = None
        try:
            rng = random.Random(1)
            questions, answers = draw_questions(rng, 16, isl=(8, 600), osl=(16, 200)), Answers()
            await answers.learn(cluster.client(), questions)
            if clients:
                load = asyncio.create_task(
                    run_load(cluster.client, questions, answers, requests=10**6, clients=clients, rng=random.Random(2))
                )
            began_s, before = time.monotonic(), canaries.runs
            while canaries.runs - before < runs and time.monotonic() - began_s < 60 * max_minutes:  # noqa: ASYNC110
                await asyncio.sleep(1)
            minutes = (time.monotonic() - began_s) / 60
        finally:
            if load is not None:
                load.cancel()
                await asyncio.gather(load, return_exceptions=True)
            await cluster.close()
        report = canaries.last.canary
        return {
            "dtype": dtype,
            "runs": canaries.runs - before,
            "minutes": round(minutes, 1),
            "failures": canaries.failures,
            "findings": [each.sentence for each in report.findings],
            "largest_right_nat": max(row.largest_right_nat for row in report.workers),
            "tolerance_nat": report.tolerance_nat,
            "clients": clients,
            # Of a run at its quickest, which is what is counted: the share of the time over the runs in it.
            "counted_s_per_run": {
                row.worker_id: round(row.cost_ratio * (time.monotonic() - began_s) / max(1, row.runs), 4)
                for row in report.workers
            },
        }


async def cost(dtype: str, *, minutes: float) -> dict[str, Any]:
    """The share of the workers' time at the default settings."""
    async with started(dtype, interval_s=300, max_share=0.001) as (_, canaries):
        await asyncio.sleep(60 * minutes)
        rows = canaries.last.canary.workers
        return {row.worker_id: {"runs": row.runs, "cost_ratio": row.cost_ratio} for row in rows}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("faults", "soak", "cost"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--interval-s", type=float, default=0.5)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=30)
    given = parser.parse_args()
    if given.what == "faults":
        result: Any = asyncio.run(faults(given.dtype))
    elif given.what == "soak":
        result = asyncio.run(
            soak(
                given.dtype,
                runs=given.runs,
                interval_s=given.interval_s,
                clients=given.clients,
                max_minutes=given.minutes,
            )
        )
    else:
        result = asyncio.run(cost(given.dtype, minutes=given.minutes))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
