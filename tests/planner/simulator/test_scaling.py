"""Scaling policies in whole simulated runs, on a small fleet: Baton's, the baselines, and preemption by recompute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest

from cluster.spec.config import Role
from orchestrator.policy.autoscaler import Autoscaler
from orchestrator.policy.baselines import KvThreshold, MeanLengths, RequestsPerReplica
from orchestrator.policy.decision_log import entry_line, replay
from orchestrator.policy.demand import Demand, DemandForecaster, horizons_s
from orchestrator.policy.scaling_decision import Decision, DecisionSettings, Memory, WorkerRow
from orchestrator.policy.scaling_policy import FleetView, ScalingPolicy, StartWorker
from orchestrator.policy.worker_capacity import WorkerCapacity
from orchestrator.request import lifecycle as lc
from planner.simulator.cost import AffineCost, AffineTransfer
from planner.simulator.engine import EngineProfile
from planner.simulator.failures import FailurePlan
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.forecast import FixedForecast
from planner.simulator.records import Outcome
from planner.simulator.result import Result
from planner.simulator.simulation import GatewaySpec, Hooks, Simulation
from planner.simulator.workload import Workload

COST = AffineCost(0.01, 1e-4, 1e-7, 0.005, 2e-5)
KV_TOKENS = 32_000

Inputs = tuple[DecisionSettings, Memory, Demand, Sequence[WorkerRow], Decision]


def fleet(prefill: int = 1, decode: int = 2, blocks: int = KV_TOKENS // 16, start_s: float = 20.0) -> FleetSpec:
    kind = EngineProfile(COST, COST, blocks, mixed=COST, kv_bytes_per_token=1e4)
    return FleetSpec(
        [PoolSpec(Role.PREFILL, kind, prefill, start_s), PoolSpec(Role.DECODE, kind, decode, start_s)],
        AffineTransfer(1e9, 0.001),
    )


def capacity() -> WorkerCapacity:
    return WorkerCapacity(KV_TOKENS, COST.step_s, COST.prefill_s, 0.05)


def baton(**settings: float) -> Autoscaler:
    forecaster = DemandForecaster(capacity(), ttft_s=2.0, horizons_s=horizons_s(20.0))
    return Autoscaler(forecaster, DecisionSettings(**{"patience_s": 120.0, "change_roles": False} | settings))


def traces(short_first: bool, rate_per_s: float = 4.0, seconds: float = 600.0) -> Workload:
    """A constant rate; output lengths change fivefold half way."""
    rng = np.random.default_rng(0)
    count = int(rate_per_s * seconds)
    times = np.sort(rng.uniform(0, seconds, count))
    long = (times > seconds / 2) == short_first
    osl = rng.exponential(np.where(long, 1500, 300)).astype(np.int64) + 1
    return Workload(times, rng.integers(50, 200, count), osl // 2, osl - osl // 2)


def run(workload: Workload, policy: ScalingPolicy | None, prefill: int = 1, decode: int = 2) -> Result:
    spec = GatewaySpec(max_queued_requests=10_000, preempt_after_s=0.5)
    return Simulation(fleet(prefill, decode), workload, spec, forecast=FixedForecast(200), scaling=policy).run()


def workers(result: Result, role: str, time_s: float) -> float:
    return float(np.interp(time_s, result.timeline["time_s"], result.timeline[f"{role}_workers"]))


@cache
def longer_traces() -> tuple[Result, tuple[Inputs, ...]]:
    """A run of Baton's policy in which traces become longer, and all that it logged."""
    logged: list[Inputs] = []
    policy = baton()
    policy.log = lambda *inputs: logged.append(inputs)
    return run(traces(short_first=True), policy), tuple(logged)


def test_longer_traces_grow_decode_and_leave_prefill() -> None:
    result, _ = longer_traces()
    assert (result.records["outcome"] == Outcome.FINISHED).all()
    assert workers(result, "decode", 590) >= 2 * workers(result, "decode", 290)
    assert workers(result, "prefill", 590) == workers(result, "prefill", 290) == 1


def test_shorter_traces_shrink_decode_and_lose_nothing() -> None:
    result = run(traces(short_first=False, seconds=720), baton(), decode=5)
    assert (result.records["outcome"] == Outcome.FINISHED).all()
    assert workers(result, "decode", 710) <= 0.6 * workers(result, "decode", 350)


def test_every_decision_of_a_run_replays() -> None:
    _, logged = longer_traces()
    found = list(replay([entry_line(*inputs) for inputs in logged]))
    assert len(found) > 100
    assert all(each.agrees for each in found)
    assert any("StartWorker" in action for each in found for action in each.entry.actions)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RequestsPerReplica({Role.PREFILL: 4, Role.DECODE: 15}),
        lambda: MeanLengths(capacity(), interval_s=30.0),
        lambda: KvThreshold(kv_share=0.7),
        lambda: KvThreshold(kv_share=0.7, gateway_queue=False),
    ],
    ids=["requests", "means", "kv", "kv-own-queue"],
)
def test_baselines_follow_a_lasting_change(make: Callable[[], ScalingPolicy]) -> None:
    result = run(traces(short_first=True), make())
    assert (result.records["outcome"] == Outcome.FINISHED).all()
    assert workers(result, "decode", 590) > workers(result, "decode", 290)


def test_a_long_trace_makes_way_while_a_worker_starts() -> None:
    """KV of the only decode worker is full of long traces; new requests do not wait for the next worker to start."""

    class Late:
        interval_s = 1.0
        asked = False

        def decide(self, now_s: float, fleet: object) -> list[StartWorker]:
            if now_s < 10 or self.asked:
                return []
            self.asked = True
            return [StartWorker(Role.DECODE, delay_s=60.0)]

    times = np.concatenate((np.zeros(10), np.linspace(12, 20, 10)))
    osl = np.concatenate((np.full(10, 20_000), np.full(10, 100)))
    requests = Workload(times, np.full(20, 2_900), osl * 0, osl)

    def ttft_s(preempt_after_s: float | None) -> tuple[float, Result]:
        seen: list[object] = []
        spec = GatewaySpec(max_queued_requests=100, preempt_after_s=preempt_after_s)
        hooks = Hooks(action=lambda now_s, index, event, actions: seen.append(event))
        simulation = Simulation(
            fleet(decode=1), requests, spec, forecast=FixedForecast(200), scaling=Late(), hooks=hooks
        )
        result = simulation.run()
        for worker in simulation.fleet.workers.values():
            if worker.engine is not None:
                worker.engine.validate()
                assert worker.engine.pool.private == 0
        assert (result.records["outcome"] == Outcome.FINISHED).all()
        assert any(isinstance(event, lc.Preempted) for event in seen) == (preempt_after_s is not None)
        return float(result.records.ttft_s()[10:].max()), result

    patient, _ = ttft_s(None)
    quick, result = ttft_s(0.5)
    assert quick < 2.0 < patient
    assert result.records["preemptions"].sum() >= 1
    assert result.records["retries"].sum() == 0


def timed(standby: int, actions: dict[float, list[StartWorker]], died_s: float | None = None) -> Result:
    """A minute of light work; workers take 20 s to start."""

    class Timed:
        interval_s = 1.0

        def decide(self, now_s: float, fleet: FleetView) -> list[StartWorker]:
            assert len([row for row in fleet.workers() if row.view.role is Role.DECODE]) >= 2
            return actions.get(now_s, [])

    kind = EngineProfile(COST, COST, KV_TOKENS // 16, mixed=COST, kv_bytes_per_token=1e4)
    pools = [PoolSpec(Role.PREFILL, kind, 1, 20.0), PoolSpec(Role.DECODE, kind, 2, 20.0, standby_replicas=standby)]
    return Simulation(
        FleetSpec(pools, AffineTransfer(1e9, 0.001)),
        Workload(np.linspace(0, 60, 61), np.full(61, 50), np.zeros(61, np.int64), np.full(61, 20)),
        GatewaySpec(max_queued_requests=100),
        scaling=Timed(),
        failures=FailurePlan(((died_s, "decode-0"),) if died_s is not None else ()),
        sample_s=0.5,
    ).run()


def test_a_pool_with_a_worker_on_standby_grows_with_no_start_time() -> None:
    cold = timed(0, {10.0: [StartWorker(Role.DECODE)]})
    warm = timed(1, {10.0: [StartWorker(Role.DECODE)]})
    assert [workers(cold, "decode", time_s) for time_s in (9.5, 11, 29, 31)] == [2, 2, 2, 3]
    assert [workers(warm, "decode", time_s) for time_s in (9.5, 11, 29, 31)] == [2, 3, 3, 3]
    assert warm.gpu_s - cold.gpu_s == pytest.approx(60, abs=1)  # it is paid for from the start
    # Of two at once the second has to start, and so has one while the next standby does.
    both = timed(1, {10.0: [StartWorker(Role.DECODE)] * 2, 40.0: [StartWorker(Role.DECODE)]})
    assert [workers(both, "decode", time_s) for time_s in (11, 29, 31, 41)] == [3, 3, 4, 5]


def test_a_worker_on_standby_takes_the_place_of_a_dead_one() -> None:
    cold, warm = timed(0, {}, died_s=10.2), timed(1, {}, died_s=10.2)
    assert [workers(cold, "decode", time_s) for time_s in (11, 29, 31)] == [1, 1, 2]
    assert [workers(warm, "decode", time_s) for time_s in (11, 29, 31)] == [2, 2, 2]
    assert (warm.records["outcome"] == Outcome.FINISHED).all()


def test_nobody_makes_way_where_no_worker_is_coming() -> None:
    requests = Workload(np.zeros(30), np.full(30, 2_900), np.zeros(30, np.int64), np.full(30, 500))
    spec = GatewaySpec(max_queued_requests=100, preempt_after_s=0.5)
    seen: list[object] = []
    hooks = Hooks(action=lambda now_s, index, event, actions: seen.append(event))
    Simulation(fleet(decode=1), requests, spec, forecast=FixedForecast(600), hooks=hooks).run()
    assert not any(isinstance(event, lc.Preempted) for event in seen)


def test_decisions_explain_themselves() -> None:
    _, logged = longer_traces()
    reasons = [decision.reason for *_, decision in logged]
    assert any(reason.startswith("decode ") and "KV" in reason for reason in reasons)
    assert all(reason for reason in reasons)
