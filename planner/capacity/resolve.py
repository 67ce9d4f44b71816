"""From a plan file to objects of the cost models: model, GPUs, engine constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from cluster.engine.speculation import Speculation
from cluster.errors import ConfigError
from cluster.hardware.catalogue import GpuSpec, catalogue
from cluster.hardware.engine_constants import EngineConstants, engine_constants
from cluster.model.model_spec import ModelSpec
from decode_workers.cost import DecodeCost
from kv_transfer.blocks import kv_bytes_per_token
from kv_transfer.cost import TransferCost
from kv_transfer.kv_layout import kv_layout
from planner.capacity.lengths import RequestLengths
from planner.capacity.shape import Shape
from planner.capacity.spec import PlanSpec, ScalesPlan

COMPUTE = ("gemm_share", "gemm_fp8_share", "moe_share", "attention_share")
MEMORY = ("memory_share", "moe_memory_share", "kv_share", "all_reduce_share")
OVERHEAD = (
    *("layer_s", "moe_layer_s", "prefill_layer_s", "prefill_moe_layer_s", "token_layer_s"),
    *("step_s", "sequence_s", "all_reduce_s", "first_token_s"),
)


def scaled_constants(engine: EngineConstants, scales: ScalesPlan) -> EngineConstants:
    """The constants with calibrated factors on times: shares are divided by them, overheads multiplied."""
    changed = {key: getattr(engine, key) / scales.compute for key in COMPUTE}
    changed |= {key: getattr(engine, key) / scales.memory for key in MEMORY}
    changed |= {key: getattr(engine, key) * scales.overhead for key in OVERHEAD}
    return engine.with_overrides(**changed)


@dataclass(frozen=True)
class Problem:
    """A plan with everything looked up.

    Args:
        spec: The plan file.
        model: Geometry at the precision asked.
        gpus: Kinds to consider, with the plan's own prices.
        engine: Constants, calibrated.
        lengths: Lengths of one request.
    """

    spec: PlanSpec
    model: ModelSpec
    gpus: tuple[GpuSpec, ...]
    engine: EngineConstants
    lengths: RequestLengths

    @property
    def kv_dtype_bytes(self) -> float:
        """Bytes of one value in the KV cache."""
        stated = self.spec.model.kv_dtype_bytes
        return self.model.kv_dtype_bytes if stated is None else stated

    @property
    def chunk_tokens(self) -> int:
        """Most prompt tokens of one step."""
        return self.spec.engine.max_num_batched_tokens

    @property
    def percentile(self) -> float:
        """Percentile of the objectives, as a probability."""
        return self.spec.slo.percentile / 100.0

    @property
    def rate_per_s(self) -> float:
        """Rate to size for: the peak and the headroom over it."""
        return self.spec.workload.peak_rate_per_s * (1.0 + self.spec.headroom)

    @cached_property
    def kv_token_bytes(self) -> float:
        """KV bytes per token over all GPUs of a worker."""
        return kv_bytes_per_token(self.model, self.kv_dtype_bytes)

    def handoff_bytes(self, tokens: float) -> float:
        """KV bytes that the handoff of a prompt of so many tokens moves, over all GPUs of a worker."""
        if not self.model.hybrid:
            return tokens * self.kv_token_bytes
        layout = kv_layout(
            self.model, block_size_tokens=self.spec.engine.block_size_tokens, kv_dtype_bytes=self.kv_dtype_bytes
        )
        return layout.request_bytes(tokens)

    @cached_property
    def speculation(self) -> Speculation | None:
        """Speculative decoding as the plan states it."""
        stated = self.spec.engine.speculative
        return None if stated is None else Speculation(stated.tokens, stated.acceptance, stated.method == "mtp")

    def cost(self, gpu: GpuSpec, shape: Shape) -> DecodeCost:
        """Cost model of a worker of this shape.

        Raises:
            ConfigError: the model's heads cannot be split so.
            PlacementInfeasible: asked later, for its KV capacity.
        """
        return DecodeCost(
            self.model,
            gpu,
            self.engine,
            shape.tp,
            kv_dtype_bytes=self.kv_dtype_bytes,
            expert_parallel=self.spec.hardware.expert_parallel or shape.dp > 1,
            memory_utilisation=self.spec.engine.memory_utilisation,
            pp=shape.pp,
            dp=shape.dp,
            speculation=self.speculation,
        )

    def transfer(self, gpu: GpuSpec, shape: Shape) -> TransferCost:
        """Cost of a handoff into a worker of this shape: one rank's GPUs take it."""
        return TransferCost.over(self.spec.hardware.link, gpu, shape.tp * shape.pp)


def resolve(spec: PlanSpec) -> Problem:
    """Look everything up.

    Raises:
        ConfigError: unknown model, GPU, engine or constant, or a length beyond what the model was made for.
    """
    model = spec.model.geometry()
    engine = engine_constants(spec.engine.name).with_overrides(**spec.engine.constants)
    lengths = spec.workload.lengths()
    longest = lengths.isl.mean + lengths.osl.mean
    if longest > model.max_context_tokens:
        raise ConfigError(
            f"workload: mean prompt plus output is {longest:.0f} tokens, past the {model.max_context_tokens} "
            f"that {model.name} was made for"
        )
    if lengths.isl.mean < 1:
        raise ConfigError("workload.input_tokens: expected a mean of at least 1 token")
    if lengths.answer.mean < 1 and lengths.reasoning.mean < 1:
        raise ConfigError("workload: expected reasoning_tokens or answer_tokens with a mean of at least 1")
    return Problem(spec, model, _gpus(spec), scaled_constants(engine, spec.engine.scales), lengths)


def _gpus(spec: PlanSpec) -> tuple[GpuSpec, ...]:
    found, known = [], catalogue()
    for name in spec.hardware.gpus:
        override = spec.hardware.overrides.get(name)
        figures = override.model_dump(exclude_none=True) if override is not None else {}
        if name in known:
            gpu = known[name].with_overrides(**figures)
            if "price_usd_h" in figures:
                gpu = replace(gpu, price_source="the plan", price_date="")
        elif figures:
            needed = {"memory_bytes", "hbm_bytes_per_s", "bf16_flops", "pcie_bytes_per_s", "nic_bytes_per_s"}
            if missing := sorted(needed - figures.keys()):
                raise ConfigError(f"hardware.overrides.{name}: a new kind needs {', '.join(missing)}")
            rest = {"fp8_flops": 0.0, "scaleup_bytes_per_s": 0.0, "power_w": 0.0, "price_usd_h": 0.0}
            price = figures.get("price_usd_h", 0.0)
            gpu = GpuSpec(
                name=name, price_low_usd_h=price, price_high_usd_h=price, price_source="the plan", **(rest | figures)
            )
        else:
            raise ConfigError(f"hardware.gpus: {name!r} is unknown; expected one of {', '.join(known)}")
        if not gpu.priced and "price_usd_h" not in figures and name in known:
            raise ConfigError(
                f"hardware.gpus: no price of {name} was surveyed; give hardware.overrides.{name}.price_usd_h"
            )
        found.append(gpu)
    if unused := sorted(set(spec.hardware.overrides) - set(spec.hardware.gpus)):
        raise ConfigError(f"hardware.overrides.{unused[0]}: not among hardware.gpus")
    return tuple(found)
