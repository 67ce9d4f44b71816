from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from baton.internal.v1 import registry_pb2
from baton.v1 import cluster_pb2
from baton.v1 import inference_pb2 as pb
from cluster.spec.config import Role
from interface.cli.status_command import render
from interface.http.completions.reply import usage_object
from orchestrator.controller.scaling_loop import ENOUGH_FINISHED
from orchestrator.controller.scaling_setup import capacity_of, policy_settings
from orchestrator.controller.scaling_view import WorkerStatuses
from orchestrator.policy.decision_log import replay
from orchestrator.policy.length_forecast import LengthSettings
from tests.fakes.live_cluster import Cluster, ask, cluster_of, eventually, expected, run
from tests.fakes.runtime import ControlledCluster, controlled
from tests.fakes.tokenizer import THINK

PROMPT = [ord(char) for char in "Forty tokens, or so: the baton goes on."]
# Time goes some hundred times as fast here.
SETTINGS = """
gateway: {forecast_osl_tokens: 16}
slo: {itl_p95_s: 5}  # of a machine that other work shares: the batch is what bounds a worker here
autoscaling:
  {enabled: true, interval_s: 0.1, report_interval_s: 0.05, start_s: 0.5, patience_s: 1.0, cooldown_s: 0.3,
   surge_patience_s: 0.5, length_half_lives_s: [2.0, 0.7, 0.2]}
"""
RATE_PER_S = 4.0


class Load:
    """Requests at a constant rate, whose answers may change their length on the way."""

    def __init__(self, cluster: ControlledCluster, tokens: int) -> None:
        self.tokens = tokens
        self._cluster = cluster
        self._asked: list[asyncio.Task[None]] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self._asked.append(asyncio.create_task(self._one(len(self._asked), self.tokens)))
            await asyncio.sleep(1 / RATE_PER_S)

    async def _one(self, index: int, tokens: int) -> None:
        prompt = [65 + index % 26, 65 + index // 26 % 26, *PROMPT]
        reply = await run(cast(Cluster, self._cluster), ask(prompt, tokens))
        assert reply.token_ids[0] == expected(prompt, tokens)

    async def stop(self) -> int:
        """End; every request must have been answered exactly. How many there were."""
        self._task.cancel()
        await asyncio.gather(*self._asked)
        return len(self._asked)


async def test_decode_grows_with_the_traces_and_shrinks_with_them(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=1, more=SETTINGS, seqs=16, step_s=0.02, total_blocks=400) as cluster:
        load = Load(cluster, 32)
        await eventually(lambda: cluster.gateway.status().requests.finished > ENOUGH_FINISHED)
        load.tokens = 160
        await eventually(lambda: len(cluster.accepting("decode")) > 1)
        load.tokens = 32
        seen = [0]

        def shrinks() -> bool:
            """Below the most there were: where other work slows the machine, two may be right for short ones too."""
            seen.append(len(cluster.accepting("decode")))
            return seen[-1] < max(seen)

        await eventually(shrinks)
        assert cluster.accepting("prefill") == ["prefill-0"]
        assert await load.stop() > ENOUGH_FINISHED
        assert {worker.split("-")[0] for worker in cluster.runtime.started[2:]} == {"decode"}
        scaling = cluster.gateway.status().scaling
        assert [(row.role, row.max_replicas) for row in scaling.pools] == [(1, 4), (2, 4)]
        assert scaling.decisions
    lines = (tmp_path / "decisions.jsonl").read_text().splitlines()
    made = list(replay(lines))
    assert made
    assert all(each.agrees for each in made)
    changes = [each.entry for each in made if each.entry.actions]
    assert any("StartWorker" in action for entry in changes for action in entry.actions)
    assert any("DrainWorker" in action for entry in changes for action in entry.actions)


async def test_nothing_is_decided_from_the_prior_alone(tmp_path: Path) -> None:
    more = SETTINGS.replace("forecast_osl_tokens: 16", "forecast_osl_tokens: 100000")
    async with controlled(tmp_path, decode=1, more=more, seqs=4, step_s=0.002) as cluster:
        load = Load(cluster, 5)
        await eventually(lambda: cluster.gateway.status().requests.finished >= 4)
        await load.stop()
        await eventually(lambda: cluster.gateway.status().scaling.reason != "")
        assert cluster.gateway.status().scaling.reason.startswith("too few requests")
        assert cluster.runtime.started == ["prefill-0", "decode-0"]


async def test_bounds_and_capacity_come_from_the_spec_and_the_engines(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=2, seqs=4, more="autoscaling: {enabled: true, max_gpus: 5}\n") as cluster:
        spec = cluster.gateway.spec
        settings = policy_settings(spec)
        assert (settings.min_decode, settings.max_decode, settings.max_gpus) == (1, 4, 5)
        assert settings.change_roles
        assert spec.autoscaling.length_half_lives_s == LengthSettings().memory_s
        capacity = capacity_of(spec, cluster.model.pool.workers())
        assert capacity.total_kv_tokens == 64 * 32
        assert capacity.kv_tokens(100.0) < 500.0  # four requests in a step, though there is KV for twenty


async def test_a_drained_worker_that_ends_is_none_that_starts(tmp_path: Path) -> None:
    async with controlled(tmp_path, more="autoscaling: {enabled: true}\n") as cluster:
        statuses = WorkerStatuses(cluster.model.pool.workers, {}, began_s=0.0)
        worker = next(each for each in cluster.model.pool.workers() if each.plan.worker_id == "decode-1")
        worker.member.state = "lost"
        states = {row.view.worker_id: row.state for row in statuses.all()}
        assert states["decode-1"] == "starting"  # it died and is replaced
        worker.draining = True
        states = {row.view.worker_id: row.state for row in statuses.all()}
        assert states == {"prefill-0": "ready", "decode-0": "ready", "decode-1": "draining"}
        worker.draining, worker.member.state = False, "ready"


async def test_the_status_shows_a_worker_under_its_present_role(tmp_path: Path) -> None:
    async with controlled(tmp_path) as cluster:
        await cluster.model.roles.change_role("decode-1", Role.PREFILL)
        await eventually(lambda: cluster.accepting("prefill") == ["decode-1", "prefill-0"])
        roles = {row.worker_id: row.role for row in cluster.gateway.status().workers}
        assert roles == {"prefill-0": 1, "decode-0": 2, "decode-1": 1}
        assert render(cluster.gateway.status())


async def test_budgets_shrink_when_no_more_workers_may_be_had(tmp_path: Path) -> None:
    more = SETTINGS.replace("enabled: true", "enabled: true, max_gpus: 2, thinking_budgets: {enabled: true}")
    async with controlled(tmp_path, decode=1, more=more, seqs=2, step_s=0.02, total_blocks=400) as cluster:
        load = Load(cluster, 60)
        await eventually(lambda: cluster.gateway.model.journal.severity > 0.1)
        await load.stop()
        assert cluster.runtime.started == ["prefill-0", "decode-0"]


async def test_a_clipped_trace_is_reported_and_counted() -> None:
    more = "autoscaling: {thinking_budgets: {enabled: true, floor_tokens: 8}}\n"
    # Steps take time: 64 tokens at once would be over before anybody could end them at the budget.
    async with cluster_of("prefill-0", "decode-0", more=more, step_s=0.005) as cluster:
        scaling = cluster_pb2.Scaling(thinking_severity=1.0)
        cluster.gateway.model.journal.heard(registry_pb2.ReportRequestsResponse(scaling=scaling))
        asked = pb.Reasoning(budget_tokens=5000)
        reply = await run(cluster, ask([*PROMPT, THINK], 64, reasoning=asked))
        assert reply.finished is not None
        assert (reply.finished.usage.reduced_budget_tokens, reply.finished.usage.clipped_traces) == (8, 1)
        assert reply.summary.reasoning_closed
        details = usage_object([reply.finished.usage])["completion_tokens_details"]
        assert (details["reduced_thinking_budget_tokens"], details["clipped_traces"]) == (8, 1)
        assert cluster.gateway.model.metrics.clipped_traces._value.get() == 1
        spared = await run(cluster, ask([*PROMPT, THINK], 20, reasoning=asked, priority=100))
        assert spared.finished is not None
        assert not spared.finished.usage.HasField("reduced_budget_tokens")
        assert len(spared.token_ids[0]) == 20
