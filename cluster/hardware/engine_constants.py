"""What one serving engine adds to the roofline: a handful of fitted constants per engine, in a dated table.

``engine_constants.csv`` holds one row per engine and kind of GPU generation, with the data each was fitted on.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from cluster.errors import ConfigError

_TABLE = Path(__file__).parent / "engine_constants.csv"


@dataclass(frozen=True)
class EngineConstants:
    """Constants of one engine. Shares are of the data sheet's peak, 0 to 1 where the sheet is right.

    Args:
        engine: Name: ``vllm``, ``sglang``, ``trtllm``.
        gemm_share: Share of peak bf16 compute that large matrix multiplications reach.
        gemm_fp8_share: Same for fp8 against the fp8 peak.
        moe_share: Share of peak that the experts' grouped multiplications reach.
        memory_share: Share of memory bandwidth when reading weights.
        moe_memory_share: Same for expert weights, which are read in smaller pieces.
        kv_share: Share of memory bandwidth when decode attention reads the KV cache.
        attention_share: Share of bf16 peak that prefill attention reaches.
        softness: Exponent of the norm that blends compute and memory limits; high means the larger one alone.
        layer_s: Time per layer that neither limit explains: launches, norms, rotary, cache writes.
        moe_layer_s: Added per layer with routed experts: gating, permutation, grouped launches.
        prefill_layer_s: Added per layer to a step with a prefill piece in it: such a step runs without captured
            graphs, so its launches show.
        prefill_moe_layer_s: Same, per layer with routed experts.
        token_layer_s: As ``layer_s``, per token and layer: element-wise work that grows with the batch.
        step_s: Time per engine step outside the model: scheduling, sampling, output.
        sequence_s: Same, per running sequence.
        all_reduce_s: Latency of one all-reduce between two GPUs; each doubling of GPUs adds as much again.
        all_reduce_share: Share of the scale-up link's bandwidth that an all-reduce reaches.
        idle_expert_share: Share of the time of an expert's weights that its grouped kernel takes though no token is
            routed to the expert: 0 where only touched experts are read.
        first_token_s: From the request's arrival to the engine's queue, and from the sampled token to the client.
        memory_utilisation: Default share of GPU memory that the engine may use.
        reserved_bytes: Kept back beside weights and KV on each GPU: context, graphs, activations' fixed part.
        reserved_tp_bytes: Kept back in addition when tensor parallel (communication buffers).
        profile_tokens: Tokens of the pass with which the engine measures its activation peak.
        source: Data and method of the fit.
        date: Day of the fit.
    """

    engine: str
    gemm_share: float
    gemm_fp8_share: float
    moe_share: float
    memory_share: float
    moe_memory_share: float
    kv_share: float
    attention_share: float
    softness: float
    layer_s: float
    moe_layer_s: float
    prefill_layer_s: float
    prefill_moe_layer_s: float
    token_layer_s: float
    step_s: float
    sequence_s: float
    all_reduce_s: float
    all_reduce_share: float
    first_token_s: float
    memory_utilisation: float
    reserved_bytes: float
    reserved_tp_bytes: float
    profile_tokens: float
    source: str = ""
    date: str = ""
    idle_expert_share: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                continue
            low = 1e-6 if field.name.endswith(("_share", "softness", "utilisation")) else 0.0
            low = 0.0 if field.name.startswith("idle") else low
            # A share above 1 says that the hardware row understates the hardware, as rows of CPUs often do.
            high = 1.0 if field.name.endswith("utilisation") else float("inf")
            if not low <= value <= high:
                raise ConfigError(f"engine.{self.engine}.{field.name}={value}: expected {low:g} to {high:g}")

    @property
    def prefill_first(self) -> bool:
        """Prompts have steps of their own and decode waits (SGLang), in place of steps that do both."""
        return self.engine.startswith("sglang")

    def with_overrides(self, **values: float) -> EngineConstants:
        """The same engine with some constants replaced.

        Raises:
            ConfigError: no such constant.
        """
        known = {field.name for field in fields(self)} - {"engine", "source", "date"}
        for key in values:
            if key not in known:
                raise ConfigError(f"engine.constants.{key}: unknown; expected one of {', '.join(sorted(known))}")
        return replace(self, **values)  # type: ignore[arg-type]


@cache
def engine_table() -> dict[str, EngineConstants]:
    """All rows of ``engine_constants.csv``, by engine."""
    with _TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = ("engine", "source", "date")
    return {
        row["engine"]: EngineConstants(
            **{key: value if key in text else float(value) for key, value in row.items()}  # type: ignore[arg-type]
        )
        for row in rows
    }


def engine_constants(name: str) -> EngineConstants:
    """Constants of one engine.

    Raises:
        ConfigError: unknown engine; the text lists the known ones.
    Example:
        >>> engine_constants("vllm").memory_utilisation
        0.9
    """
    found = engine_table().get(name)
    if found is None:
        raise ConfigError(f"engine={name!r}: unknown; expected one of {', '.join(engine_table())}")
    return found
