"""Scaling policies side by side in simulation: Qwen3-32B on H100, objectives TTFT 2 s and ITL p95 50 ms.

Workers are engines of four H100: on two, 2.3 % of the prompts of the trace take more than two seconds by themselves.
Runs are kept in a JSON file and not repeated; `plot` draws it. One run of the hour takes half a minute of one core::

    python -m benchmarks.autoscaling run --data ../shared/data --only shift
    python -m benchmarks.autoscaling table
    python -m benchmarks.autoscaling changes
    python -m benchmarks.autoscaling plot
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.autoscaling_loads import azure, day, hour, stationary, swapped, tenant_burst, tripled
from cluster.hardware.catalogue import gpu
from cluster.hardware.engine_constants import engine_constants
from cluster.model.known_models import known_model
from cluster.spec.config import Role
from decode_workers.cost import DecodeCost
from kv_transfer.blocks import kv_bytes_per_token
from orchestrator.policy.autoscaler import Autoscaler
from orchestrator.policy.baselines import KvThreshold, MeanLengths, RequestsPerReplica
from orchestrator.policy.demand import BAND_S, Demand, DemandForecaster, horizons_s
from orchestrator.policy.scaling_decision import DecisionSettings
from orchestrator.policy.scaling_policy import (
    ChangeRole,
    DrainWorker,
    FleetView,
    ScalingAction,
    ScalingPolicy,
    StartWorker,
)
from orchestrator.policy.worker_capacity import WorkerCapacity
from orchestrator.request.lifecycle import Handoff
from planner.simulator.cost import AffineTransfer
from planner.simulator.engine import EngineProfile
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.forecast import CappedForecast, RecentForecast
from planner.simulator.policies import help_share
from planner.simulator.result import Result
from planner.simulator.simulation import GatewaySpec, Simulation
from planner.simulator.workload import Workload
from prefill_workers.cost import PrefillCost

TTFT_S, ITL_S = 2.0, 0.05
TP = 4
MODEL = known_model("Qwen3-32B")
DECODE = DecodeCost(MODEL, gpu("H100-SXM"), engine_constants("vllm"), TP)
PREFILL = PrefillCost(MODEL, gpu("H100-SXM"), engine_constants("vllm"), TP)
KV_TOKENS = DECODE.kv_capacity_tokens()
KIND = EngineProfile(
    DECODE,
    PREFILL,
    KV_TOKENS // 16,
    16,
    DECODE,
    max_num_seqs=512,
    max_num_batched_tokens=8192,
    kv_bytes_per_token=kv_bytes_per_token(MODEL, 2.0),
    overhead_s=PREFILL.first_token_overhead_s(),
    gpus=TP,
    name="h100",
)
RESERVE_TOKENS = 400
PREEMPT_AFTER_S = 0.1
RESULTS = Path("docs/autoscaling.json")


CASES: dict[str, Callable[[Path], Workload]] = {
    "shift": hour,
    "swapped": swapped,
    "tenant burst": tenant_burst,
    "tripled": tripled,
    "azure conv x10": azure("conv", 10.0),
    "azure code x10": azure("code", 10.0),
    "azure code x10, plain": azure("code", 10.0),
    "day": day(1.0),
    "day/5": day(0.2),
    "stationary": stationary(1.0),
    "stationary x1.1": stationary(1.1),
    "stationary x1.2": stationary(1.2),
}
FIRST: dict[str, tuple[int, int]] = {
    "swapped": (3, 7),
    "day": (3, 4),
    "azure conv x10": (6, 2),
    "azure code x10": (12, 4),
    "azure code x10, plain": (11, 2),
}
"""Workers at the start, equal for all that scale; by default two and three.

The Azure cases start as the static fleet that they would replace: a start with far too few says nothing of scaling.
"""
PLAIN = {"azure code x10, plain"}
"""Cases in which prefill's token is dropped. Of the code's answers 71 % have 20 tokens or fewer, so that one slow gap
is over 5 %, and the KV of a long prompt takes up to 40 ms between its first token and the second."""


def capacity() -> WorkerCapacity:
    return WorkerCapacity(KV_TOKENS, DECODE.step_s, PREFILL.prefill_s, ITL_S, max_num_seqs=KIND.max_num_seqs)


class BandLog:
    """Keeps each forecast of KV `BAND_S` ahead with its band, to hold it against what came."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, float, float, float]] = []

    def __call__(self, _s: object, _m: object, demand: Demand, _w: object, _d: object) -> None:
        """One decision's inputs."""
        self.rows.append(
            (demand.now_s, demand.kv_tokens, demand.band_low_tokens, demand.band_mean_tokens, demand.band_high_tokens)
        )

    def figures(self, until_s: float) -> dict[str, float]:
        """Share of outcomes in the band and median error, of forecasts for times at which requests still came."""
        now_s, kv, low, mean, high = np.array(self.rows).T
        made = now_s + BAND_S <= until_s
        outcome = np.interp(now_s[made] + BAND_S, now_s, kv)
        inside = (low[made] <= outcome) & (outcome <= high[made])
        error = np.abs(outcome / np.maximum(1.0, mean[made]) - 1.0)
        return {"band_coverage": round(float(inside.mean()), 4), "band_median_error": round(float(np.median(error)), 4)}


class Counted:
    """A policy, and when it changed each pool; several workers at once are one change, another role one in both."""

    def __init__(self, policy: ScalingPolicy) -> None:
        self.interval_s = policy.interval_s
        self.policy = policy
        self.changes_s: dict[str, list[float]] = {"prefill": [], "decode": []}

    def decide(self, now_s: float, fleet: FleetView) -> Sequence[ScalingAction]:
        """The policy's decision."""
        roles = {each.view.worker_id: each.view.role for each in fleet.workers()}
        actions = self.policy.decide(now_s, fleet)
        pools: set[str] = set()
        for action in actions:
            if isinstance(action, ChangeRole):
                pools |= set(self.changes_s)
            elif isinstance(action, StartWorker):
                pools.add(action.role.value)
            elif isinstance(action, DrainWorker):
                pools.add(roles[action.worker_id].value)
        for pool in pools:
            self.changes_s[pool].append(round(now_s, 1))
        return actions

    def until(self, end_s: float) -> dict[str, list[float]]:
        """The changes while requests came."""
        return {pool: [time_s for time_s in times if time_s <= end_s] for pool, times in self.changes_s.items()}


class Foresight:
    """Sizes that were chosen knowing the whole trace, each in place when its time comes: what nobody can have live.

    Args:
        text: Times in seconds with prefill and decode workers, as ``0:1+4,1800:2+8``.
        start_s: What a worker takes to start.
    """

    interval_s = 5.0

    def __init__(self, text: str, start_s: float) -> None:
        times = (step.split(":") for step in text.split(","))
        self.sizes = [(float(time_s), *(int(part) for part in size.split("+"))) for time_s, size in times]
        self.start_s = start_s

    def decide(self, now_s: float, fleet: FleetView) -> Sequence[ScalingAction]:
        """Order what will be needed once a worker ordered now serves; drain what will not be needed till then."""
        actions: list[ScalingAction] = []
        ends = [size[0] for size in self.sizes[1:]] + [float("inf")]
        soon = [
            size
            for size, end_s in zip(self.sizes, ends, strict=True)
            if size[0] <= now_s + self.start_s + self.interval_s and end_s > now_s
        ]
        for column, role in ((1, Role.PREFILL), (2, Role.DECODE)):
            want = max(int(size[column]) for size in soon)
            have = [each for each in fleet.workers() if each.view.role is role and each.state != "draining"]
            have.sort(key=lambda each: each.view.total_blocks - each.view.free_blocks)
            actions += [StartWorker(role)] * (want - len(have))
            actions += [DrainWorker(each.view.worker_id) for each in have[: max(0, len(have) - want)]]
        return actions


def most_within(times_s: list[float], span_s: float) -> int:
    """Most of these times, which rise, that lie within a span.

    Example:
        >>> most_within([0.0, 500.0, 1000.0, 1050.0, 1099.0], 600.0)
        4
    """
    return max((sum(time_s <= each < time_s + span_s for each in times_s) for time_s in times_s), default=0)


def policies(start_s: float) -> dict[str, Callable[[], ScalingPolicy]]:
    """The policies by name; of each baseline, settings from bold to careful."""

    def baton() -> ScalingPolicy:
        forecaster = DemandForecaster(capacity(), ttft_s=TTFT_S, horizons_s=horizons_s(start_s))
        return Autoscaler(forecaster, DecisionSettings(help_share=help_share(start_s)), log=BandLog())

    found: dict[str, Callable[[], ScalingPolicy]] = {"baton": baton}
    for target in (70, 90, 110, 130, 150, 180):
        # A prefill worker serves some four prompts at a time within the objective.
        found[f"requests {target}"] = partial(RequestsPerReplica, {Role.PREFILL: 4.0, Role.DECODE: float(target)})
    for headroom in (1.0, 1.15, 1.3, 1.5, 1.7):
        found[f"means {headroom}"] = partial(MeanLengths, capacity(), headroom=headroom)
    for share in (0.5, 0.6, 0.75, 0.85):
        found[f"kv {share}"] = partial(KvThreshold, kv_share=share)
        # Also without what waits for decode's KV. A prefill worker reads 8,192 tokens in 0.4 s, 32,768 in 1.9 s.
        for tokens in (8192, 32768):
            name = f"kv {share}, own queue {tokens}"
            found[name] = partial(KvThreshold, kv_share=share, queued_tokens=tokens, gateway_queue=False)
    return found


def simulate(
    workload: Workload,
    prefill: int,
    decode: int,
    start_s: float,
    policy: ScalingPolicy | None,
    handoff: Handoff = Handoff.FIRST_TOKEN,
) -> Result:
    fleet = FleetSpec(
        [PoolSpec(Role.PREFILL, KIND, prefill, start_s), PoolSpec(Role.DECODE, KIND, decode, start_s)],
        AffineTransfer(49.5e9, 0.00038),
        local_prefill_after_s=1.0,
    )
    gateway = GatewaySpec(
        max_queued_requests=100_000, handoff=handoff, slow_gap_s=ITL_S, preempt_after_s=PREEMPT_AFTER_S
    )
    forecast = CappedForecast(RecentForecast(0.9, start_tokens=RESERVE_TOKENS), RESERVE_TOKENS)
    return Simulation(fleet, workload, gateway, forecast=forecast, scaling=policy).run()


def figures(result: Result, until_s: float) -> dict[str, Any]:
    """What is published of a run; GPU-hours are counted while requests come, not while the last ones end."""
    line, records = result.timeline, result.records
    during = line["time_s"] <= until_s
    hours = {
        role: float(np.trapezoid(line[f"{role}_gpus"][during], line["time_s"][during]) / 3600)
        for role in ("prefill", "decode")
    }
    late = records["first_token_s"] - records["arrival_s"] > TTFT_S
    slow = records["slow_gaps"] > 0.05 * np.maximum(1, records["output_tokens"] - 1)
    summary = result.summary(ttft_s=TTFT_S)
    every = max(1, len(line["time_s"]) // 240)
    return {
        "good": round(summary["good"], 5),
        "late": round(float(late.mean()), 5),
        "slow": round(float(slow.mean()), 5),
        "unfinished": int(summary["requests"] - summary["finished"]),
        "gpu_hours": round(sum(hours.values()), 3),
        "prefill_gpu_hours": round(hours["prefill"], 3),
        "decode_gpu_hours": round(hours["decode"], 3),
        "ttft_p95_s": round(summary["ttft_p95_s"], 3),
        "itl_p95_s": round(summary["itl_p95_s"], 4),
        "e2e_mean_s": round(summary["e2e_mean_s"], 2),
        "e2e_p95_s": round(summary["e2e_p95_s"], 2),
        "preemptions": int(summary["preemptions"]),
        "timeline": {
            name: [round(float(value), 3) for value in line[name][::every]]
            for name in ("time_s", "prefill_workers", "decode_workers", "decode_used_blocks", "queued")
        },
    }


def one(case: str, workload: Workload, name: str, start_s: float) -> dict[str, Any]:
    """One run. ``static 3 8`` is three prefill and eight decode workers; of ``foresight SIZES`` see `Foresight`."""
    began_s, policy, counted = time.process_time(), None, None
    extra: dict[str, Any] = {}
    if name.startswith("static"):
        prefill, decode = (int(word) for word in name.split()[1:])
    elif name.startswith("foresight"):
        known = Foresight(name.split()[1], start_s)
        prefill, decode = (int(size) for size in known.sizes[0][1:])
        counted = Counted(known)
    else:
        prefill, decode = FIRST.get(case, (2, 3))
        policy = policies(start_s)[name]()
        counted = Counted(policy)
    handoff = Handoff.PLAIN if case in PLAIN else Handoff.FIRST_TOKEN
    found = figures(simulate(workload, prefill, decode, start_s, counted, handoff), workload.duration_s)
    if counted is not None:
        extra["changes_s"] = counted.until(workload.duration_s)
    if isinstance(policy, Autoscaler) and isinstance(policy.log, BandLog):
        extra |= policy.log.figures(workload.duration_s)
    return {"case": case, "policy": name, "start_s": start_s, **extra, **found, "cpu_s": time.process_time() - began_s}


def run(arguments: argparse.Namespace) -> None:
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for case in arguments.only or CASES:
        workload = None
        for start_s in arguments.starts:
            for name in arguments.policies or policies(start_s):
                key = (case, name, start_s)
                if not arguments.again and any((e["case"], e["policy"], e["start_s"]) == key for e in kept):
                    continue
                workload = CASES[case](arguments.data) if workload is None else workload
                found = one(case, workload, name, start_s)
                # Another process may have written meanwhile.
                kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
                kept = [e for e in kept if (e["case"], e["policy"], e["start_s"]) != key] + [found]
                RESULTS.write_text(json.dumps(kept, separators=(",", ":")).replace('{"case"', '\n{"case"') + "\n")
                print({k: v for k, v in found.items() if k not in ("timeline", "changes_s")}, flush=True)


def table(_: argparse.Namespace) -> None:
    print("| workload | start | policy | good | GPU-hours (prefill + decode) | TTFT p95 | E2E mean | preempted |")
    print("|---|---|---|---|---|---|---|---|")
    rows = json.loads(RESULTS.read_text())
    order = list(CASES)
    for e in sorted(rows, key=lambda e: (order.index(e["case"]), e["start_s"], e["policy"])):
        print(
            f"| {e['case']} | {e['start_s']:.0f} s | {e['policy']} | {e['good']:.2%} | {e['gpu_hours']:.1f} "
            f"({e['prefill_gpu_hours']:.1f} + {e['decode_gpu_hours']:.1f}) | {e['ttft_p95_s']:.2f} s "
            f"| {e['e2e_mean_s']:.1f} s | {e['preemptions']} |"
        )


def changes(_: argparse.Namespace) -> None:
    """How often each pool was changed: a steady load should see one change in ten minutes at most."""
    print("| workload | start | policy | pool | changes | after half an hour | most in ten minutes, after that |")
    print("|---|---|---|---|---|---|---|")
    for e in json.loads(RESULTS.read_text()):
        for pool, times_s in e.get("changes_s", {}).items():
            later = [time_s for time_s in times_s if time_s >= 1800.0]
            print(
                f"| {e['case']} | {e['start_s']:.0f} s | {e['policy']} | {pool} | {len(times_s)} | {len(later)} "
                f"| {most_within(later, 600.0)} |"
            )


def plot(arguments: argparse.Namespace) -> None:
    from benchmarks.autoscaling_plot import draw

    rows = json.loads(RESULTS.read_text())
    draw(rows, [case for case in CASES if any(e["case"] == case for e in rows)], KIND.total_blocks, arguments.png)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--data", type=Path, default=Path("../shared/data"))
    runs.add_argument("--only", nargs="*", choices=list(CASES))
    runs.add_argument("--policies", nargs="*")
    runs.add_argument("--starts", nargs="*", type=float, default=[60.0, 180.0])
    runs.add_argument("--again", action="store_true")
    runs.set_defaults(call=run)
    commands.add_parser("table").set_defaults(call=table)
    commands.add_parser("changes").set_defaults(call=changes)
    plots = commands.add_parser("plot")
    plots.add_argument("--png", type=Path, default=Path("docs/autoscaling.png"))
    plots.set_defaults(call=plot)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
