"""One worker under load: batch, step, gaps and first tokens at a rate; colocated or decode alone.

Decode is a fixed point: ``N = rate * E[O] * TPOT(N)`` requests run on a worker, each step reads all their contexts,
and the context of a running request is length-biased. A colocated worker does both in turn:
``TPOT = t_decode(N) / (1 - rate * t_prefill)``, which is ``t_decode + (C / OSL) * t_prefill`` solved for TPOT.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import NormalDist

import numpy as np

from cluster.errors import PlacementInfeasible
from cluster.hardware.catalogue import GpuSpec
from planner.capacity.lengths import Floats
from planner.capacity.queueing import Wait
from planner.capacity.resolve import Problem
from planner.capacity.shape import Shape

KV_PROBABILITY = 0.95
"""How sure the KV cache holds what runs; beyond it the engine preempts."""


def infeasible(limit: str, text: str, excess: float = math.inf) -> PlacementInfeasible:
    """An error that names the limit that binds and by what factor it is passed."""
    return PlacementInfeasible(text, limit=limit, excess=f"{excess:.6g}")


@dataclass(frozen=True)
class Load:
    """One worker at one rate.

    Args:
        rate_per_s: Requests a second.
        batch_size: Requests that decode at a time, mean.
        step_s: A decode step at the mean batch.
        tpot_s: Mean time per output token.
        kv_share: Mean share of the KV capacity in use.
        prefill_share: Share of time that goes to prefill.
    """

    rate_per_s: float
    batch_size: float
    step_s: float
    tpot_s: float
    kv_share: float
    prefill_share: float


class WorkerModel:
    """What one worker of some GPUs of a kind can do for this workload.

    Args:
        problem: The plan, looked up.
        gpu: Kind of GPU.
        shape: How the worker is spread over GPUs; a number stands for tensor parallel alone.
    Raises:
        ConfigError: the model cannot be split so.
        PlacementInfeasible: it does not fit, or one long request does not.
    """

    def __init__(self, problem: Problem, gpu: GpuSpec, shape: Shape | int) -> None:
        self.problem, self.gpu = problem, gpu
        self.shape = Shape(shape) if isinstance(shape, int) else shape
        self.cost = problem.cost(gpu, self.shape)
        self._first_tokens: dict[tuple[int, float, Load | None], Callable[[float], float]] = {}
        self._hit = problem.spec.workload.prefix_hit_share
        lengths = problem.lengths
        self.osl = lengths.osl.mean
        # Half a block is lost at the end of every request.
        half_block = 0.5 * problem.spec.engine.block_size_tokens
        self.context = lengths.in_flight_context_tokens + half_block
        longest = lengths.isl.quantile(0.99) + lengths.osl.quantile(0.99)
        layout = self.cost.kv_layout(problem.spec.engine.block_size_tokens, prefix_cache=self._hit > 0)
        try:
            if layout.plain:
                self.kv_tokens = float(self.cost.kv_capacity_tokens())
                self._held, held_longest = self.context, longest
                self._held_square = lengths.in_flight_context_square + 2 * half_block * self.context
            else:
                # Layers with windows or states hold less than the context: tokens of all block tables are counted.
                unit = layout.block_tokens
                self.kv_tokens = float(self.shape.dp * unit * layout.pool_blocks(self.cost.kv_budget_bytes()))
                contexts, weights = lengths.in_flight_contexts
                held = np.array([unit * layout.blocks(each) for each in contexts])
                self._held, self._held_square = float(held @ weights), float((held**2) @ weights)
                held_longest = unit * layout.blocks(longest)
        except PlacementInfeasible as error:
            raise infeasible("memory", error.message) from error
        if held_longest > self.kv_tokens / self.shape.dp:
            raise infeasible(
                "kv",
                f"a long request holds {longest:.0f} tokens, {self.shape}x {gpu.name} has KV capacity for "
                f"{self.context_capacity_tokens / self.shape.dp:.0f}",
            )

    @property
    def context_capacity_tokens(self) -> float:
        """Tokens of context whose KV fits, for the contexts of this workload."""
        return self.kv_tokens * self.context / self._held

    @cached_property
    def prefill_points_s(self) -> Floats:
        """Seconds to prefill a prompt alone, for each point of the input length."""
        return np.array([self._alone_s(tokens) for tokens in self.problem.lengths.isl.values])

    def _alone_s(self, isl_tokens: float) -> float:
        cached = int(isl_tokens * self._hit)
        done, left, total = cached, max(1, round(isl_tokens) - cached), 0.0
        while left > 0:
            piece = min(left, self.problem.chunk_tokens)
            total += self.cost.mixed_step_s(0, 0, ((piece, done),))
            done, left = done + piece, left - piece
        return total

    @cached_property
    def prefill_work_s(self) -> float:
        """GPU time of one prompt when the worker is busy: short prompts share a step."""
        mean = self.problem.lengths.isl.mean
        cached = int(mean * self._hit)
        new = max(1, round(mean) - cached)
        # Every rank reads prompts of its own, and every stage works on another step.
        together = self.shape.dp * max(1, self.problem.chunk_tokens // new)
        piece = min(new, self.problem.chunk_tokens)
        shared_s = self.cost.mixed_step_s(0, 0, ((piece, cached),) * together) / together
        alone_s = self.cost.mixed_step_s(0, 0, ((piece, cached),))
        factor = min(1.0, shared_s / alone_s) if together > 1 else 1.0
        return factor / self.shape.pp * float(self.prefill_points_s @ self.problem.lengths.isl.weights)

    @cached_property
    def prefill_cv(self) -> float:
        """Spread of prefill times."""
        weights, points = self.problem.lengths.isl.weights, self.prefill_points_s
        mean = float(points @ weights)
        return math.sqrt(max(0.0, float((points**2) @ weights) - mean**2)) / mean

    def step_s(self, batch_size: float) -> float:
        """A decode step of ``batch_size`` requests with average contexts; between whole sizes a straight line."""
        low = max(1, math.floor(batch_size))
        context = int(max(batch_size, 1.0) * self.context)
        first = self.cost.step_s(low, context)
        if batch_size <= low:
            return first
        return first + (batch_size - low) * (self.cost.step_s(low + 1, context) - first)

    def load_at(self, batch_size: float, colocated: bool) -> Load:
        """The worker when ``batch_size`` requests run on average."""
        step_s = self.step_s(batch_size)
        work_s = self.prefill_work_s if colocated else 0.0
        rate = 1.0 / (self.osl * step_s / batch_size + work_s)
        prefill_share = rate * work_s
        return Load(
            rate_per_s=rate,
            batch_size=batch_size,
            step_s=step_s,
            tpot_s=step_s / (1.0 - prefill_share),
            kv_share=batch_size * self._held / self.kv_tokens,
            prefill_share=prefill_share,
        )

    def load(self, rate_per_s: float, colocated: bool) -> Load:
        """The worker at a rate; the batch is found by bisection, for the rate grows with it."""
        low, high = 1e-9, 1.0
        while self.load_at(high, colocated).rate_per_s < rate_per_s and high < 1e6:
            high *= 2.0
        for _ in range(44):
            middle = 0.5 * (low + high)
            if self.load_at(middle, colocated).rate_per_s < rate_per_s:
                low = middle
            else:
                high = middle
        return self.load_at(high, colocated)

    def itl_s(self, load: Load, probability: float, colocated: bool) -> float:
        """Quantile of the gap between tokens: a larger batch than the mean and, colocated, a prefill in the step."""
        batch = load.batch_size + max(0.0, NormalDist().inv_cdf(probability)) * math.sqrt(load.batch_size)
        step_s = self.step_s(max(batch, 1.0))
        if not colocated:
            return step_s
        isl = self.problem.lengths.isl
        chunks = max(1.0, isl.mean * (1 - self._hit) / self.problem.chunk_tokens)
        mixed_share = min(1.0, load.rate_per_s * chunks * load.tpot_s)
        if mixed_share <= 1.0 - probability:
            return step_s
        among = 1.0 - (1.0 - probability) / mixed_share
        prompt = isl.quantile(among) * (1 - self._hit)
        piece = max(1, min(round(prompt), self.problem.chunk_tokens))
        return step_s + self.cost.mixed_step_s(0, 0, ((piece, 0),))

    def kv_needed_tokens(self, batch_size: float) -> float:
        """Tokens that a batch holds at the probability ``KV_PROBABILITY``: mean and spread of a sum of contexts.

        Each rank has a pool of its own, so the spread is that of its part of the batch.
        """
        spread = NormalDist().inv_cdf(KV_PROBABILITY) * math.sqrt(batch_size * self.shape.dp * self._held_square)
        return batch_size * self._held + spread

    def most_batch(self, tpot_limit_s: float, colocated: bool) -> tuple[float, str]:
        """Largest mean batch within every limit, and the name of the limit that binds.

        Raises:
            PlacementInfeasible: a single request already breaks one.
        """
        slo, probability = self.problem.spec.slo, self.problem.percentile

        def broken(batch_size: float) -> str:
            load = self.load_at(batch_size, colocated)
            if slo.itl_s is not None and self.itl_s(load, probability, colocated) > slo.itl_s:
                return "itl"
            if load.tpot_s > tpot_limit_s:
                return "e2e"
            if batch_size > self.problem.spec.engine.max_num_seqs * self.shape.dp * self.shape.pp:
                return "max_num_seqs"
            # The spread of one request alone is checked by its own 99th percentile.
            return "kv" if batch_size > 1 and self.kv_needed_tokens(batch_size) > self.kv_tokens else ""

        if limit := broken(1e-6):
            itl_ms = 1e3 * self.itl_s(self.load_at(1e-6, colocated), probability, colocated)
            where = f"{self.shape}x {self.gpu.name}"
            if limit == "itl":
                asked_ms = 1e3 * (slo.itl_s or 0.0)
                text = f"a request alone has gaps of {itl_ms:.1f} ms between tokens on {where}, {asked_ms:g} ms asked"
                raise infeasible("itl", text, itl_ms / asked_ms)
            left_ms, step_ms = 1e3 * tpot_limit_s, 1e3 * self.load_at(1e-6, colocated).tpot_s
            text = f"a request alone takes {step_ms:.1f} ms a token on {where}, the objective leaves {left_ms:.1f} ms"
            raise infeasible("e2e", text, step_ms / left_ms if left_ms > 0 else 1e9 - left_ms)
        low, high, limit = 1e-6, 1.0, ""
        while not (limit := broken(high)):
            low, high = high, high * 2.0
        for _ in range(44):
            middle = 0.5 * (low + high)
            found = broken(middle)
            if found:
                high, limit = middle, found
            else:
                low = middle
        return low, limit

    def first_token(self, workers: int, rate_per_s: float, load: Load | None = None) -> Callable[[float], float]:
        """Quantiles of TTFT with ``workers`` such workers sharing ``rate_per_s``; ``load`` where they decode too."""
        key = (workers, rate_per_s, load)
        found = self._first_tokens.get(key)
        if found is None:
            found = self._first_tokens[key] = self._first_token(workers, rate_per_s, load)
        return found

    def _first_token(self, workers: int, rate_per_s: float, load: Load | None) -> Callable[[float], float]:
        decode_s = load.step_s if load is not None else 0.0
        chunks = max(1.0, self.problem.lengths.isl.mean * (1 - self._hit) / self.problem.chunk_tokens)
        service_s = self.prefill_work_s + decode_s * (chunks if load is not None else 0.0)
        arrival_cv = self.problem.spec.workload.arrival_cv
        wait = Wait.before(workers, rate_per_s, service_s, self.prefill_cv, arrival_cv)
        # A colocated worker ends the step it is in before it begins a prompt, and decodes beside the prompt.
        points = self.prefill_points_s + self.cost.roofline.engine.first_token_s + (0.5 + chunks) * decode_s
        weights = self.problem.lengths.isl.weights
        return cache(lambda probability: wait.quantile_with(probability, points, weights))
