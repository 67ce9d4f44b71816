"""Blocks, reservations and tokens are conserved at every event, whatever goes wrong."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.spec.config import Role
from orchestrator.policy.scaling_policy import ChangeRole, DrainWorker, MigrateRequest, StartWorker
from orchestrator.request import lifecycle as lc
from planner.simulator.cost import AffineCost, AffineTransfer
from planner.simulator.engine import Engine, EngineProfile
from planner.simulator.failures import FailurePlan
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.forecast import FixedForecast, LiveForecast, RecentForecast
from planner.simulator.gateway import Rules
from planner.simulator.kernel import Kernel
from planner.simulator.leg import Leg
from planner.simulator.records import Outcome
from planner.simulator.simulation import ClosedLoop, GatewaySpec, Simulation
from planner.simulator.workload import Workload

COST = AffineCost(0.01, 1e-4, 1e-6, 0.005, 1e-4, 1e-8)


class Chaos:
    """A scaling policy that does something random and legal at every tick."""

    interval_s = 0.7

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def decide(self, now_s: float, fleet: Any) -> list[Any]:
        workers = fleet.workers()
        flights = list(fleet.in_flight())
        fleet.finished()
        worker = workers[self._rng.integers(len(workers))].view
        choice = self._rng.integers(6)
        if choice == 0:
            return [StartWorker(worker.role, delay_s=0.5)]
        ready = [each for each in workers if each.state == "ready" and each.view.role is worker.role]
        if choice == 1 and len(ready) > 1:
            return [DrainWorker(ready[0].view.worker_id, migrate=bool(self._rng.integers(2)))]
        if choice == 2 and len(ready) > 1:
            role = Role.DECODE if worker.role is Role.PREFILL else Role.PREFILL
            return [ChangeRole(ready[0].view.worker_id, role)] if worker.role is not Role.COLOCATED else []
        if flights:
            return [MigrateRequest(flights[self._rng.integers(len(flights))].request)]
        return []


@st.composite
def simulations(draw: st.DrawFn) -> Simulation:
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    size = draw(st.integers(1, 40))
    shared = draw(st.booleans())
    block = draw(st.sampled_from([1, 4, 16]))
    isl = rng.integers(1, 200, size)
    counts = isl // 16 if shared else np.zeros(size, np.int64)
    units = np.concatenate([rng.integers(0, 3) * 1000 + np.arange(count) for count in counts] or [np.zeros(0)])
    workload = Workload(
        arrival_s=np.sort(rng.uniform(0, draw(st.sampled_from([0.1, 5.0])), size)),
        isl_tokens=isl,
        reasoning_tokens=rng.integers(0, 150, size),
        answer_tokens=rng.integers(1, 60, size),
        cached_tokens=np.minimum(rng.integers(0, 2, size) * 20, isl) if not shared else np.zeros(size, np.int64),
        priority=rng.integers(0, 2, size),
        tenant=rng.integers(0, 2, size),
        tenants=("chat", "batch"),
        unit_starts=np.concatenate(([0], np.cumsum(counts))),
        units=units.astype(np.int64),
        unit_tokens=16 if shared else 0,
    )
    profile = EngineProfile(
        COST,
        COST,
        total_blocks=draw(st.sampled_from([450, 700, 5000])) // block,
        block_size_tokens=block,
        mixed=draw(st.sampled_from([COST, None])),
        max_num_seqs=draw(st.sampled_from([1, 4, 64])),
        max_num_batched_tokens=draw(st.sampled_from([64, 512])),
        kv_bytes_per_token=1000.0,
        prefill_first=draw(st.booleans()),
    )
    colocated, standby = draw(st.booleans()), draw(st.integers(0, 1))
    pools = (
        [PoolSpec(Role.COLOCATED, profile, 2, start_s=1.0, standby_replicas=standby)]
        if colocated
        else [
            PoolSpec(Role.PREFILL, profile, draw(st.integers(1, 2)), start_s=1.0, domain="a"),
            PoolSpec(Role.DECODE, profile, draw(st.integers(1, 3)), 1.0, "a", standby),
        ]
    )
    return Simulation(
        FleetSpec(pools, AffineTransfer(1e6, 0.01), local_prefill_below_tokens=draw(st.sampled_from([0, 30]))),
        workload,
        GatewaySpec(
            max_queued_requests=draw(st.sampled_from([0, 3, 1000])),
            deadline_s=draw(st.sampled_from([None, 3.0])),
            handoff=draw(st.sampled_from(list(lc.Handoff))),
            preempt_after_s=draw(st.sampled_from([None, 0.0, 0.2])),
            rules=draw(st.sampled_from(list(Rules))),
        ),
        closed_loop=draw(st.sampled_from([None, ClosedLoop(3, stagger_s=0.5)])),
        forecast=draw(
            st.sampled_from([FixedForecast(20), RecentForecast(start_tokens=400), LiveForecast(200, 1 << 20, block)])
        ),
        scaling=draw(st.sampled_from([None, Chaos(seed)])),
        failures=FailurePlan(
            mtbf_s=draw(st.sampled_from([None, 4.0])), transfer_share=draw(st.sampled_from([0.0, 0.3]))
        ),
        sample_s=1.0,
        seed=seed,
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(simulations())
def test_blocks_promises_and_tokens_are_conserved(simulation: Simulation) -> None:
    check_every_event(simulation)


@pytest.mark.parametrize(("total_blocks", "preemptions"), [(15, 0), (10, 1)])
def test_legs_whose_kv_comes_together_wait_for_their_next_block(total_blocks: int, preemptions: int) -> None:
    """Ten of one block each, which open a second with their first step; where the worker is full, one is preempted."""

    class Owner:
        def pull(self, leg: Leg, tokens: int) -> None:
            kernel.at(kernel.now_s + 0.01, engine.loaded, leg)

        def leg_over(self, leg: Leg) -> None:
            over.append(leg)

        def leg_prefilled(self, leg: Leg) -> None:
            pass

    kernel, over = Kernel(), list[Leg]()
    engine = Engine(kernel, Owner(), EngineProfile(COST, COST, total_blocks), "decode-0")
    for number in range(10):
        engine.submit(Leg(str(number), number, 17, 8, True, -1, remote=True))
    kernel.run()
    engine.validate()
    assert {leg.made_tokens for leg in over} == {8}
    assert (len(over), engine.requests, engine.pool.used, engine.preemptions) == (10, 0, 0, preemptions)


def test_legs_that_load_together_wait_for_their_next_block() -> None:
    # Twenty prompts of one block each fill the worker; each opens its second block with its first step there.
    size, none = 20, np.zeros(20, np.int64)
    workload = Workload(
        arrival_s=np.zeros(size),
        isl_tokens=np.full(size, 16),
        reasoning_tokens=none,
        answer_tokens=np.full(size, 30),
        cached_tokens=none,
        priority=none,
        unit_starts=np.zeros(size + 1, np.int64),
        units=np.zeros(0, np.int64),
        unit_tokens=0,
    )
    pools = [
        PoolSpec(
            role, EngineProfile(COST, COST, blocks, block_size_tokens=16, kv_bytes_per_token=1000.0), 1, domain="a"
        )
        for role, blocks in ((Role.PREFILL, 1000), (Role.DECODE, size))
    ]
    check_every_event(Simulation(FleetSpec(pools, AffineTransfer(1e6, 0.01)), workload, forecast=FixedForecast(0)))


def check_every_event(simulation: Simulation) -> None:
    def check(*_: Any) -> None:
        for flight in simulation.live.values():
            flight.lifecycle.validate()

    def check_engines(_: object) -> None:
        for worker in simulation.fleet.workers.values():
            if worker.engine is not None:
                worker.engine.validate()
                waiting = sum(leg.reserve_blocks for leg in worker.engine.waiting)
                reserved = sum(f.unclaimed_blocks for f in simulation.live.values() if f.holder is worker.engine)
                assert worker.engine.unclaimed_blocks == waiting + reserved
                assert worker.exports == len(worker.engine.exported)
                assert not worker.standby or (worker.engine.requests, reserved) == (0, 0)

    kernel, events = simulation.kernel, 0

    def run(until_s: float = float("inf")) -> None:
        nonlocal events
        while kernel.pending and not kernel._stopped:
            kernel.now_s, _, _, action, argument = heapq.heappop(kernel._heap)
            action(argument)
            check_engines(None)
            check()
            events += 1
            assert events < 20_000 or simulation.kernel.now_s > 1000, "the run does not end"

    kernel.run = run  # type: ignore[method-assign]
    result = simulation.run()
    if simulation.kernel.now_s > 1000:
        return  # every worker of a role was drained or given another: nothing ends, by choice of the policy
    records = result.records
    outcome = records["outcome"]
    done = outcome == Outcome.FINISHED
    assert (outcome != Outcome.OPEN).all(), outcome
    assert not simulation.live and len(simulation.placer) == 0
    assert (records["first_token_s"][done] >= records["arrival_s"][done]).all()
    assert (records["end_s"][done] >= records["first_token_s"][done] - 1e-9).all()
    answered = done & (records["answer_s"] >= 0)
    assert (records["answer_s"][answered] <= records["end_s"][answered] + 1e-9).all()
    assert (answered == done).all()
    assert (records["slow_gaps"] <= records["output_tokens"] * (1 + records["preemptions"])).all()
    for worker in simulation.fleet.workers.values():
        if worker.engine is not None:
            assert worker.engine.pool.used == 0, worker.worker_id
            assert worker.engine.reserved_blocks == 0
