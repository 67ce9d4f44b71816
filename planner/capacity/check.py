"""Check a planned fleet in the simulator: the same policies, lengths drawn from the plan's distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cluster.errors import PlacementInfeasible
from cluster.spec.config import TransferSettings
from planner.capacity.lengths import Floats, LengthDistribution
from planner.capacity.plan import Candidate, Latency, Plan
from planner.capacity.planner import evaluate, objective_of
from planner.capacity.pools import Sized
from planner.capacity.resolve import Problem
from planner.capacity.worker_model import infeasible
from planner.simulator.engine import EngineProfile
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.forecast import FixedForecast
from planner.simulator.simulation import GatewaySpec, Hooks, Simulation
from planner.simulator.workload import Workload
from prefill_workers.cost import PrefillCost

MOST_GROWN = 4
MOST_REQUESTS = 20_000


@dataclass(frozen=True)
class Checked:
    """What the simulator says of a fleet at the peak, with the workers left after the failures to survive.

    Args:
        candidate: The fleet.
        ttft: Time to first token.
        ttfat: Time to first answer token.
        itl: Gap between tokens, over all tokens.
        e2e: Whole request.
        requests: Requests counted, after the warm-up.
        decode_full: The decoding pool's KV was full at some time, so requests waited for it.
        broken: Objectives missed, by name; empty when all are kept.
        added_workers: Workers added to what was sized, to get there.
    """

    candidate: Candidate
    ttft: Latency
    ttfat: Latency
    itl: Latency
    e2e: Latency
    requests: int
    decode_full: bool
    broken: tuple[str, ...]
    added_workers: int = 0


def profile(problem: Problem, sized: Sized) -> EngineProfile:
    """One worker as the simulator wants it."""
    worker, engine = sized.worker, problem.spec.engine
    # A step of a worker with several ranks or stages is one of all of them.
    ranks, mean_tokens = worker.shape.dp * worker.shape.pp, max(1.0, problem.lengths.isl.mean)
    prefill = PrefillCost(
        problem.model,
        worker.gpu,
        problem.engine,
        worker.shape.tp,
        kv_dtype_bytes=problem.kv_dtype_bytes,
        expert_parallel=problem.spec.hardware.expert_parallel or worker.shape.dp > 1,
        pp=worker.shape.pp,
        dp=worker.shape.dp,
        chunk_tokens=problem.chunk_tokens,
    )
    return EngineProfile(
        decode=worker.cost,
        prefill=prefill,
        mixed=worker.cost,
        # A model whose layers hold less than the context has as many blocks more: it holds as many requests.
        total_blocks=max(1, int(worker.context_capacity_tokens) // engine.block_size_tokens),
        block_size_tokens=engine.block_size_tokens,
        max_num_seqs=engine.max_num_seqs * ranks,
        max_num_batched_tokens=max(engine.max_num_batched_tokens, engine.max_num_seqs) * ranks,
        ranks=ranks,
        kv_bytes_per_token=problem.handoff_bytes(mean_tokens) / mean_tokens,
        overhead_s=problem.engine.first_token_s,
        gpus=worker.shape.gpus,
        name=f"{worker.shape}x {worker.gpu.name}",
        prefill_first=problem.engine.prefill_first,
    )


def fleet(problem: Problem, candidate: Candidate, lost: int = 0) -> FleetSpec:
    """The fleet as the simulator wants it, with ``lost`` workers of each pool down."""
    decode = candidate.pools[-1].worker
    return FleetSpec(
        pools=[PoolSpec(pool.role, profile(problem, pool), pool.workers - lost) for pool in candidate.pools],
        transfer=problem.transfer(decode.gpu, decode.shape),
        local_prefill_after_s=TransferSettings().local_prefill_after_s,
    )


def _draw(lengths: LengthDistribution, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    middle = np.cumsum(lengths.weights) - 0.5 * lengths.weights
    values = np.interp(rng.random(size), middle, lengths.values)
    return np.floor(values + rng.random(size)).astype(np.int64)


def draw(problem: Problem, arrival_s: Floats, seed: int) -> Workload:
    """Requests of the plan's lengths at these times."""
    rng, lengths = np.random.default_rng(seed), problem.lengths
    size = len(arrival_s)
    longest = problem.model.max_context_tokens
    isl = np.clip(_draw(lengths.isl, size, rng), 1, longest - 2)
    reasoning = np.minimum(_draw(lengths.reasoning, size, rng), longest - 1 - isl)
    answer = np.clip(_draw(lengths.answer, size, rng), 1, np.maximum(1, longest - isl - reasoning))
    cached = (isl * problem.spec.workload.prefix_hit_share).astype(np.int64)
    return Workload(
        arrival_s=arrival_s, isl_tokens=isl, reasoning_tokens=reasoning, answer_tokens=answer, cached_tokens=cached
    )


def arrivals(rate_per_s: float, cv: float, size: int, seed: int) -> Floats:
    """Arrival times with gamma gaps of this mean rate and spread; even ones for ``cv=0``."""
    rng = np.random.default_rng([seed, 1])
    if cv == 0:
        return np.arange(1, size + 1) / rate_per_s
    shape = 1.0 / (cv * cv)
    return np.cumsum(rng.gamma(shape, 1.0 / (shape * rate_per_s), size))


def simulation_of(
    problem: Problem, spec: FleetSpec, workload: Workload, progress: Callable[[float], None] | None
) -> Simulation:
    """A run of these requests on this fleet, under the gateway settings that the plan emits."""
    return Simulation(
        fleet_spec=spec,
        workload=workload,
        gateway=GatewaySpec(
            max_queued_requests=1_000_000,
            slow_gap_s=problem.spec.slo.itl_s or 1.0,
        ),
        # As the emitted cluster spec says, so that what is simulated is what is deployed.
        forecast=FixedForecast(max(1, round(problem.lengths.osl.mean))),
        hooks=Hooks(progress=progress),
        seed=problem.spec.simulate.seed,
    )


def simulate(problem: Problem, candidate: Candidate, progress: Callable[[float], None] | None = None) -> Checked:
    """Run the fleet at the peak rate, past a warm-up as long as a p95 request."""
    workload, plan = problem.spec.workload, problem.spec.simulate
    # The fleet fills as slowly as its longest requests run, so the warm-up is as long as those.
    rate, warm_s = workload.peak_rate_per_s, candidate.e2e.p95_s
    size = min(MOST_REQUESTS, plan.requests + int(rate * 2.0 * warm_s))
    arrived = arrivals(rate, workload.arrival_cv, size, plan.seed)
    lost = problem.spec.survive_failures
    result = simulation_of(problem, fleet(problem, candidate, lost), draw(problem, arrived, plan.seed), progress).run()
    records, done = result.records, result.records.done()
    # The last to arrive run on an emptying fleet, the first on an empty one: neither is counted.
    counted = done & (records["arrival_s"] >= min(warm_s, 0.5 * arrived[-1]))

    def latency(column: str, rows: NDArray[np.bool_]) -> Latency:
        values = records[column][rows] - records["arrival_s"][rows]
        return Latency.of(lambda p: float(np.quantile(values, p)) if values.size else 0.0)

    answered = counted & (records["answer_s"] >= 0)
    itl = Latency.of(result.gaps.quantile_s)
    slo, probability = problem.spec.slo, problem.percentile
    broken = []
    for name, column, rows, limit_s in (
        ("ttft", "first_token_s", counted, slo.ttft_s),
        ("ttfat", "answer_s", answered, slo.ttfat_s),
        ("e2e", "end_s", counted, slo.e2e_s),
    ):
        if limit_s is None or not rows.any():
            continue
        if float(np.quantile(records[column][rows] - records["arrival_s"][rows], probability)) > limit_s:
            broken.append(name)
    if slo.itl_s is not None and result.gaps.quantile_s(probability) > slo.itl_s:
        broken.append("itl")
    if not done.all():
        broken.append("requests lost")
    return Checked(
        candidate=candidate,
        ttft=latency("first_token_s", counted),
        ttfat=latency("answer_s", answered),
        itl=itl,
        e2e=latency("end_s", counted),
        requests=int(counted.sum()),
        decode_full=_full(result.timeline, candidate.pools[-1].role.value),
        broken=tuple(broken),
    )


def _full(timeline: Mapping[str, Floats], role: str) -> bool:
    used, total = timeline[f"{role}_used_blocks"], timeline[f"{role}_total_blocks"]
    return bool((used >= 0.95 * total)[total > 0].any())


def grown(problem: Problem, checked: Checked) -> Candidate:
    """The fleet with one more worker where the miss lies: prefill for TTFT where decode has headroom, else decode."""
    candidate = checked.candidate
    at = 0 if checked.broken == ("ttft",) and not checked.decode_full else len(candidate.pools) - 1
    pools = tuple(
        replace(pool, workers=pool.workers + 1) if i == at else pool for i, pool in enumerate(candidate.pools)
    )
    return evaluate(problem, candidate.mode, pools)


def check(plan: Plan, progress: Callable[[str, float], None] | None = None) -> tuple[Plan, list[Checked]]:
    """Simulate the finalists, growing one that misses an objective, and put the cheapest that keeps all first.

    Args:
        plan: The analytic answer.
        progress: Called with the fleet under way and the share done of its run.
    Raises:
        PlacementInfeasible: no finalist keeps the objectives in the simulator, even with a few workers more.
    """
    problem, found = plan.problem, list[Checked]()
    for candidate in _finalists(plan):
        checked = simulate(problem, candidate, _progress_of(progress, candidate))
        added = 0
        while checked.broken and added < MOST_GROWN:
            added += 1
            try:
                bigger = grown(problem, checked)
            except PlacementInfeasible:
                break
            checked = replace(simulate(problem, bigger, _progress_of(progress, bigger)), added_workers=added)
        found.append(checked)
    if not found:
        return plan, found
    kept = [each.candidate for each in found if not each.broken]
    if not kept:
        first = found[0]
        raise infeasible(
            first.broken[0], f"simulated, no finalist keeps {', '.join(first.broken)} (best: {first.candidate.label})"
        )
    objective = objective_of(problem.spec)
    kept.sort(key=objective)
    simulated = _finalists(plan)
    rest = [each for each in plan.candidates if all(each is not old for old in simulated)]
    return replace(plan, candidates=(kept[0], *sorted((*kept[1:], *rest), key=objective))), found


def _progress_of(progress: Callable[[str, float], None] | None, candidate: Candidate) -> Callable[[float], None] | None:
    return None if progress is None else lambda share: progress(candidate.label, share)


def _finalists(plan: Plan) -> Sequence[Candidate]:
    """The best few, and the best of each mode among them, so that P/D and colocated are both checked."""
    count = plan.problem.spec.simulate.finalists
    if not count:
        return ()
    chosen = [plan.best]
    for mode in plan.problem.spec.modes:
        best = plan.best_of(mode)
        if best is not None and all(best is not each for each in chosen):
            chosen.append(best)
    chosen += [each for each in plan.candidates if all(each is not old for old in chosen)]
    return chosen[:count]
