"""A plan: the fleets that keep the objectives, what they cost, and the answer in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from planner.capacity.pools import Sized
from planner.capacity.resolve import Problem
from planner.capacity.spec import Mode
from planner.capacity.trust import Trust
from planner.capacity.worker_model import Load

PERCENTILES = (50.0, 95.0, 99.0)


@dataclass(frozen=True)
class Latency:
    """Quantiles of one measure, seconds, at ``PERCENTILES``."""

    p50_s: float
    p95_s: float
    p99_s: float

    @classmethod
    def of(cls, quantile: Callable[[float], float]) -> Latency:
        """From a quantile function."""
        return cls(*(quantile(each / 100.0) for each in PERCENTILES))


@dataclass(frozen=True)
class Cost:
    """What a plan costs.

    Args:
        gpu_usd_month: GPUs, all month.
        extra_usd_month: The plan's other lines.
        usd_per_query: All of it over the month's queries.
        usd_per_million_output_tokens: All of it over the month's output tokens.
    """

    gpu_usd_month: float
    extra_usd_month: float
    usd_per_query: float
    usd_per_million_output_tokens: float

    @property
    def usd_month(self) -> float:
        """Everything, a month."""
        return self.gpu_usd_month + self.extra_usd_month


@dataclass(frozen=True)
class Candidate:
    """One fleet that keeps every objective.

    Args:
        mode: How GPUs are shared.
        pools: Prefill and decode, or colocated.
        load: A decoding worker at the peak, none lost.
        ttft: Time to first token.
        ttfat: Time to first answer token.
        itl: Gap between tokens.
        e2e: Whole request.
        transfer_s: Mean handoff, 0 where there is none.
        limit: What binds.
        cost: Dollars.
        trust: Where the numbers come from and how far to trust them.
    """

    mode: Mode
    pools: tuple[Sized, ...]
    load: Load
    ttft: Latency
    ttfat: Latency
    itl: Latency
    e2e: Latency
    transfer_s: float
    limit: str
    cost: Cost
    trust: Trust

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(pool.gpus for pool in self.pools)

    @property
    def fractional_gpus(self) -> float:
        """GPUs, were parts of a worker possible and no worker spare."""
        return sum(pool.fractional * pool.worker.shape.gpus for pool in self.pools)

    @property
    def rounding_loss(self) -> float:
        """Share by which whole workers, queueing slack and spares exceed the fractional need."""
        return self.gpus / self.fractional_gpus - 1.0

    @property
    def fractional_usd_h(self) -> float:
        """Dollars an hour of the fractional fleet."""
        return sum(pool.fractional * pool.worker.shape.gpus * pool.worker.gpu.price_usd_h for pool in self.pools)

    @property
    def label(self) -> str:
        """The fleet in a few words.

        For instance ``2x(1x H100-SXM) prefill + 5x(2x H100-SXM) decode``.
        """
        return " + ".join(
            f"{pool.workers}x({pool.worker.shape}x {pool.worker.gpu.name}) {pool.role.value}" for pool in self.pools
        )


@dataclass(frozen=True)
class Plan:
    """The answer.

    Args:
        problem: What was asked.
        candidates: Fleets that keep every objective, best first.
        rejected: Why other candidates do not, by their description.
    """

    problem: Problem
    candidates: tuple[Candidate, ...]
    rejected: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> Candidate:
        """The plan to deploy."""
        return self.candidates[0]

    def best_of(self, mode: Mode) -> Candidate | None:
        """The best plan of one mode."""
        return next((each for each in self.candidates if each.mode is mode), None)

    @property
    def pareto(self) -> tuple[Candidate, ...]:
        """Plans that no other beats in both cost and end-to-end latency, cheapest first."""
        front: list[Candidate] = []
        for each in sorted(self.candidates, key=lambda c: (c.cost.usd_month, c.e2e.p95_s)):
            if not front or each.e2e.p95_s < front[-1].e2e.p95_s * (1 - 1e-9):
                front.append(each)
        return tuple(front)

    def headline(self) -> str:
        """The answer in one line: what to deploy, what it costs, and why P/D does or does not pay."""
        best = self.best
        text = (
            f"Deploy {best.label}: {best.gpus} GPUs, ${best.cost.usd_month:,.0f} a month, "
            f"${best.cost.usd_per_query:.4f} a query; {self._why()}"
        )
        return text + "."

    def _why(self) -> str:
        same = self.best_of(Mode.COLOCATED)
        split = min(
            (each for each in self.candidates if each.mode is not Mode.COLOCATED),
            key=lambda each: each.cost.usd_month,
            default=None,
        )
        if same is None or split is None:
            only = "disaggregation was not compared" if split is None else "colocation was not compared"
            missing = Mode.COLOCATED if same is None else Mode.DISAGGREGATED
            reason = next((why for name, why in self.rejected.items() if name.startswith(missing.value)), "")
            if missing in self.problem.spec.modes and reason:
                return f"{missing.value} keeps no plan: {reason}"
            return only
        gain = same.cost.usd_month / split.cost.usd_month - 1.0
        whole = (
            f"colocated needs {same.gpus} GPUs and ${same.cost.usd_month:,.0f}, P/D {split.gpus} and "
            f"${split.cost.usd_month:,.0f}"
        )
        same_fraction, split_fraction = same.fractional_usd_h, split.fractional_usd_h
        part = same_fraction / split_fraction - 1.0 if split_fraction > 0 else 0.0
        if gain > 0.005:
            return f"P/D pays: {whole} ({100 * gain:.0f} % more for colocated; {same.limit} binds it)"
        if part > 0.005:
            return f"P/D does not pay at this size: {whole}; it would save {100 * part:.0f} % but for whole workers"
        return f"P/D does not pay: {whole}; both are bound by {split.limit}"
