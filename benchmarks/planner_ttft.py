"""TTFT under load: a closed loop in the simulator against measured rows, beside AIConfigurator's own error.

    python benchmarks/planner_ttft.py ../shared/data/silicon_h100_h200_calibration.csv --aiconfigurator rows.csv

The rows do not say how their load generator started. Assumed, as chosen on the calibration rows (``--tuning``):
all clients start at once and each sends ``--rounds`` requests; prompts and outputs are uniform between a share and
all of the nominal length: ``--inferencemax-low`` in the InferenceMAX sheets, which say so, ``--low`` in those of the
gap analysis but for the sheets of SGLang 0.5.1 and 0.5.8, whose requests stay in step (``--fixed-low``). SGLang reads
prompts in steps of their own. ``--every`` takes each n-th row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.planner_accuracy import read_aiconfigurator
from benchmarks.silicon import DENSE, Measured, full_table, held_out, parse_all, read
from cluster.errors import PlacementInfeasible
from cluster.hardware.engine_constants import engine_constants
from cluster.spec.config import Role
from kv_transfer.blocks import kv_bytes_per_token
from kv_transfer.cost import TransferCost
from planner.simulator.engine import EngineProfile
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.forecast import FixedForecast
from planner.simulator.simulation import ClosedLoop, GatewaySpec, Simulation
from planner.simulator.workload import Workload
from prefill_workers.cost import PrefillCost


def simulate(row: Measured, rounds: int, low: float, stagger: float) -> tuple[float, float, float, float]:
    """Mean, p50 and p95 of TTFT, and mean TPOT, seconds."""
    constants = engine_constants(row.engine)
    cost = row.cost(constants)
    prefill = PrefillCost(
        row.model,
        row.gpu,
        constants,
        row.tp,
        kv_dtype_bytes=row.kv_dtype_bytes,
        expert_parallel=row.expert_parallel,
    )
    try:
        blocks = cost.kv_capacity_tokens(row.isl_tokens + 0.5 * row.osl_tokens) // 32
    except PlacementInfeasible:
        blocks = 0
    longest = row.isl_tokens + row.osl_tokens
    profile = EngineProfile(
        decode=cost,
        prefill=prefill,
        mixed=cost,
        # A measured deployment did hold its requests, whatever the memory model says of it.
        total_blocks=max(blocks, 2 * (longest // 32 + 2)),
        block_size_tokens=32,
        max_num_seqs=1024,
        kv_bytes_per_token=kv_bytes_per_token(row.model, row.kv_dtype_bytes),
        overhead_s=constants.first_token_s,
        gpus=row.tp,
        prefill_first=constants.prefill_first,
    )
    size, rng = row.clients * rounds, np.random.default_rng(0)

    def lengths(tokens: int) -> np.ndarray:
        return np.maximum(1, rng.uniform(low * tokens, tokens, size)).astype(np.int64)

    workload = Workload(
        arrival_s=np.zeros(size),
        isl_tokens=lengths(row.isl_tokens),
        reasoning_tokens=np.zeros(size, np.int64),
        answer_tokens=lengths(row.osl_tokens),
    )
    result = Simulation(
        fleet_spec=FleetSpec([PoolSpec(Role.COLOCATED, profile, 1)], TransferCost(1e12)),
        workload=workload,
        gateway=GatewaySpec(max_queued_requests=1_000_000),
        closed_loop=ClosedLoop(row.clients, stagger_s=stagger * row.tpot_s * row.osl_tokens),
        forecast=FixedForecast(row.osl_tokens),
        sample_s=3600.0,
    ).run()
    ttft, tpot = result.records.ttft_s(), result.records.tpot_s()
    return (
        float(ttft.mean()),
        float(np.quantile(ttft, 0.5)),
        float(np.quantile(ttft, 0.95)),
        float(tpot.mean()) if tpot.size else 0.0,
    )


IN_STEP = ("0.5.1.post1", "0.5.8.post1")


def _sheet(row: Measured) -> str:
    if not row.lockstep:
        return "InferenceMAX"
    return "in step" if row.row["backend"] == "sglang" and row.row["backend_version"] in IN_STEP else "gap analysis"


def _line(name: str, errors: Sequence[float]) -> str:
    values = np.array(errors)
    if not values.size:
        return f"{name:<34}    -"
    within = float((values <= 0.25).mean())
    return f"{name:<34}{values.size:5d} {values.mean():8.1%} {float(np.median(values)):8.1%} {within:8.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--aiconfigurator", type=Path)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--stagger", type=float, default=0.0, help="clients start over this share of a request")
    parser.add_argument("--low", type=float, default=0.9)
    parser.add_argument("--fixed-low", type=float, default=1.0)
    parser.add_argument("--inferencemax-low", type=float, default=0.8)
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--most-clients", type=int, default=256)
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    tuning = read(options.calibration)
    if options.tuning:
        rows = parse_all(tuning)
    else:
        table = options.table or full_table()
        if table is None:
            sys.exit("no table: install aiconfigurator-core or give --table")
        rows = parse_all(held_out(read(table), tuning))
    rows = [row for row in rows if 4 < row.clients <= options.most_clients][:: options.every]
    theirs = read_aiconfigurator(options.aiconfigurator) if options.aiconfigurator else {}
    errors: dict[str, list[float]] = {}
    inside = 0
    lows = {"in step": options.fixed_low, "gap analysis": options.low, "InferenceMAX": options.inferencemax_low}
    with ProcessPoolExecutor(options.jobs) as pool:
        rounds, stagger = repeat(options.rounds), repeat(options.stagger)
        found = list(pool.map(simulate, rows, rounds, [lows[_sheet(row)] for row in rows], stagger))
    for row, (mean_s, p50_s, p95_s, tpot_s) in zip(rows, found, strict=True):
        sheet = _sheet(row)
        if options.rows:
            where = f"{row.row['backend']} {row.row['backend_version']} {row.model_name} {row.gpu.name} tp{row.tp}"
            shape = f"{row.isl_tokens}/{row.osl_tokens} x{row.clients}"
            print(f"{where} {shape}: {row.ttft_s:.3f} s, simulated {mean_s / row.ttft_s:.2f} of it", flush=True)
        inside += p50_s * 0.75 <= row.ttft_s <= p95_s * 1.25
        kind = "dense" if row.model_name in DENSE else "moe"
        answered = not theirs or row.row.get("id") in theirs
        for group in ("all", kind, f"{kind}, {sheet}"):
            errors.setdefault(f"baton TTFT {group}", []).append(abs(mean_s / row.ttft_s - 1))
            errors.setdefault(f"baton TPOT {group}", []).append(abs(tpot_s / row.tpot_s - 1))
            if theirs and answered:
                errors.setdefault(f"baton TTFT {group}, shared", []).append(abs(mean_s / row.ttft_s - 1))
                their_s = theirs[row.row["id"]][1]
                errors.setdefault(f"aiconfigurator TTFT {group}", []).append(abs(their_s / row.ttft_s - 1))
    print(f"{len(rows)} rows with 5 to {options.most_clients} clients; measured mean within the p50-p95 band")
    print(f"widened by a quarter: {inside / max(1, len(rows)):.0%}\n")
    print(f"{'':<34} rows     mean   median  in 25 %")
    for name in sorted(errors):
        print(_line(name, errors[name]))


if __name__ == "__main__":
    main()
