"""How fast the simulator is, on one core: the one-hour reasoning trace, and a million short requests.

Prints CPU and wall seconds, peak memory, and what was simulated. Run one process at a time::

    python benchmarks/simulator_speed.py hour --data ../shared/data
    python benchmarks/simulator_speed.py million
    python benchmarks/simulator_speed.py mm1
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from cluster.spec.config import Role
from planner.simulator.cost import AffineCost, AffineTransfer
from planner.simulator.engine import EngineProfile
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.forecast import FixedForecast
from planner.simulator.simulation import GatewaySpec, Simulation
from planner.simulator.theory import mm1_wait_s
from planner.simulator.traces import READERS
from planner.simulator.workload import Workload

# Qwen3-32B on two H100, rounded from the analytic model.
STEP = AffineCost(0.0150, 2.0e-5, 4.9e-8, 0.0150, 5.5e-5, 6.0e-10)


def fleet(prefill: int, decode: int) -> FleetSpec:
    kind = EngineProfile(STEP, STEP, 270_000 // 16, 16, STEP, kv_bytes_per_token=262_144, gpus=2)
    pools = [PoolSpec(Role.PREFILL, kind, prefill), PoolSpec(Role.DECODE, kind, decode)]
    return FleetSpec(pools, AffineTransfer(49.5e9, 0.00038))


def hour(data: Path) -> Simulation:
    workload = READERS["sample"](data / "servegen_r1_shift_1h.csv")
    return Simulation(fleet(6, 24), workload, GatewaySpec(max_queued_requests=10_000), forecast=FixedForecast(2000))


def million() -> Simulation:
    rng, size = np.random.default_rng(0), 1_000_000
    short = Workload(
        np.cumsum(rng.exponential(1 / 100, size)),
        rng.integers(20, 400, size),
        np.zeros(size, np.int64),
        rng.integers(1, 120, size),
    )
    return Simulation(fleet(2, 4), short, GatewaySpec(max_queued_requests=10_000))


def mm1() -> Simulation:
    rng, size = np.random.default_rng(0), 1_000_000
    cost = AffineCost(decode_base_s=0.001)
    kind = EngineProfile(cost, cost, 1 << 40, max_num_seqs=1, mixed=cost)
    ones = np.ones(size, np.int64)
    queue = Workload(np.cumsum(rng.exponential(0.1 / 0.5, size)), ones, ones * 0, rng.geometric(0.01, size) + 1)
    pools = [PoolSpec(Role.COLOCATED, kind, 1)]
    return Simulation(
        FleetSpec(pools, AffineTransfer(1e9)), queue, GatewaySpec(max_queued_requests=1 << 40), sample_s=60
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["hour", "million", "mm1"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    simulation = {"hour": lambda: hour(arguments.data), "million": million, "mm1": mm1}[arguments.case]()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = simulation.run()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    summary = result.summary()
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{summary['requests']:,} requests, {result.tokens_out:,} output tokens, {result.events:,} events")
    print(f"cpu {cpu_s:.1f} s, wall {wall_s:.1f} s, peak {peak_gib:.2f} GiB")
    print({key: round(summary[key], 4) for key in ("finished", "good", "ttft_p95_s", "itl_p95_s", "preemptions")})
    if arguments.case == "mm1":
        waits_s = result.records.e2e_s() - (result.records["output_tokens"] - 1) * 0.001
        print(f"mean wait {waits_s.mean():.5f} s; theory {mm1_wait_s(5.0, 0.1):.5f} s")


if __name__ == "__main__":
    main()
