"""Where the milliseconds and the dollars of a plan go, term by term."""

from __future__ import annotations

from dataclasses import dataclass

from planner.capacity.plan import Candidate
from planner.capacity.resolve import Problem
from planner.capacity.spec import HOURS_PER_MONTH


@dataclass(frozen=True)
class Term:
    """One term.

    Args:
        name: What it is.
        value: Seconds or dollars.
        share: Of its total.
    """

    name: str
    value: float
    share: float


def _shares(terms: dict[str, float]) -> tuple[Term, ...]:
    total = sum(terms.values()) or 1.0
    return tuple(Term(name, value, value / total) for name, value in terms.items() if abs(value) > 1e-12)


def decode_step(candidate: Candidate) -> tuple[Term, ...]:
    """A decode step at the mean batch, seconds; sums to ``load.step_s`` rounded to whole requests."""
    worker = candidate.pools[-1].worker
    batch = max(1, round(candidate.load.batch_size))
    return _shares(worker.cost.roofline.terms_s(batch, int(batch * worker.context)))


def prefill(candidate: Candidate, problem: Problem) -> tuple[Term, ...]:
    """Prefill of a mean prompt alone, seconds, with what lies around the engine."""
    worker = candidate.pools[0].worker
    mean = max(1, round(problem.lengths.isl.mean))
    done = int(mean * problem.spec.workload.prefix_hit_share)
    total: dict[str, float] = {}
    while done < mean:
        piece = min(mean - done, problem.chunk_tokens)
        for name, value in worker.cost.roofline.terms_s(0, 0, ((piece, done),)).items():
            total[name] = total.get(name, 0.0) + value
        done += piece
    total["outside the engine"] = worker.cost.roofline.engine.first_token_s
    alone_s = sum(total.values())
    total["queue (median)"] = max(0.0, candidate.ttft.p50_s - alone_s)
    return _shares(total)


def dollars(candidate: Candidate, problem: Problem) -> tuple[Term, ...]:
    """Dollars a month: work at the mean rate, then what peak, headroom, spares and whole workers add, then the rest."""
    workload, spec = problem.spec.workload, problem.spec
    fractional = candidate.fractional_usd_h * HOURS_PER_MONTH
    mean_share = 1.0 / (workload.peak_to_mean * (1.0 + spec.headroom))
    terms: dict[str, float] = {}
    for pool in candidate.pools:
        part = pool.fractional * pool.worker.shape.gpus * pool.worker.gpu.price_usd_h * HOURS_PER_MONTH
        if pool.role.value == "colocated":
            prefill_share = candidate.load.prefill_share / max(1e-12, _busy_share(candidate))
            terms["prefill work"] = part * mean_share * prefill_share
            terms["decode work"] = part * mean_share * (1.0 - prefill_share)
        else:
            terms[f"{pool.role.value} work"] = part * mean_share
    at_peak = fractional / (1.0 + spec.headroom)
    terms["peak over mean"] = at_peak - fractional * mean_share
    terms["headroom"] = fractional - at_peak
    spares = sum(
        spec.survive_failures * pool.worker.shape.gpus * pool.worker.gpu.price_usd_h * HOURS_PER_MONTH
        for pool in candidate.pools
    )
    terms["spares for failures"] = spares
    terms["whole workers and queueing"] = candidate.cost.gpu_usd_month - fractional - spares
    queries = workload.mean_rate_per_s * HOURS_PER_MONTH * 3600
    for extra in spec.extras:
        terms[extra.name] = extra.usd_per_month + extra.usd_per_query * queries
    return _shares(terms)


def _busy_share(candidate: Candidate) -> float:
    """Share of a colocated worker's time at work: prefill, and decode steps, which fill the rest while any runs."""
    load = candidate.load
    return load.prefill_share + (1.0 - load.prefill_share) * min(1.0, load.batch_size)
