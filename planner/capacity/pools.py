"""How many workers a rate needs: prefill, decode and colocated pools, first in parts of a worker, then in whole ones.

The largest batch within every limit gives the rate of one worker. Prefill is a queue in front of the pool's workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cluster.spec.config import Role
from planner.capacity.worker_model import WorkerModel, infeasible

MOST_WORKERS = 100_000


def smallest(fits: Callable[[int], bool], start: int) -> int | None:
    """Smallest whole number from ``start`` on that fits, where fitting never stops once begun."""
    low, high = start - 1, start
    while not fits(high):
        low, high = high, high * 2
        if high > MOST_WORKERS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


@dataclass(frozen=True)
class Sized:
    """A pool with enough workers.

    Args:
        role: What they do.
        worker: One of them.
        fractional: Workers needed were parts of one possible.
        workers: Workers to deploy, spares for failures included.
        limit: What binds one worker.
    """

    role: Role
    worker: WorkerModel
    fractional: float
    workers: int
    limit: str

    @property
    def gpus(self) -> int:
        """GPUs of the pool."""
        return self.workers * self.worker.shape.gpus

    @property
    def usd_h(self) -> float:
        """Dollars an hour."""
        return self.gpus * self.worker.gpu.price_usd_h


def size_prefill(worker: WorkerModel, rate_per_s: float) -> Sized:
    """The smallest prefill pool that keeps the TTFT objective, spares included.

    Raises:
        PlacementInfeasible: a prompt alone takes longer than the objective.
    """
    problem = worker.problem
    slo, probability, spares = problem.spec.slo, problem.percentile, problem.spec.survive_failures
    busy = rate_per_s * worker.prefill_work_s
    limit_s = min((each for each in (slo.ttft_s, slo.ttfat_s, slo.e2e_s) if each is not None), default=math.inf)
    if worker.first_token(1, 0.0)(probability) > limit_s:
        alone_s = worker.first_token(1, 0.0)(probability)
        raise infeasible(
            "ttft",
            f"a prompt alone takes {alone_s:.2f} s to its first token at p{problem.spec.slo.percentile:g} on "
            f"{worker.shape}x {worker.gpu.name}, {limit_s:g} s asked",
            alone_s / limit_s,
        )
    start = max(1, math.ceil(busy + 1e-9))

    def fits(workers: int) -> bool:
        if busy >= workers * (1 - 1e-9):
            return False
        return limit_s == math.inf or worker.first_token(workers, rate_per_s)(probability) <= limit_s

    found = smallest(fits, start)
    if found is None:
        raise infeasible("ttft", f"more than {MOST_WORKERS} prefill workers")
    return Sized(Role.PREFILL, worker, busy, found + spares, "ttft" if found > start else "prefill compute")


def size_decode(worker: WorkerModel, rate_per_s: float, tpot_limit_s: float) -> Sized:
    """The smallest decode pool that keeps ITL, KV capacity and the whole request's time, spares included.

    Raises:
        PlacementInfeasible: a single request already breaks a limit.
    """
    batch, limit = worker.most_batch(tpot_limit_s, colocated=False)
    fractional = rate_per_s / worker.load_at(batch, colocated=False).rate_per_s
    whole = max(1, math.ceil(fractional - 1e-9))
    return Sized(Role.DECODE, worker, fractional, whole + worker.problem.spec.survive_failures, limit)


def size_colocated(worker: WorkerModel, rate_per_s: float, tpot_limit_s: float) -> Sized:
    """The smallest colocated pool that keeps every objective, spares included.

    Raises:
        PlacementInfeasible: a single request already breaks a limit.
    """
    slo, probability = worker.problem.spec.slo, worker.problem.percentile
    batch, limit = worker.most_batch(tpot_limit_s, colocated=True)
    fractional = rate_per_s / worker.load_at(batch, colocated=True).rate_per_s
    start = max(1, math.ceil(fractional - 1e-9))
    if slo.ttft_s is not None:
        ttft_s = slo.ttft_s
        alone_s = worker.first_token(1, 0.0, worker.load_at(1e-6, True))(probability)
        if alone_s > ttft_s:
            text = f"a prompt alone takes {alone_s:.2f} s on {worker.shape}x {worker.gpu.name}, {ttft_s:g} s asked"
            raise infeasible("ttft", text, alone_s / ttft_s)

        def fits(workers: int) -> bool:
            load = worker.load(rate_per_s / workers, True)
            return worker.first_token(workers, rate_per_s, load)(probability) <= ttft_s

        found = smallest(fits, start)
        if found is None:
            raise infeasible("ttft", f"more than {MOST_WORKERS} colocated workers")
        limit = "ttft" if found > start else limit
        start = found
    return Sized(Role.COLOCATED, worker, fractional, start + worker.problem.spec.survive_failures, limit)
