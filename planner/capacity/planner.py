"""Find the fleets that keep the objectives and rank them by cost or latency.

Every GPU kind and tensor-parallel size is sized alone as prefill, decode and colocated pool, first in parts of a
worker, then in whole ones; a disaggregated plan joins the cheapest prefill pool of one kind with the cheapest
decode pool of the same kind, or of another in the mode ``mixed_gpus``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from cluster.errors import ConfigError, PlacementInfeasible
from cluster.hardware.catalogue import GpuSpec
from planner.capacity.lengths import LengthDistribution
from planner.capacity.plan import Candidate, Cost, Latency, Plan
from planner.capacity.pools import Sized, size_colocated, size_decode, size_prefill
from planner.capacity.resolve import Problem, resolve
from planner.capacity.shape import Shape
from planner.capacity.spec import HOURS_PER_MONTH, SECONDS_PER_MONTH, HardwarePlan, Mode, PlanSpec, PoolShapes
from planner.capacity.trust import trust_of
from planner.capacity.worker_model import WorkerModel, infeasible

LINK_SHARE = 0.7
"""Most of a link's time that handoffs may take before waiting for it shows."""
_LATER = ("max_gpus", "link", "e2e", "ttfat", "ttft", "itl", "kv", "memory", "tensor_parallel")


def plan(spec: PlanSpec) -> Plan:
    """Size and rank every fleet that the plan file allows.

    Raises:
        ConfigError: the plan file is wrong.
        PlacementInfeasible: no fleet keeps the objectives; ``ids["limit"]`` names what binds.
    """
    return plan_for(resolve(spec))


def plan_for(problem: Problem) -> Plan:
    """`plan` for a problem already looked up."""
    found: list[Candidate] = []
    rejected: dict[str, PlacementInfeasible] = {}

    def attempt(name: str, make: Callable[[], Candidate]) -> None:
        try:
            found.append(make())
        except PlacementInfeasible as error:
            rejected[name] = error

    workers = _workers(problem, rejected)
    modes = problem.spec.modes
    if Mode.COLOCATED in modes:
        for worker in _allowed(workers, problem.spec.hardware, PoolShapes()):
            name = f"{Mode.COLOCATED.value} {worker.shape}x {worker.gpu.name}"
            attempt(name, lambda worker=worker: _colocated(problem, worker))  # type: ignore[misc]
    if Mode.DISAGGREGATED in modes or Mode.MIXED_GPUS in modes:
        hardware = problem.spec.hardware
        prefills = _best_prefills(problem, _allowed(workers, hardware, hardware.prefill), rejected)
        for prefill in prefills:
            for worker in _allowed(workers, hardware, hardware.decode):
                same = worker.gpu.name == prefill.worker.gpu.name
                mode = Mode.DISAGGREGATED if same else Mode.MIXED_GPUS
                if mode not in modes:
                    continue
                name = f"{mode.value} {_named(prefill.worker)} to {_named(worker)}"
                attempt(
                    name,
                    lambda prefill=prefill, worker=worker, mode=mode: _split(  # type: ignore[misc]
                        problem, prefill, worker, mode
                    ),
                )
    if not found:
        raise _most_specific(list(rejected.values()))
    found.sort(key=objective_of(problem.spec))
    return Plan(problem, tuple(found), {name: error.message for name, error in rejected.items()})


def objective_of(spec: PlanSpec) -> Callable[[Candidate], tuple[float, ...]]:
    """What ranks plans, smaller being better."""
    if spec.objective == "latency":
        return lambda each: (each.e2e.p95_s, each.cost.usd_month, each.gpus)
    return lambda each: (each.cost.usd_month, each.gpus, each.e2e.p95_s)


def _named(worker: WorkerModel) -> str:
    return f"{worker.shape}x {worker.gpu.name}"


def _shapes(hardware: HardwarePlan, pool: PoolShapes) -> set[Shape]:
    """Shapes that a pool may have."""
    return {
        Shape(tp, pp, dp)
        for tp in pool.tensor_parallel or hardware.tensor_parallel
        for pp in pool.pipeline_parallel or hardware.pipeline_parallel
        for dp in pool.data_parallel or hardware.data_parallel
    }


def _allowed(workers: list[WorkerModel], hardware: HardwarePlan, pool: PoolShapes) -> list[WorkerModel]:
    """Workers that a pool may be made of."""
    if unknown := sorted(set(pool.gpus or ()) - set(hardware.gpus)):
        raise ConfigError(f"hardware.prefill or decode.gpus: {unknown[0]!r} is not among hardware.gpus")
    shapes, kinds = _shapes(hardware, pool), pool.gpus or [worker.gpu.name for worker in workers]
    return [worker for worker in workers if worker.shape in shapes and worker.gpu.name in kinds]


def _workers(problem: Problem, rejected: dict[str, PlacementInfeasible]) -> list[WorkerModel]:
    found, hardware = [], problem.spec.hardware
    shapes = set().union(*(_shapes(hardware, pool) for pool in (PoolShapes(), hardware.prefill, hardware.decode)))
    for gpu in problem.gpus:
        for shape in sorted(shapes):
            name = f"{shape}x {gpu.name}"
            try:
                found.append(WorkerModel(problem, gpu, shape))
            except ConfigError as error:
                rejected[name] = infeasible("tensor_parallel", error.message)
            except PlacementInfeasible as error:
                rejected[name] = error
    return found


def _best_prefills(
    problem: Problem, workers: list[WorkerModel], rejected: dict[str, PlacementInfeasible]
) -> Iterator[Sized]:
    """The cheapest prefill pool of each kind of GPU."""
    best: dict[str, Sized] = {}
    for worker in workers:
        try:
            sized = size_prefill(worker, problem.rate_per_s)
        except PlacementInfeasible as error:
            rejected[f"prefill {_named(worker)}"] = error
            continue
        held = best.get(worker.gpu.name)
        if held is None or (sized.usd_h, sized.gpus) < (held.usd_h, held.gpus):
            best[worker.gpu.name] = sized
    return iter(best.values())


def _tpot_limit_s(problem: Problem, before_s: float) -> float:
    """Time per token that the whole request and the first answer token leave, after ``before_s``."""
    slo, lengths, probability = problem.spec.slo, problem.lengths, problem.percentile
    limit = math.inf
    if slo.e2e_s is not None:
        limit = min(limit, (slo.e2e_s - before_s) / max(1.0, lengths.osl.quantile(probability) - 1.0))
    if slo.ttfat_s is not None:
        limit = min(limit, (slo.ttfat_s - before_s) / max(1.0, lengths.reasoning.quantile(probability)))
    return limit


def _colocated(problem: Problem, worker: WorkerModel) -> Candidate:
    alone = worker.first_token(1, 0.0)(0.5)
    sized = size_colocated(worker, problem.rate_per_s, _tpot_limit_s(problem, alone))
    # A queue in front adds to what the first guess left for tokens: ask again with what it came to.
    for _ in range(2):
        left = sized.workers - problem.spec.survive_failures
        load = worker.load(problem.rate_per_s / left, True)
        ttft = worker.first_token(left, problem.rate_per_s, load)
        limit_s = _tpot_limit_s(problem, ttft(0.5))
        if load.tpot_s <= limit_s:
            break
        sized = size_colocated(worker, problem.rate_per_s, limit_s)
    return evaluate(problem, Mode.COLOCATED, (sized,))


def _split(problem: Problem, prefill: Sized, worker: WorkerModel, mode: Mode) -> Candidate:
    left = prefill.workers - problem.spec.survive_failures
    ttft = prefill.worker.first_token(left, problem.rate_per_s)
    before_s = ttft(0.5) + transfer_s(problem, prefill.worker, worker)
    decode = size_decode(worker, problem.rate_per_s, _tpot_limit_s(problem, before_s))
    _check_link(problem, prefill, decode)
    return evaluate(problem, mode, (prefill, decode))


def transfer_s(problem: Problem, source: WorkerModel, target: WorkerModel) -> float:
    """Mean seconds of a handoff: the slower of the two ends."""
    kv_bytes = int(problem.handoff_bytes(problem.lengths.isl.mean))
    ends = ((source.gpu, source.shape), (target.gpu, target.shape))
    return max(problem.transfer(gpu, shape).transfer_s(kv_bytes) for gpu, shape in ends)


def _check_link(problem: Problem, prefill: Sized, decode: Sized) -> None:
    seconds = transfer_s(problem, prefill.worker, decode.worker)
    for pool in (prefill, decode):
        # Each rank of a worker has links of its own.
        ranks = max(1, pool.workers - problem.spec.survive_failures) * pool.worker.shape.dp
        busy = problem.rate_per_s / ranks * seconds
        if busy > LINK_SHARE:
            raise infeasible(
                "link",
                f"handoffs over {problem.spec.hardware.link} take {100 * busy:.0f} % of a {pool.role.value} "
                f"worker's link ({seconds:.2f} s each)",
                busy / LINK_SHARE,
            )


def evaluate(problem: Problem, mode: Mode, pools: tuple[Sized, ...], rate_per_s: float | None = None) -> Candidate:
    """Latency and cost of a fleet at the peak rate with every worker up; no objective is checked but ``max_gpus``.

    Args:
        problem: The workload and objectives.
        mode: How GPUs are shared.
        pools: The fleet.
        rate_per_s: Another rate.
    Raises:
        PlacementInfeasible: more GPUs than the plan allows.
    """
    limit_gpus = problem.spec.hardware.max_gpus
    gpus = sum(pool.gpus for pool in pools)
    if limit_gpus is not None and gpus > limit_gpus:
        raise infeasible("max_gpus", f"needs {gpus} GPUs, hardware.max_gpus allows {limit_gpus}", gpus / limit_gpus)
    rate = problem.spec.workload.peak_rate_per_s if rate_per_s is None else rate_per_s
    decode, colocated = pools[-1], mode is Mode.COLOCATED
    load = decode.worker.load(rate / decode.workers, colocated)
    first = pools[0].worker.first_token(pools[0].workers, rate, load if colocated else None)
    handoff_s = 0.0 if colocated else transfer_s(problem, pools[0].worker, decode.worker)
    ttft, lengths = Latency.of(first), problem.lengths

    def after(tokens: LengthDistribution, less: float) -> Latency:
        return Latency.of(
            lambda p: (
                ttft.p50_s + handoff_s + max(0.0, tokens.quantile(p) - less) * load.tpot_s
                if tokens.mean > 0
                else first(p)
            )
        )

    return Candidate(
        mode=mode,
        pools=pools,
        load=load,
        ttft=ttft,
        ttfat=after(lengths.reasoning, 0.0),
        itl=Latency.of(lambda p: decode.worker.itl_s(load, p, colocated)),
        e2e=after(lengths.osl, 1.0),
        transfer_s=handoff_s,
        limit=decode.limit if decode.limit != "max_num_seqs" else "engine.max_num_seqs",
        cost=cost_of(problem, pools),
        trust=trust_of(problem, pools, load),
    )


def cost_of(problem: Problem, pools: tuple[Sized, ...]) -> Cost:
    """Dollars of a fleet that runs all month for the mean rate of queries."""
    workload = problem.spec.workload
    gpu_usd = sum(pool.usd_h for pool in pools) * HOURS_PER_MONTH
    queries = workload.mean_rate_per_s * SECONDS_PER_MONTH
    extra = sum(each.usd_per_month + each.usd_per_query * queries for each in problem.spec.extras)
    total = gpu_usd + extra
    tokens = queries * problem.lengths.osl.mean
    return Cost(gpu_usd, extra, total / queries, total / tokens * 1e6)


def _most_specific(errors: list[PlacementInfeasible]) -> PlacementInfeasible:
    """The error of the candidate that came furthest, for it names the limit that binds."""
    order = {limit: i for i, limit in enumerate(_LATER)}

    def rank(error: PlacementInfeasible) -> tuple[float, float]:
        return order.get(error.ids.get("limit", ""), len(order)), float(error.ids.get("excess", "inf"))

    best = min(errors, key=rank)
    return PlacementInfeasible(f"no fleet keeps the objectives: {best.message}", limit=best.ids.get("limit", ""))


def with_price(problem: Problem, gpu: str, price_usd_h: float) -> Problem:
    """The same problem with another price for one kind."""

    def priced(each: GpuSpec) -> GpuSpec:
        return replace(each, price_usd_h=price_usd_h) if each.name == gpu else each

    return replace(problem, gpus=tuple(priced(each) for each in problem.gpus))
