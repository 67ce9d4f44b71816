"""What changes when the workload does: (a) the fleet sized again, (b) the fleet held until something breaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from cluster.errors import ConfigError, PlacementInfeasible
from cluster.hardware.catalogue import gpu as gpu_named
from planner.capacity.lengths import LengthDistribution, RequestLengths
from planner.capacity.plan import Candidate, Plan
from planner.capacity.planner import evaluate, plan_for, with_price
from planner.capacity.pools import Sized
from planner.capacity.resolve import Problem
from planner.capacity.spec import Mode, PlanSpec
from planner.capacity.worker_model import WorkerModel

MOST = 64.0


class Lever(StrEnum):
    """What may be varied, each by a factor; the kind of GPU by name."""

    TRACE_LENGTH = "trace_length"
    SPREAD = "spread"
    RATE = "rate"
    PRICE = "price"
    BUDGET = "budget"
    PREFIX_HIT = "prefix_hit"
    GPU = "gpu"


def changed(problem: Problem, lever: Lever, factor: float) -> Problem:
    """The problem with one lever moved.

    ``trace_length`` and ``spread`` act on reasoning where there is any, else on the answer; ``budget`` caps it at
    ``factor`` times its 95th percentile; ``prefix_hit`` sets the share itself, 0 to 1.

    Raises:
        ConfigError: a factor that makes no sense for the lever.
    """
    if factor < 0 or (lever is Lever.PREFIX_HIT and factor >= 1) or (lever in _POSITIVE and factor == 0):
        raise ConfigError(f"{lever.value}={factor}: expected {'0 to below 1' if lever is Lever.PREFIX_HIT else '> 0'}")
    workload = problem.spec.workload
    match lever:
        case Lever.RATE:
            update = {"rate_per_s": workload.mean_rate_per_s * factor, "users": None}
            return _with_workload(problem, update)
        case Lever.PREFIX_HIT:
            return _with_workload(problem, {"prefix_hit_share": factor})
        case Lever.PRICE:
            for gpu in problem.gpus:
                problem = with_price(problem, gpu.name, gpu.price_usd_h * factor)
            return problem
        case Lever.TRACE_LENGTH:
            return _with_trace(problem, lambda lengths: lengths.scaled(factor))
        case Lever.SPREAD:
            return _with_trace(problem, lambda lengths: lengths.spread(factor))
        case Lever.BUDGET:
            return _with_trace(problem, lambda lengths: lengths.capped(factor * lengths.quantile(0.95)))
        case Lever.GPU:
            raise ConfigError("gpu: kinds of GPU have names, not factors; see resize_gpus")


_POSITIVE = (Lever.RATE, Lever.TRACE_LENGTH, Lever.BUDGET)


def _with_workload(problem: Problem, update: Mapping[str, object]) -> Problem:
    spec: PlanSpec = problem.spec.model_copy(update={"workload": problem.spec.workload.model_copy(update=update)})
    return replace(problem, spec=spec)


def _with_trace(problem: Problem, change: Callable[[LengthDistribution], LengthDistribution]) -> Problem:
    lengths = problem.lengths
    if lengths.reasoning.mean > 0:
        return replace(problem, lengths=replace(lengths, reasoning=change(lengths.reasoning)))
    return replace(problem, lengths=replace(lengths, answer=change(lengths.answer)))


def trace_of(lengths: RequestLengths) -> LengthDistribution:
    """The part of the output that the levers act on: reasoning, or the answer where there is no reasoning."""
    return lengths.reasoning if lengths.reasoning.mean > 0 else lengths.answer


@dataclass(frozen=True)
class Resized:
    """One value of a lever with the fleet sized again.

    Args:
        value: The factor, or the name of a kind of GPU.
        plan: The new answer, or ``None`` where there is none.
        reason: Why not.
        clipped_share: Share of traces that a budget cuts.
    """

    value: float | str
    plan: Plan | None
    reason: str = ""
    clipped_share: float = 0.0

    @property
    def factor(self) -> float:
        """The value, where it is a number."""
        assert not isinstance(self.value, str)
        return self.value


def resize(problem: Problem, lever: Lever, factors: list[float]) -> list[Resized]:
    """(a): the plan at each value of the lever."""
    found = []
    for factor in factors:
        trace, clipped = trace_of(problem.lengths), 0.0
        if lever is Lever.BUDGET:
            clipped = trace.share_above(factor * trace.quantile(0.95))
        try:
            found.append(Resized(factor, plan_for(changed(problem, lever, factor)), "", clipped))
        except PlacementInfeasible as error:
            found.append(Resized(factor, None, error.message, clipped))
    return found


def with_gpu(problem: Problem, name: str) -> Problem:
    """The problem with one kind of GPU alone, at the plan's price for it where it has one.

    Raises:
        ConfigError: an unknown kind.
    """
    known = next((each for each in problem.gpus if each.name == name), None) or gpu_named(name)
    if not known.priced:
        raise ConfigError(f"no price of {name} was surveyed; give hardware.overrides.{name}.price_usd_h")
    return replace(problem, gpus=(known,))


def resize_gpus(problem: Problem, names: list[str]) -> list[Resized]:
    """(a) for kinds of GPU: the plan on each alone."""
    found = []
    for name in names:
        gpu_named(name) if all(each.name != name for each in problem.gpus) else None
        try:
            found.append(Resized(name, plan_for(with_gpu(problem, name))))
        except (ConfigError, PlacementInfeasible) as error:
            found.append(Resized(name, None, error.message))
    return found


def held(candidate: Candidate, problem: Problem) -> Candidate:
    """The same fleet under another workload, whatever it does to the objectives.

    Raises:
        PlacementInfeasible: one long request no longer fits the KV capacity.
    """
    pools = tuple(
        Sized(pool.role, WorkerModel(problem, pool.worker.gpu, pool.worker.shape), pool.fractional, pool.workers, "")
        for pool in candidate.pools
    )
    return evaluate(problem, candidate.mode, pools)


def breaks(candidate: Candidate, problem: Problem) -> str:
    """The first thing that a held fleet breaks under a workload: ``kv``, ``itl``, ``queue``, ``e2e``; or nothing."""
    try:
        now = held(candidate, problem)
    except PlacementInfeasible as error:
        return error.ids.get("limit", "kv")
    slo, probability = problem.spec.slo, problem.percentile
    decode, colocated = now.pools[-1], candidate.mode is Mode.COLOCATED
    if decode.worker.kv_needed_tokens(now.load.batch_size) > decode.worker.kv_tokens:
        return "kv"
    if now.load.batch_size > problem.spec.engine.max_num_seqs:
        return "max_num_seqs"
    if slo.itl_s is not None and decode.worker.itl_s(now.load, probability, colocated) > slo.itl_s:
        return "itl"
    first = now.pools[0].worker.first_token(
        now.pools[0].workers, problem.spec.workload.peak_rate_per_s, now.load if colocated else None
    )
    if first(probability) > (slo.ttft_s if slo.ttft_s is not None else 1e9):
        return "queue"
    before_s = now.ttft.p50_s + now.transfer_s
    osl, reasoning = problem.lengths.osl, problem.lengths.reasoning
    if slo.ttfat_s is not None and before_s + reasoning.quantile(probability) * now.load.tpot_s > slo.ttfat_s:
        return "ttfat"
    if slo.e2e_s is not None and before_s + (osl.quantile(probability) - 1) * now.load.tpot_s > slo.e2e_s:
        return "e2e"
    return ""


@dataclass(frozen=True)
class BreakingPoint:
    """(b): how far a lever goes with the fleet held.

    Args:
        lever: The lever.
        factor: Where the first objective or limit breaks; ``MOST`` and no limit where nothing does.
        limit: What breaks.
    """

    lever: Lever
    factor: float
    limit: str


def breaking_point(candidate: Candidate, problem: Problem, lever: Lever) -> BreakingPoint:
    """The smallest factor above 1 at which the held fleet breaks something, by bisection."""
    low, high = 1.0, 1.0
    if limit := breaks(candidate, changed(problem, lever, 1.0)):
        return BreakingPoint(lever, 1.0, limit)
    while not (limit := breaks(candidate, changed(problem, lever, high))):
        if high >= MOST:
            return BreakingPoint(lever, MOST, "")
        low, high = high, high * 1.5
    for _ in range(12):
        middle = 0.5 * (low + high)
        found = breaks(candidate, changed(problem, lever, middle))
        if found:
            high, limit = middle, found
        else:
            low = middle
    return BreakingPoint(lever, high, limit)


HELD_LEVERS = (Lever.TRACE_LENGTH, Lever.SPREAD, Lever.RATE)
