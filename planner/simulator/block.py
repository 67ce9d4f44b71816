"""The ``workload:`` block of scenarios and plans: a trace file, or arrivals and lengths to draw from, and changes.

A workload is a distribution: a bare mean is taken with a coefficient of variation of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from cluster.errors import ConfigError
from cluster.spec.settings import Settings
from planner.simulator import arrivals as arr
from planner.simulator import lengths as dist
from planner.simulator import traces
from planner.simulator.trace_formats.reading import TraceOptions, TraceReading, Unit
from planner.simulator.workload import Change, Workload, merge


class FixedBlock(Settings):
    """One length for all, as load generators send it."""

    kind: Literal["fixed"]
    tokens: int = Field(ge=0)

    def build(self) -> dist.Lengths:
        """The distribution."""
        return dist.Fixed(self.tokens)


class MeanBlock(Settings):
    """A mean and a coefficient of variation: a lognormal."""

    kind: Literal["mean"]
    mean_tokens: float = Field(gt=0)
    cv: float = Field(1.0, ge=0)

    def build(self) -> dist.Lengths:
        """The distribution."""
        return dist.LogNormal.of_mean(self.mean_tokens, self.cv)


class LogNormalBlock(Settings):
    """A lognormal, by median and spread of the logarithm."""

    kind: Literal["lognormal"]
    median_tokens: float = Field(gt=0)
    sigma: float = Field(ge=0)
    min_tokens: int = Field(1, ge=0)
    max_tokens: int = Field(1 << 20, ge=1)

    def build(self) -> dist.LogNormal:
        """The distribution."""
        return dist.LogNormal(self.median_tokens, self.sigma, self.min_tokens, self.max_tokens)


class PartBlock(LogNormalBlock):
    """One part of a mixture."""

    kind: Literal["lognormal"] = "lognormal"
    weight: float = Field(ge=0)


class MixtureBlock(Settings):
    """Several lognormals."""

    kind: Literal["mixture"]
    parts: list[PartBlock] = Field(min_length=1)

    def build(self) -> dist.Lengths:
        """The distribution."""
        return dist.Mixture(tuple((part.weight, part.build()) for part in self.parts))


class QuantilesBlock(Settings):
    """Values of the inverse distribution at even steps from 0 to 1."""

    kind: Literal["quantiles"]
    values: list[float] = Field(min_length=2)

    def build(self) -> dist.Lengths:
        """The distribution."""
        return dist.Quantiles(tuple(self.values))


LengthBlock = Annotated[
    FixedBlock | MeanBlock | LogNormalBlock | MixtureBlock | QuantilesBlock, Field(discriminator="kind")
]


class ArrivalsBlock(Settings):
    """When requests come: a rate (steady, a daily wave, or knots over time) and the character of the gaps."""

    rate_per_s: float = Field(ge=0)
    """Mean rate; with ``rates`` a factor on them."""
    gaps: Literal["poisson", "gamma", "weibull"] = "poisson"
    shape: float = Field(1.0, gt=0)
    """Of Gamma or Weibull gaps; below 1 comes in bursts."""
    swing: float = Field(0.0, ge=0, le=1)
    """Depth of a daily wave with its peak at ``peak_s``; 0 is steady."""
    peak_s: float = 50400.0
    times_s: list[float] = Field(default_factory=list)
    """Knots of a rate profile, with ``rates``."""
    rates: list[float] = Field(default_factory=list)

    def draw(self, duration_s: float, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Arrival times."""
        if self.times_s or self.rates:
            profile = arr.Profile(tuple(self.times_s), tuple(self.rates)).scaled(self.rate_per_s)
        elif self.swing:
            days = int(np.ceil(duration_s / 86400.0))
            profile = arr.Profile.diurnal(self.rate_per_s, self.swing, peak_s=self.peak_s, days=days)
        else:
            profile = arr.Profile.steady(self.rate_per_s)
        times = arr.arrivals(arr.Gaps(self.gaps, self.shape), profile, duration_s, rng)
        return np.asarray(times)


class PhaseBlock(Settings):
    """A stretch of time with arrivals and lengths of its own."""

    duration_s: float = Field(gt=0)
    arrivals: ArrivalsBlock
    isl_tokens: LengthBlock
    reasoning_tokens: LengthBlock | None = None
    """Left out, the model does not think."""
    answer_tokens: LengthBlock
    correlation: float = Field(0.0, gt=-1, lt=1)
    """Of the normal scores of reasoning and answer."""
    cached_share: float = Field(0.0, ge=0, le=1)
    """Share of each prompt that is found in the prefix cache."""
    tenant: str = ""
    priority: int = 0

    def draw(self, rng: np.random.Generator) -> Workload:
        """The requests of this phase, from time 0."""
        arrival_s = self.arrivals.draw(self.duration_s, rng)
        count = len(arrival_s)
        isl = np.maximum(1, dist.sample(self.isl_tokens.build(), count, rng))
        answer_of = self.answer_tokens.build()
        if self.reasoning_tokens is None:
            answer, reasoning = dist.sample(answer_of, count, rng), np.zeros(count, np.int64)
        else:
            reasoning, answer = dist.sample_pair(self.reasoning_tokens.build(), answer_of, self.correlation, count, rng)
        return Workload(
            arrival_s,
            isl,
            reasoning,
            np.maximum(answer, reasoning == 0),
            cached_tokens=np.rint(isl * self.cached_share).astype(np.int64),
            tenants=(self.tenant,),
            priority=np.full(count, self.priority, np.int64),
        )


class TraceBlock(Settings):
    """A trace file. ServeGen takes two: the client windows here, the length quantiles beside them."""

    path: str = Field(min_length=1)
    """Relative to the file that names it."""
    format: str = "auto"
    """Name of a format (docs/simulator.md has them); auto finds it."""
    unit: Unit = "auto"
    """Of times that are numbers; auto takes the format's own."""
    rate_per_s: float | None = Field(None, gt=0)
    """Arrivals (Poisson) for a file without times."""
    tokenizer: str | None = None
    """A tokenizer.json or the folder of one, for text; relative to the file that names it."""
    chars_per_token: float | None = Field(None, gt=0)
    """In place of a tokenizer, an estimate."""
    block_tokens: int | None = Field(None, ge=1)
    """Prompt tokens to one of hash_ids; left out, found by their number."""
    quantiles_path: str | None = None
    """ServeGen only."""
    start_s: float = Field(0.0, ge=0)
    end_s: float | None = Field(None, gt=0)

    def options(self, folder: Path = Path()) -> TraceOptions:
        """What it says about the file."""
        tokenizer = folder / self.tokenizer if self.tokenizer is not None else None
        return TraceOptions(self.unit, tokenizer, self.chars_per_token, self.block_tokens)

    def read(self, folder: Path = Path(), *, rate: float = 1.0, seed: int = 0) -> TraceReading:
        """Read requests that come at times, as `read_any`.

        Raises:
            ConfigError: as for `read_any`, or the file says no times and nor does the block.
        """
        return traces.need_times(folder / self.path, self.read_any(folder, rate=rate, seed=seed))

    def read_any(self, folder: Path = Path(), *, rate: float = 1.0, seed: int = 0) -> TraceReading:
        """Read the requests between ``start_s`` and ``end_s``; ServeGen's are drawn at ``rate`` times theirs.

        Raises:
            ConfigError: as for `traces.load`.
        """
        path = folder / self.path
        quantiles = folder / self.quantiles_path if self.quantiles_path is not None else None
        if self.draws(folder):
            day = traces.servegen(path, quantiles)
            rng = np.random.default_rng(seed)
            drawn = day.draw(rng, rate=rate, start_s=self.start_s, end_s=self.end_s or 86400.0)
            return TraceReading("servegen", drawn, "s", True, notes=(traces.DRAWN,))
        reading = traces.load(path, self.options(folder), form=self.format, rate_per_s=self.rate_per_s, seed=seed)
        workload = reading.workload
        if self.start_s or self.end_s is not None:
            workload = workload.between(self.start_s, self.end_s if self.end_s is not None else float("inf"))
            if not len(workload):
                last_s = reading.workload.duration_s
                raise ConfigError(f"{path}: no request between start_s and end_s: the last comes at {last_s:,.0f} s")
        return replace(reading, workload=workload, start_s=reading.start_s + self.start_s)

    def draws(self, folder: Path = Path()) -> bool:
        """Whether the requests are drawn, so that another rate is one of drawing."""
        return self.format == "servegen" or (self.format == "auto" and traces.detect(folder / self.path) == "servegen")


class ChangeBlock(Settings):
    """What-if: factors on rate, lengths and spread."""

    rate: float = Field(1.0, ge=0)
    isl: float = Field(1.0, ge=0)
    reasoning: float = Field(1.0, ge=0)
    answer: float = Field(1.0, ge=0)
    spread: float = Field(1.0, ge=0)
    cached: float = Field(1.0, ge=0)


class WorkloadBlock(Settings):
    """What comes in. Either a trace or phases, one after the other; phases with ``together`` run at the same time."""

    trace: TraceBlock | None = None
    phases: list[PhaseBlock] = Field(default_factory=list)
    together: bool = False
    change: ChangeBlock = ChangeBlock()
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> WorkloadBlock:
        if (self.trace is None) == (not self.phases):
            raise ValueError("give either trace or phases")
        return self

    def build(
        self, folder: Path = Path(), on_trace: Callable[[TraceReading], None] | None = None, *, timed: bool = True
    ) -> Workload:
        """Draw or read the requests.

        Args:
            folder: What relative paths start from.
            on_trace: Called with what was read from a trace.
            timed: Whether times of arrival are needed; clients of a closed loop do without.
        Raises:
            ConfigError: a file cannot be read, or nothing comes of it.
        """
        rng = np.random.default_rng(self.seed)
        rate = self.change.rate
        if self.trace is None:
            workload = self._draw(rng)
        else:
            read = self.trace.read if timed else self.trace.read_any
            reading = read(folder, rate=rate, seed=self.seed)
            if on_trace is not None:
                on_trace(reading)
            workload, rate = reading.workload, 1.0 if reading.format == "servegen" else rate
        changes = Change(**{**self.change.model_dump(), "rate": rate})
        workload = changes.apply(workload, rng)
        if not len(workload):
            raise ConfigError("workload: no request comes of it; raise rate or duration")
        return workload

    def _draw(self, rng: np.random.Generator) -> Workload:
        parts, start_s = [], 0.0
        for phase in self.phases:
            part = phase.draw(rng)
            parts.append(part.rows(np.arange(len(part)), part.arrival_s + start_s))
            start_s += 0.0 if self.together else phase.duration_s
        return merge(parts)
