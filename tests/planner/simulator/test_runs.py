"""Whole runs: same seed same bytes, the real lifecycle, prefix hits, failures, migration, closed loop, limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cluster.errors import ConfigError
from cluster.spec.config import Role
from orchestrator.policy.scaling_policy import ChangeRole, DrainWorker, ScalingAction, StartWorker
from orchestrator.request import lifecycle as lc
from planner.simulator.cost import AffineCost, AffineTransfer
from planner.simulator.engine import EngineProfile
from planner.simulator.failures import FailurePlan
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.forecast import FixedForecast
from planner.simulator.records import Outcome
from planner.simulator.simulation import ClosedLoop, GatewaySpec, Hooks, Simulation
from planner.simulator.workload import Workload

MakeFleet = Callable[..., FleetSpec]
MakeWorkload = Callable[..., Workload]
TROUBLE = FailurePlan(mtbf_s=20.0, transfer_share=0.3)


class At:
    """A scaling policy that does given things at given times."""

    interval_s = 1.0

    def __init__(self, plan: dict[float, list[ScalingAction]]) -> None:
        self.plan = plan
        self.seen: list[Any] = []

    def decide(self, now_s: float, fleet: Any) -> list[ScalingAction]:
        self.seen.append((now_s, fleet.workers(), list(fleet.in_flight()), fleet.finished(), fleet.arrived_tokens))
        return self.plan.get(now_s, [])


def test_same_seed_same_bytes(fleet: MakeFleet, workload: MakeWorkload) -> None:
    def trace(seed: int) -> bytes:
        return Simulation(fleet(), workload(200), failures=TROUBLE, seed=seed).run().records.to_csv()

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


def test_actions_are_those_of_the_lifecycle(fleet: MakeFleet, workload: MakeWorkload) -> None:
    """Every action taken is what a fresh lifecycle answers to the same events."""
    log: dict[int, list[tuple[Any, list[Any]]]] = {}

    def note(_: float, index: int, event: Any, actions: Any) -> None:
        log.setdefault(index, []).append((event, list(actions)))

    requests = workload(150)
    spec = GatewaySpec(max_queued_requests=1000, retry_budget=1)
    result = Simulation(fleet(), requests, spec, failures=TROUBLE, seed=3, hooks=Hooks(action=note)).run()
    assert len(log) == 150
    kinds = set()
    for index, steps in log.items():
        prompt = (0,) * int(requests.isl_tokens[index])
        fresh = lc.Lifecycle(str(index), prompt, spec.max_output_tokens, spec.handoff, spec.retry_budget)
        for event, actions in steps:
            assert _plain(fresh.handle(event)) == _plain(actions)
            fresh.validate()
            kinds.update(type(action).__name__ for action in actions)
        assert fresh.ended
        if fresh.state is lc.State.FINISHED:
            assert len(fresh.output_ids) == result.records["output_tokens"][index]
    assert kinds >= {"StartLeg", "SendTokens", "FreeReservation", "AskPlacement", "Finish", "Fail"}


def _plain(actions: list[Any]) -> list[Any]:
    return [repr(action) for action in actions]


def test_an_idle_cluster_gives_the_sum_of_its_parts(fleet: MakeFleet) -> None:
    one = Workload(np.zeros(1), np.array([100]), np.array([30]), np.array([20]))
    records = Simulation(fleet(), one).run().records
    cost = fleet().pools[0].profile.decode
    ttft_s = fleet().pools[0].profile.prefill.chunk_s([(100, 0)])
    transfer_s = 100 * 1e4 / 1e9 + 0.001
    steps_s = [cost.step_s(1, 100 + step) for step in range(49)]
    assert records.ttft_s()[0] == pytest.approx(ttft_s)
    assert records.ttfat_s()[0] == pytest.approx(ttft_s + transfer_s + sum(steps_s[:30]))
    assert records.e2e_s()[0] == pytest.approx(ttft_s + transfer_s + sum(steps_s))


def test_a_token_that_is_dropped_is_neither_first_nor_followed_by_a_gap(fleet: MakeFleet) -> None:
    one = Workload(np.zeros(1), np.array([100]), np.array([0]), np.array([20]))
    profile = fleet().pools[0].profile
    # Decode reads the last token of the prompt itself, whose logits it needs.
    read_s, transfer_s = profile.prefill.chunk_s([(100, 0)]), 99 * 1e4 / 1e9 + 0.001
    steps_s = [profile.decode.step_s(1, 99 + step) for step in range(20)]
    between_s = steps_s[-1] + transfer_s / 2
    found = {
        handoff: Simulation(fleet(), one, GatewaySpec(handoff=handoff, slow_gap_s=between_s)).run().records
        for handoff in lc.Handoff
    }
    plain = found[lc.Handoff.PLAIN]
    assert plain.ttft_s()[0] == pytest.approx(read_s + transfer_s + steps_s[0])
    assert plain.e2e_s()[0] == pytest.approx(read_s + transfer_s + sum(steps_s))
    assert plain["slow_gaps"][0] == 0
    assert found[lc.Handoff.FIRST_TOKEN]["slow_gaps"][0] == 1


def test_prompts_are_read_in_chunks_of_the_step(fleet: MakeFleet) -> None:
    one = Workload(np.zeros(1), np.array([1000]), np.array([0]), np.array([1]))
    records = Simulation(fleet(max_num_batched_tokens=256), one).run().records
    prefill = fleet().pools[0].profile.prefill
    chunks = [(256, 0), (256, 256), (256, 512), (232, 768)]
    assert records.ttft_s()[0] == pytest.approx(sum(prefill.chunk_s([chunk]) for chunk in chunks))


def test_prefix_hits_equal_an_unbounded_cache(fleet: MakeFleet) -> None:
    rng = np.random.default_rng(0)
    groups, sizes = rng.integers(0, 8, 120), rng.integers(1, 20, 120)
    units = [[group * 1000 + index for index in range(size)] for group, size in zip(groups, sizes, strict=True)]
    requests = Workload(
        np.arange(120) * 5.0,
        sizes * 64 + 7,
        np.zeros(120, np.int64),
        np.full(120, 3),
        unit_starts=np.concatenate(([0], np.cumsum(sizes))),
        units=np.array([unit for each in units for unit in each]),
        unit_tokens=64,
    )
    result = Simulation(fleet(blocks=10_000), requests).run()
    seen: set[int] = set()
    hits = []
    for each in units:
        hits.append(64 * sum(unit in seen for unit in each))
        seen.update(each)
    assert result.records["hit_tokens"].tolist() == hits
    # The decode workers keep prompts as well, so less is moved than was prompted.
    assert result.transferred_bytes < requests.isl_tokens.sum() * 1e4


def test_a_small_cache_preempts_and_loses_nothing(fleet: MakeFleet, workload: MakeWorkload) -> None:
    requests = workload(80, rate_per_s=50)
    spec = GatewaySpec(max_queued_requests=1000)
    result = Simulation(fleet(decode=1, blocks=120), requests, spec, forecast=FixedForecast(1)).run()
    assert result.preemptions > 0
    assert result.records.done().all()


def test_what_cannot_fit_is_refused(fleet: MakeFleet) -> None:
    requests = Workload(np.zeros(2), np.array([100, 100]), np.array([0, 0]), np.array([5, 100_000]))
    outcome = Simulation(fleet(blocks=100), requests).run().records["outcome"]
    assert outcome.tolist() == [Outcome.FINISHED, Outcome.FAILED]


def test_the_queue_is_bounded(fleet: MakeFleet, workload: MakeWorkload) -> None:
    spec = GatewaySpec(max_queued_requests=5)
    result = Simulation(fleet(blocks=60), workload(200, rate_per_s=500), spec).run()
    assert result.summary()["rejected"] > 100
    assert result.timeline["queued"].max() <= 5


def test_priority_goes_first(fleet: MakeFleet) -> None:
    size = 30
    requests = Workload(
        np.linspace(0, 0.1, size),
        np.full(size, 200),
        np.zeros(size, int),
        np.full(size, 50),
        priority=np.arange(size) % 2,
    )
    records = Simulation(fleet(decode=1, blocks=60), requests, GatewaySpec(max_queued_requests=99)).run().records
    waits_s = records["placed_s"] - records["arrival_s"]
    assert waits_s[1::2].mean() < 0.7 * waits_s[0::2].mean()


def test_a_dead_worker_loses_no_token(fleet: MakeFleet, workload: MakeWorkload) -> None:
    plan = FailurePlan(at=((2.0, "decode-0"), (4.0, "prefill-0")))
    result = Simulation(fleet(), workload(60), GatewaySpec(max_queued_requests=999), failures=plan).run()
    assert result.records.done().all()
    assert result.records["retries"].sum() > 0


def test_a_failure_of_an_unknown_worker_is_an_error(fleet: MakeFleet, workload: MakeWorkload) -> None:
    with pytest.raises(ConfigError, match="no worker 'decode-9'"):
        Simulation(fleet(), workload(5), failures=FailurePlan(at=((0.1, "decode-9"),))).run()


def test_drain_moves_requests_and_the_worker_goes(fleet: MakeFleet) -> None:
    size = 20
    requests = Workload(np.zeros(size), np.full(size, 50), np.full(size, 500), np.full(size, 500))
    policy = At({2.0: [DrainWorker("decode-0")]})
    simulation = Simulation(fleet(blocks=20_000), requests, scaling=policy)
    result = simulation.run()
    worker = simulation.fleet.workers["decode-0"]
    assert result.records.done().all()
    assert 8 <= result.records["moves"].sum() <= 12
    assert worker.state == "gone" and worker.stopped_s < 3.0 < result.end_s
    assert result.records["retries"].sum() == 0


def test_workers_start_late_and_change_role(fleet: MakeFleet, workload: MakeWorkload) -> None:
    policy = At({1.0: [StartWorker(Role.DECODE)], 3.0: [ChangeRole("decode-1", Role.PREFILL)]})
    simulation = Simulation(fleet(), workload(100), scaling=policy)
    result = simulation.run()
    assert result.records.done().all()
    states = {now_s: {each.view.worker_id: each.state for each in workers} for now_s, workers, *_ in policy.seen}
    assert states[2.0]["decode-2"] == "starting" and states[7.0]["decode-2"] == "ready"
    late = result.records["placed_s"] > 3.0
    assert 2 in result.records["prefill"][late] and 2 not in result.records["prefill"][~late]
    finished = sum(len(done) for *_, done, _ in policy.seen)
    assert 0 < finished <= 100
    assert all(flight.generated_tokens <= 300 for _, _, flights, *_ in policy.seen for flight in flights)


def test_closed_loop_keeps_its_clients_busy(fleet: MakeFleet, workload: MakeWorkload) -> None:
    loop = ClosedLoop(4, stagger_s=1.0)
    result = Simulation(fleet(), workload(60), closed_loop=loop, sample_s=0.5).run()
    assert result.records.done().all()
    assert result.timeline["in_flight"].max() == 4
    assert sorted(result.records["arrival_s"])[:4] == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("handoff", list(lc.Handoff))
def test_both_handoffs_deliver_the_same_tokens(fleet: MakeFleet, workload: MakeWorkload, handoff: lc.Handoff) -> None:
    requests = workload(60)
    result = Simulation(fleet(), requests, GatewaySpec(handoff=handoff)).run()
    assert result.records.done().all()
    assert result.tokens_out == requests.osl_tokens.sum()
    assert (result.records["answer_s"] >= result.records["first_token_s"]).all()


def test_prefill_first_lets_decode_wait_and_prompts_not(fleet: MakeFleet) -> None:
    """SGLang's order: the second prompt has a step to itself, and the first request's gap holds all of it."""
    cost = AffineCost(decode_base_s=0.01, prefill_base_s=0.005, prefill_token_s=1e-4)
    two = Workload(np.array([0.0, 0.5]), np.array([100, 1000]), np.zeros(2, int), np.array([100, 2]))
    found = {}
    for first in (False, True):
        kind = EngineProfile(cost, cost, 10_000, mixed=cost, prefill_first=first)
        spec = FleetSpec([PoolSpec(Role.COLOCATED, kind, 1)], AffineTransfer(1e9))
        found[first] = Simulation(spec, two, GatewaySpec(slow_gap_s=0.05)).run()
    prompt_s = 0.005 + 1000 * 1e-4
    step_end_s = 0.015 + 0.01 * math.ceil((0.5 - 0.015) / 0.01)
    records = found[True].records
    assert records.ttft_s()[1] == pytest.approx(step_end_s + prompt_s - 0.5)
    assert records["slow_gaps"].tolist() == [1, 0]
    # All other steps take 10 ms; the one gap that holds the prompt takes the prompt's time on top.
    assert records.e2e_s()[0] == pytest.approx(0.015 + 99 * 0.01 + prompt_s)
    assert found[True].gaps.quantile_s(1.0) == pytest.approx(prompt_s + 0.01, rel=0.01)
    mixed = found[False].records
    assert mixed.ttft_s()[1] > records.ttft_s()[1]
    assert mixed.e2e_s()[0] < records.e2e_s()[0]


@pytest.mark.parametrize(("clients", "think_s", "stagger_s"), [(3, 0.0, 0.0), (3, 5.0, 0.0), (4, 0.0, 100.0)])
def test_a_closed_loop_ends_with_its_last_request(
    fleet: MakeFleet, clients: int, think_s: float, stagger_s: float
) -> None:
    """Equal requests end in the same instant, while what the others send next has not come yet."""
    equal = Workload(np.zeros(20), np.full(20, 50), np.zeros(20, int), np.full(20, 20))
    loop = ClosedLoop(clients, stagger_s, think_s)
    assert (Simulation(fleet(), equal, closed_loop=loop).run().records["outcome"] == Outcome.FINISHED).all()
