"""Autoscaling with real engines: traces five times as long at a constant request rate, and short again; role changes.

    python -m benchmarks.live_autoscaling                     # half an hour, with stretches of ten steady minutes
    python -m benchmarks.live_autoscaling --steady-s 20 --calm-s 20 --only scaling    # a few minutes
    python -m benchmarks.live_autoscaling --only roles

One prefill and one decode worker serve the small reasoning model in float32 on CPU. Every answer is greedy and is
compared token by token with one that the calm cluster gives afterwards. Figures go to docs/live_autoscaling.json, and
docs/autoscaling.md shows them. Memory and patience are minutes in place of quarters of an hour, so that growing and
shrinking fit a session; the settings are the spec's (`SPEC`).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from baton.v1 import cluster_pb2
from benchmarks.fault_cluster import FaultCluster, started
from benchmarks.fault_load import Answers, Question, Tally, count, draw_questions, follow
from benchmarks.live_autoscaling_load import LONGER, SAMPLE_S, OwnGateways, Pools, SteadyLoad, shortened
from cluster.spec.config import Role
from interface.client.client import AsyncClient
from orchestrator.controller.role_change import change_role
from orchestrator.policy.decision_log import Replayed, replay

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "live_autoscaling.json"
QUESTIONS = 32
SHORT_TOKENS = (30, 100)
PROMPT_TOKENS = (20, 200)
POLL_S = 0.005
SHORT_S = 60.0
"""Short traces before the long ones."""

# The batch bounds a decode worker, so that sizes do not hang on how fast the machine is.
SPEC = """
name: live-autoscaling
model: {{path: {model}, served_name: reasoner, max_model_len_tokens: 2048, dtype: float32, reasoning: {{}}}}
pools:
  prefill: {{replicas: 1, max_replicas: 2}}
  decode: {{replicas: 1, max_replicas: {max_decode}, engine: {{max_num_seqs: {seqs}}}}}
transfer: {{transports: [shared_memory, tcp], local_prefill_after_s: null}}
gateway: {{replicas: 2, grpc_port: 0, http_port: 0, metrics_port: 0, forecast_osl_tokens: 64}}
slo: {{itl_p95_s: 10, ttft_p95_s: 10}}
health: {{interval_s: 0.5, stall_timeout_s: 60}}
autoscaling:
  enabled: true
  interval_s: 1
  start_s: {start_s}
  patience_s: {patience_s}
  cancel_patience_s: {cancel_patience_s}
  cooldown_s: 10
  length_half_lives_s: {half_lives_s}
"""
ROLE_SPEC = """
name: live-roles
model: {{path: {model}, served_name: reasoner, max_model_len_tokens: 2048, dtype: float32, reasoning: {{}}}}
pools: {{prefill: {{replicas: 1}}, decode: {{replicas: 2}}}}
transfer: {{transports: [shared_memory, tcp], local_prefill_after_s: null}}
gateway: {{replicas: 2, grpc_port: 0, http_port: 0, metrics_port: 0}}
"""
ROLE_WORKER = "decode-1"


def _decisions(cluster: FaultCluster) -> list[Replayed]:
    log = cluster.folder / "clusters" / "live-autoscaling" / "decisions.jsonl"
    return list(replay(log.read_text().splitlines()))


async def scaling(
    cluster: FaultCluster, *, seed: int, seqs: int, in_flight: float, steady_s: float, calm_s: float, timeout_s: float
) -> dict[str, Any]:
    """Short traces, long ones, short ones; a stretch of ``steady_s`` after the growth, of ``calm_s`` in the end."""
    gateways = OwnGateways(cluster, "live-autoscaling")
    low, high = (LONGER * tokens for tokens in SHORT_TOKENS)
    drawn = draw_questions(random.Random(seed), QUESTIONS, isl=PROMPT_TOKENS, osl=(low, high))
    questions = [dataclasses.replace(each, max_tokens=each.max_tokens // LONGER * LONGER) for each in drawn]
    alone_s = await _alone_s(gateways, questions[:10], in_flight)
    pools = Pools(cluster)
    load = SteadyLoad(gateways, questions, in_flight / alone_s)
    watching = asyncio.create_task(pools.watch())
    print(f"{load.rate_per_s:.2f} requests/s; a short one alone takes {alone_s:.2f} s", flush=True)
    try:
        stages = await _stages(pools, load, steady_s=steady_s, calm_s=calm_s, timeout_s=timeout_s)
        offset_s = pools.now_s - _decisions(cluster)[-1].entry.demand.now_s  # their clock began with the autoscaler
    finally:
        watching.cancel()
        await load.stop()
    answers, tally = Answers(), Tally()
    await pools.until(lambda: pools.known(Role.DECODE) == 1, timeout_s)
    await answers.learn(gateways.client(), questions)
    for trace in load.traces:
        count(tally, trace, answers.of(trace.question))
    await gateways.close()
    return {
        **tally.row(),
        "requests_per_s": round(load.rate_per_s, 2),
        "mean_tokens": {
            "short": round(statistics.fmean(each.max_tokens // LONGER for each in questions), 1),
            "long": round(statistics.fmean(each.max_tokens for each in questions), 1),
        },
        "alone_s": round(alone_s, 3),
        "most_in_flight": load.most_in_flight,
        "max_num_seqs": seqs,
        **_pool_figures(pools, stages),
        **_decision_figures(_decisions(cluster), offset_s),
    }


async def _alone_s(gateways: OwnGateways, questions: Sequence[Question], in_flight: float) -> float:
    """Mean seconds of a short request on the calm cluster."""
    alone: list[float] = []
    for question in questions:
        began_s = time.monotonic()
        trace = await follow(gateways.client(), shortened(question))
        if trace.error is not None:
            raise RuntimeError(f"the calm cluster answered nothing: {trace.error}") from trace.error
        alone.append(time.monotonic() - began_s)
        # At the pace of the load to come: the forecast remembers the rate at which these came for a minute.
        await asyncio.sleep(alone[-1] * (1 / in_flight - 1))
    return statistics.fmean(alone[2:])  # the first ones warm up


@dataclasses.dataclass
class Stages:
    """When each stage began, and whether the pools did what was waited for."""

    phases: dict[str, float]
    grew: bool
    shrank: bool
    most: int
    """Decode workers that served when the pool had grown."""


async def _stages(pools: Pools, load: SteadyLoad, *, steady_s: float, calm_s: float, timeout_s: float) -> Stages:
    """Traces grow long until the pool has grown, stay so, and grow short until it has shrunk."""
    phases: dict[str, float] = {}
    await asyncio.sleep(max(SHORT_S, 20 / load.rate_per_s))
    load.long, phases["long_traces_s"] = True, pools.now_s
    grew = await pools.until(lambda: pools.ready(Role.DECODE) > 1, timeout_s)
    # A worker more may be on its way: the stretch begins when all that was ordered serves.
    await pools.until(lambda: pools.ready(Role.DECODE) == pools.known(Role.DECODE), timeout_s)
    await asyncio.sleep(2 * SAMPLE_S)  # until the change is noted: it belongs to no stretch
    phases["grown_s"] = pools.now_s
    most = pools.ready(Role.DECODE)
    await asyncio.sleep(steady_s)
    load.long, phases["short_traces_s"] = False, pools.now_s
    shrank = await pools.until(lambda: pools.known(Role.DECODE) == 1, timeout_s)
    await asyncio.sleep(2 * SAMPLE_S)
    phases["shrunk_s"] = pools.now_s
    await asyncio.sleep(calm_s)
    phases["end_s"] = pools.now_s
    return Stages(phases, grew, shrank, most)


def _pool_figures(pools: Pools, stages: Stages) -> dict[str, Any]:
    phases = stages.phases
    stretches = (
        ("long", phases["grown_s"], phases["short_traces_s"]),
        ("short", phases["shrunk_s"], phases["end_s"]),
    )
    return {
        "grew": stages.grew,
        "shrank": stages.shrank,
        "decode_workers_most": max(stages.most, *(row[2] for row in pools.changes)),
        "prefill_workers": sorted({row[1] for row in pools.changes}),
        "seconds_to_grow": round(phases["grown_s"] - phases["long_traces_s"], 1),
        "seconds_to_shrink": round(phases["shrunk_s"] - phases["short_traces_s"], 1),
        "steady": [
            {
                "traces": traces,
                "seconds": round(end_s - start_s),
                "most_changes_in_ten_minutes": {
                    "prefill": pools.most_changes(1, start_s, end_s),
                    "decode": pools.most_changes(2, start_s, end_s),
                },
            }
            for traces, start_s, end_s in stretches
        ],
        "phases": {name: round(value, 1) for name, value in phases.items()},
        "pool_sizes": [list(row) for row in pools.changes],
    }


def _decision_figures(made: Sequence[Replayed], offset_s: float) -> dict[str, Any]:
    return {
        "decisions": len(made),
        "decisions_made_again_alike": sum(each.agrees for each in made),
        "changes": [
            {"at_s": round(each.entry.demand.now_s + offset_s, 1), "reason": each.entry.reason}
            for each in made
            if each.entry.actions
        ],
    }


async def roles(cluster: FaultCluster, *, seed: int, changes: int, streams: int) -> dict[str, Any]:
    """A decode worker prefills and decodes again, under streams; timed to the view of every gateway."""
    gateways = OwnGateways(cluster, "live-roles")
    drawn = draw_questions(random.Random(seed), streams, isl=PROMPT_TOKENS, osl=(400, 800))
    answers, tally, over = Answers(), Tally(), asyncio.Event()
    await answers.learn(gateways.client(), drawn)

    async def stream(question: Question) -> None:
        while not over.is_set():
            count(tally, await follow(gateways.client(), question), answers.of(question))

    async def notified(client: AsyncClient, role: cluster_pb2.Role) -> None:
        while True:
            found = {row.worker_id: row.role for row in (await client.get_status()).workers}
            if found.get(ROLE_WORKER) == role:
                return
            await asyncio.sleep(POLL_S)

    running = [asyncio.create_task(stream(question)) for question in drawn]
    await asyncio.sleep(3)
    calls_s, notified_s, pids = [], [], set()
    for index in range(changes):
        role, wanted = (
            (Role.PREFILL, cluster_pb2.ROLE_PREFILL) if index % 2 == 0 else (Role.DECODE, cluster_pb2.ROLE_DECODE)
        )
        began_s = time.monotonic()
        answer = await change_role(cluster.registry, ROLE_WORKER, role)
        calls_s.append(time.monotonic() - began_s)
        await asyncio.gather(*(notified(client, wanted) for client in gateways.each))
        notified_s.append(time.monotonic() - began_s)
        pids.add(answer.pid)
        print(f"{ROLE_WORKER} is {role} after {calls_s[-1]:.3f} s, for all gateways {notified_s[-1]:.3f} s", flush=True)
        await asyncio.sleep(2)
    over.set()
    await asyncio.gather(*running)
    await gateways.close()
    return {
        **tally.row(),
        "changes": changes,
        "streams": streams,
        "gateways": len(gateways.each),
        "command_s": {"median": round(statistics.median(calls_s), 3), "max": round(max(calls_s), 3)},
        "all_gateways_s": {"median": round(statistics.median(notified_s), 3), "max": round(max(notified_s), 3)},
        "worker_processes": len(pids),
    }


def table(figures: dict[str, Any]) -> str:
    """For docs/autoscaling.md."""
    rows: list[tuple[str, object]] = []
    if (found := figures.get("scaling")) is not None:
        steps = " -> ".join(str(row[2]) for row in found["pool_sizes"])
        rows += [
            ("requests, at a constant rate", f"{found['requests']} at {found['requests_per_s']:g}/s"),
            (
                "tokens of an answer",
                f"{found['mean_tokens']['short']:g}, {found['mean_tokens']['long']:g}, then as before",
            ),
            ("decode workers that serve", steps),
            ("prefill workers", ", ".join(map(str, found["prefill_workers"]))),
            ("longer traces to the larger pool", f"{found['seconds_to_grow']:g} s"),
            ("shorter traces to the smaller pool", f"{found['seconds_to_shrink']:g} s"),
            ("failed", sum((found["failed_properly"] | found["failed_otherwise"]).values())),
            ("answers with a wrong, missing or repeated token", found["wrong_answers"]),
            ("moved with their KV, prefilled again", f"{found['moves']}, {found['retries']}"),
        ]
        rows += [
            (
                f"most changes within ten minutes, of {each['seconds']} s of steady {each['traces']} traces",
                ", ".join(f"{pool} {number}" for pool, number in each["most_changes_in_ten_minutes"].items()),
            )
            for each in found["steady"]
        ]
    if (found := figures.get("roles")) is not None:
        notified, command = found["all_gateways_s"], found["command_s"]
        rows += [
            (
                f"role change until all {found['gateways']} gateways know, {found['changes']} under "
                f"{found['streams']} streams",
                f"median {notified['median']:g} s, longest {notified['max']:g} s (command {command['median']:g} s)",
            ),
            (
                "failed, wrong answers",
                f"{sum((found['failed_properly'] | found['failed_otherwise']).values())}, {found['wrong_answers']}",
            ),
        ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _keep(name: str, figures: dict[str, Any], path: Path) -> dict[str, Any]:
    kept = json.loads(path.read_text()) if path.is_file() else {}
    machine = {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[1],
        "date": datetime.now(UTC).date().isoformat(),
    }
    kept[name] = {**figures, "machine": machine}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return kept


async def _main(arguments: argparse.Namespace) -> None:
    settings = {
        "seqs": arguments.seqs,
        "start_s": arguments.start_s,
        "max_decode": arguments.max_decode,
        "patience_s": arguments.patience_s,
        "cancel_patience_s": arguments.cancel_patience_s,
        "half_lives_s": arguments.half_lives_s,
    }
    kept: dict[str, Any] = {}
    if arguments.only in (None, "scaling"):
        async with started(SPEC.format(model=arguments.model, **settings), gateways=0) as cluster:
            figures = await scaling(
                cluster,
                seed=arguments.seed,
                seqs=arguments.seqs,
                in_flight=arguments.in_flight,
                steady_s=arguments.steady_s,
                calm_s=arguments.calm_s,
                timeout_s=arguments.timeout_s,
            )
            kept = _keep("scaling", {**figures, "settings": settings}, arguments.out)
    if arguments.only in (None, "roles"):
        async with started(ROLE_SPEC.format(model=arguments.model), gateways=0) as cluster:
            figures = await roles(cluster, seed=arguments.seed, changes=arguments.changes, streams=arguments.streams)
            kept = _keep("roles", figures, arguments.out)
    print(table(kept))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("scaling", "roles"))
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "reasoner")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steady-s", type=float, default=620.0, help="length of the stretch of steady long traces")
    parser.add_argument("--calm-s", type=float, default=620.0, help="length of the last stretch, of short traces")
    parser.add_argument("--timeout-s", type=float, default=400.0, help="most to wait for a pool to grow, or to shrink")
    parser.add_argument("--in-flight", type=float, default=0.4, help="short requests at a time, were each alone")
    parser.add_argument("--seqs", type=int, default=3, help="requests in a step of a decode worker")
    parser.add_argument("--start-s", type=float, default=20.0, help="what a worker takes from order to service")
    parser.add_argument("--max-decode", type=int, default=2, help="two cores carry no third engine")
    parser.add_argument("--patience-s", type=float, default=60.0)
    parser.add_argument("--cancel-patience-s", type=float, default=20.0)
    parser.add_argument("--half-lives-s", type=json.loads, default=[120.0, 40.0, 10.0])
    parser.add_argument("--changes", type=int, default=10)
    parser.add_argument("--streams", type=int, default=8)
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
