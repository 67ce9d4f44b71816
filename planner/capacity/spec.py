"""The plan file: what to serve, on what, how much of it, how well, and what to look for.

Every key has its unit in its name; an unknown key is an error that names its path.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import Field, model_validator

from cluster.errors import ConfigError
from cluster.model.model_choice import ModelChoice
from cluster.spec.settings import Settings
from planner.capacity.lengths import DEFAULT_CV, LengthDistribution, RequestLengths
from planner.capacity.trace_plan import TracePlan

HOURS_PER_MONTH = 730.5
SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600


class Mode(StrEnum):
    """How prefill and decode share GPUs."""

    COLOCATED = "colocated"
    DISAGGREGATED = "disaggregated"
    MIXED_GPUS = "mixed_gpus"


class ScalesPlan(Settings):
    """What ``baton calibrate`` found: factors on modelled times. 1 leaves them alone."""

    compute: float = Field(1.0, gt=0.05, lt=20)
    """On time bound by compute (prefill)."""
    memory: float = Field(1.0, gt=0.05, lt=20)
    """On time bound by memory (decode)."""
    overhead: float = Field(1.0, gt=0.05, lt=20)
    """On time per layer, step, sequence and request."""
    source: str = ""
    """Measured points they come from; any text makes results ``measured``."""


class SpeculativePlan(Settings):
    """Speculative decoding: an assumption of yours, stated, not a figure of ours."""

    method: Literal["mtp", "ngram"] = "mtp"
    """The source of drafts: the model's MTP layer, or n-grams of the text so far."""
    tokens: int = Field(1, ge=1, le=16)
    """Tokens proposed in each step."""
    acceptance: float = Field(gt=0, le=1)
    """Share of proposed tokens accepted, given that those before were; measure it on your own traffic."""


class EnginePlan(Settings):
    """The serving engine."""

    name: str = "vllm"
    """Row of ``cluster/hardware/engine_constants.csv``."""
    memory_utilisation: float = Field(0.9, gt=0, le=1)
    """Share of GPU memory for weights, activations and KV."""
    max_num_seqs: int = Field(256, ge=1)
    """Most requests in one step."""
    max_num_batched_tokens: int = Field(8192, ge=64)
    """Most tokens in one step."""
    block_size_tokens: int = Field(32, ge=1)
    """Tokens per KV block."""
    speculative: SpeculativePlan | None = None
    """Tokens proposed ahead of the model; left out, none."""
    constants: dict[str, float] = Field(default_factory=dict)
    """Constants that replace those of the table."""
    scales: ScalesPlan = ScalesPlan()
    """Calibration."""


class CustomGpu(Settings):
    """A GPU (or CPU) that the catalogue lacks, or figures that replace the catalogue's."""

    memory_bytes: float | None = Field(None, gt=0)
    """What a process can see."""
    hbm_bytes_per_s: float | None = Field(None, gt=0)
    """Peak memory bandwidth."""
    bf16_flops: float | None = Field(None, gt=0)
    """Dense bf16 peak."""
    fp8_flops: float | None = Field(None, ge=0)
    """Dense fp8 peak, 0 for none."""
    scaleup_bytes_per_s: float | None = Field(None, ge=0)
    """NVLink, one direction; 0 for none."""
    pcie_bytes_per_s: float | None = Field(None, gt=0)
    """PCIe, one direction."""
    nic_bytes_per_s: float | None = Field(None, gt=0)
    """This GPU's share of the network, one direction."""
    power_w: float | None = Field(None, ge=0)
    """Board power."""
    price_usd_h: float | None = Field(None, ge=0)
    """Your price an hour."""


class PoolShapes(Settings):
    """What one pool may be made of, where that differs from the rest."""

    gpus: list[str] | None = Field(None, min_length=1)
    """Kinds, among ``hardware.gpus``."""
    tensor_parallel: list[int] | None = Field(None, min_length=1)
    """GPUs over which matrices are split."""
    pipeline_parallel: list[int] | None = Field(None, min_length=1)
    """Stages over which layers are split."""
    data_parallel: list[int] | None = Field(None, min_length=1)
    """Ranks with attention of their own that share the experts."""


class HardwarePlan(Settings):
    """GPUs to consider."""

    gpus: list[str] = Field(default_factory=lambda: ["H100-SXM", "H200-SXM"], min_length=1)
    """Kinds, by catalogue name or by a name under ``overrides``."""
    overrides: dict[str, CustomGpu] = Field(default_factory=dict)
    """Figures that replace the catalogue's (prices above all), or a whole new kind."""
    tensor_parallel: list[int] = Field(default_factory=lambda: [1, 2, 4, 8], min_length=1)
    """Sizes to consider."""
    pipeline_parallel: list[int] = Field(default_factory=lambda: [1], min_length=1)
    """Pipeline stages to consider."""
    data_parallel: list[int] = Field(default_factory=lambda: [1], min_length=1)
    """Ranks to consider that have attention of their own and share experts placed whole (wide EP)."""
    prefill: PoolShapes = PoolShapes()
    """What prefill workers may be, where other than the above."""
    decode: PoolShapes = PoolShapes()
    """What decode workers may be, where other than the above."""
    expert_parallel: bool = False
    """Place experts whole; with ``data_parallel`` above 1 they always are."""
    link: Literal["nvlink", "rdma", "tcp", "shared_memory", "infinite"] = "rdma"
    """What lies between prefill and decode workers."""
    max_gpus: int | None = Field(None, ge=1)
    """GPUs that can be had."""


class LengthPlan(Settings):
    """One length: mean with spread, fixed, or quantiles."""

    mean: float | None = Field(None, ge=0)
    """Mean, tokens."""
    cv: float | None = Field(None, ge=0, le=10)
    """Coefficient of variation. Left out with a mean, 1 is taken, never 0."""
    quantiles: dict[float, float] | None = None
    """Inverse CDF: probability to tokens."""
    cap: float | None = Field(None, ge=0)
    """Budget: longer ones are cut here, tokens."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"mean": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check(self) -> LengthPlan:
        if (self.mean is None) == (self.quantiles is None):
            raise ValueError("give mean or quantiles")
        return self

    @property
    def assumed_cv(self) -> bool:
        """The spread was not given and 1 is taken."""
        return self.mean is not None and self.cv is None and self.mean > 0

    def distribution(self) -> LengthDistribution:
        """The lengths."""
        if self.quantiles is not None:
            found = LengthDistribution.from_quantiles(self.quantiles)
        else:
            assert self.mean is not None
            found = LengthDistribution.lognormal(self.mean, DEFAULT_CV if self.cv is None else self.cv)
        return found if self.cap is None else found.capped(self.cap)


class UsersPlan(Settings):
    """Demand as people and their habits, in place of a rate."""

    per_month: float = Field(gt=0)
    """Active users a month."""
    queries_per_user_month: float = Field(gt=0)
    """Queries of each."""


class WorkloadPlan(Settings):
    """What arrives."""

    trace: TracePlan | None = None
    """A trace file that says the rest."""

    rate_per_s: float | None = Field(None, gt=0)
    """Mean requests a second."""
    users: UsersPlan | None = None
    """Users in place of a rate."""
    peak_to_mean: float = Field(1.0, ge=1)
    """Busiest hour over the mean; the fleet is sized for the peak and paid all month."""
    arrival_cv: float = Field(1.0, ge=0, le=10)
    """Spread of gaps between arrivals; 1 is Poisson."""
    input_tokens: LengthPlan
    """Prompt."""
    reasoning_tokens: LengthPlan = LengthPlan(mean=0)
    """Reasoning, before the answer."""
    answer_tokens: LengthPlan
    """Answer."""
    prefix_hit_share: float = Field(0.0, ge=0, lt=1)
    """Share of prompt tokens found in the prefix cache."""

    @model_validator(mode="after")
    def _check(self) -> WorkloadPlan:
        if (self.rate_per_s is None) == (self.users is None):
            raise ValueError("give rate_per_s or users")
        return self

    @property
    def mean_rate_per_s(self) -> float:
        """Mean requests a second."""
        if self.rate_per_s is not None:
            return self.rate_per_s
        assert self.users is not None
        return self.users.per_month * self.users.queries_per_user_month / SECONDS_PER_MONTH

    @property
    def peak_rate_per_s(self) -> float:
        """Requests a second in the busiest hour."""
        return self.mean_rate_per_s * self.peak_to_mean

    def lengths(self) -> RequestLengths:
        """Lengths of one request."""
        return RequestLengths(
            self.input_tokens.distribution(), self.reasoning_tokens.distribution(), self.answer_tokens.distribution()
        )


class SloPlan(Settings):
    """Objectives at a percentile; what is left out is not asked."""

    percentile: float = Field(95, gt=0, lt=100)
    """Percentile of all objectives."""
    ttft_s: float | None = Field(2.0, gt=0)
    """Time to first token."""
    ttfat_s: float | None = Field(None, gt=0)
    """Time to first answer token."""
    itl_s: float | None = Field(0.05, gt=0)
    """Gap between tokens."""
    e2e_s: float | None = Field(None, gt=0)
    """Whole request."""


class ExtraPlan(Settings):
    """One more line of the bill."""

    name: str = Field(min_length=1)
    """What it is."""
    usd_per_month: float = Field(0.0, ge=0)
    """Fixed part."""
    usd_per_query: float = Field(0.0, ge=0)
    """Part that grows with queries."""


class SimulatePlan(Settings):
    """Check of the finalists in the simulator."""

    finalists: int = Field(3, ge=0)
    """Best plans to simulate; 0 for none."""
    requests: int = Field(2000, ge=10)
    """Requests to simulate for each."""
    seed: int = Field(0, ge=0)
    """Seed of the workload."""


class PlanSpec(Settings):
    """One plan file."""

    name: str = Field("plan", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the cluster to be. Kubernetes takes lower case, digits and dashes: see `kubernetes_name`."""
    model: ModelChoice
    """The model."""
    engine: EnginePlan = EnginePlan()
    """The engine."""
    hardware: HardwarePlan = HardwarePlan()
    """The GPUs."""
    workload: WorkloadPlan
    """The demand."""
    slo: SloPlan = SloPlan()
    """The objectives."""
    objective: Literal["cost_per_query", "cost_per_million_tokens", "latency", "pareto"] = "cost_per_query"
    """What makes one plan better than another."""
    modes: list[Mode] = Field(default_factory=lambda: list(Mode), min_length=1)
    """Ways to share GPUs that may be chosen."""
    headroom: float = Field(0.1, ge=0, le=10)
    """Extra rate that the fleet must carry within the objectives; 0.1 is ten percent."""
    survive_failures: int = Field(0, ge=0)
    """Workers of each pool that may be lost with the objectives still kept (n+k)."""
    extras: list[ExtraPlan] = Field(default_factory=list)
    """Other lines of the bill."""
    simulate: SimulatePlan = SimulatePlan()
    """Check of the finalists."""


def kubernetes_name(name: str) -> str:
    """A plan's name in the form that Kubernetes and the cluster spec take.

    Example:
        >>> kubernetes_name("llama_plain"), kubernetes_name("Llama-3.1_70B.")
        ('llama-plain', 'llama-3-1-70b')
    """
    return re.sub(r"[^a-z0-9-]", "-", name.lower()).strip("-") or "plan"


def parse(tree: Any, *, source: str = "plan") -> PlanSpec:
    """Check a plan given as a mapping.

    Raises:
        ConfigError: an unknown key, a wrong value; the text names the key.
    Example:
        >>> parse({"modle": 1})
        Traceback (most recent call last):
            ...
        cluster.errors.ConfigError: plan: model: missing; workload: missing; modle: unknown key
    """
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected keys such as `model:` and `workload:`, got {type(tree).__name__}")
    try:
        return PlanSpec.model_validate(tree)
    except pydantic.ValidationError as error:
        problems = []
        for item in error.errors():
            path = ".".join(str(part) for part in item["loc"])
            text = {"missing": "missing", "extra_forbidden": "unknown key"}.get(item["type"])
            if text is None:
                text = item["msg"].removeprefix("Value error, ")
                text = text if item["type"] == "value_error" else f"{text[0].lower()}{text[1:]}, got {item['input']!r}"
            problems.append(f"{path}: {text}" if path else text)
        raise ConfigError(f"{source}: {'; '.join(problems)}") from error


def load(path: Path) -> PlanSpec:
    """Read and check a plan file.

    Raises:
        ConfigError: not readable, not YAML, or wrong; the text names the key.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the plan {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if isinstance(tree, dict):
        # Reads with the simulator's readers, which a plan without a trace does without.
        from planner.capacity.trace_demand import with_trace

        tree = with_trace(tree, path.parent)
    return parse(tree, source=str(path))
