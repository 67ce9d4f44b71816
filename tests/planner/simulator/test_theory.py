"""The simulator against queueing theory: M/M/1, M/D/1, Little's law, and Lindley's recursion request by request."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.spec.config import Role
from planner.simulator.cost import AffineCost, AffineTransfer
from planner.simulator.engine import EngineProfile
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.simulation import GatewaySpec, Simulation
from planner.simulator.theory import lindley_waits_s, mg1_wait_s, mm1_wait_s
from planner.simulator.workload import Workload

STEP_S = 0.001


def single_server(arrival_s: np.ndarray, steps: np.ndarray, sample_s: float = 1e9) -> Simulation:
    """One worker with one slot and free prefill: a queue with service times of whole steps."""
    cost = AffineCost(decode_base_s=STEP_S)
    profile = EngineProfile(cost, cost, total_blocks=1 << 40, max_num_seqs=1, mixed=cost)
    ones = np.ones(len(steps), np.int64)
    # The first token comes of the (free) prefill, each further one of a step.
    workload = Workload(arrival_s, ones, np.zeros_like(ones), steps + 1)
    fleet = FleetSpec([PoolSpec(Role.COLOCATED, profile, 1)], AffineTransfer(1e9))
    return Simulation(fleet, workload, GatewaySpec(max_queued_requests=1 << 40), sample_s=sample_s)


def draw(size: int, load: float, seed: int, *, fixed: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    steps = np.full(size, 100, np.int64) if fixed else rng.geometric(1 / 100, size)
    return np.cumsum(rng.exponential(100 * STEP_S / load, size)), steps


@pytest.mark.parametrize("fixed", [True, False], ids=["M/D/1", "M/M/1"])
def test_every_wait_is_lindleys(fixed: bool) -> None:
    arrival_s, steps = draw(3000, 0.7, seed=1, fixed=fixed)
    records = single_server(arrival_s, steps).run().records
    waits_s = records.e2e_s() - steps * STEP_S
    assert np.allclose(waits_s, lindley_waits_s(arrival_s, steps * STEP_S), atol=1e-6)
    # The gateway lets requests through at once; all waiting is in the engine.
    assert records.queue_s().max() == 0.0


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_waits_meet_theory_within_one_percent(load: float) -> None:
    # The engine's waits are Lindley's (above), and Lindley's over four million requests are the theory's.
    arrival_s, steps = draw(4_000_000, load, seed=2, fixed=False)
    waits_s = lindley_waits_s(arrival_s, steps * STEP_S)
    assert waits_s.mean() == pytest.approx(mm1_wait_s(load / 0.1, 0.1), rel=0.01)
    arrival_s, steps = draw(4_000_000, load, seed=3, fixed=True)
    waits_s = lindley_waits_s(arrival_s, steps * STEP_S)
    assert waits_s.mean() == pytest.approx(mg1_wait_s(load / 0.1, 0.1, 0.0), rel=0.01)


def test_littles_law() -> None:
    arrival_s, steps = draw(6000, 0.6, seed=4, fixed=False)
    simulation = single_server(arrival_s, steps, sample_s=0.037)
    result = simulation.run()
    rate_per_s = len(steps) / result.end_s
    in_system = result.timeline["in_flight"].mean()
    assert in_system == pytest.approx(rate_per_s * result.records.e2e_s().mean(), rel=0.01)
