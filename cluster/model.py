"""Geometry of a language model, read from its ``config.json``: what memory and time follow from.

Only facts of the checkout live here: layer counts, widths, experts, attention kind, stored precision.
Parameter counts are exact for the dense GQA families (checked against published totals in the tests).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import ConfigError

_PRESETS = Path(__file__).parent / "models.yaml"


class Precision(StrEnum):
    """How the linear layers' weights are stored. Embeddings, norms and the output head stay in bf16."""

    BF16 = "bf16"
    FP8 = "fp8"
    FP8_BLOCK = "fp8_block"
    INT4 = "int4"
    MXFP4 = "mxfp4"

    @property
    def weight_bytes(self) -> float:
        """Bytes per weight, scales included (block scales: one per 128x128, 32 or 128 values)."""
        return {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int4": 0.5625, "mxfp4": 0.53125}[self.value]

    @property
    def computes_in_fp8(self) -> bool:
        """True where the tensor cores multiply in fp8; 4-bit weights are widened to bf16 on Hopper."""
        return self in (Precision.FP8, Precision.FP8_BLOCK)


@dataclass(frozen=True)
class ModelSpec:
    """Geometry of one model. Widths are in elements, before any tensor-parallel sharding.

    Args:
        name: What the operator calls it.
        layers: Transformer blocks.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key/value heads; fewer than ``heads`` under GQA. Ignored for MLA.
        head_dim: Width of one head.
        vocab: Rows of the embedding.
        intermediate: Width of a dense MLP (gate, up and down).
        experts: Routed experts of a mixture-of-experts layer, 0 for a dense model.
        experts_per_token: Routed experts each token goes through.
        shared_experts: Experts every token goes through.
        expert_intermediate: Width of one routed expert.
        dense_layers: Leading layers with a dense MLP in a mixture-of-experts model.
        kv_lora_rank: MLA latent width; 0 means GQA.
        qk_rope_head_dim: MLA rotary width, kept beside the latent.
        qk_nope_head_dim: MLA query/key width without rotary part.
        v_head_dim: MLA value width.
        q_lora_rank: MLA query compression, 0 for none.
        sliding_window_tokens: Window of the sliding layers, 0 for none.
        sliding_layers: How many layers attend only to the window.
        tied_embeddings: The output head shares the embedding's weights.
        precision: Stored precision of the linear layers.
        quantised_experts_only: Attention stays in bf16 (gpt-oss).
        max_context_tokens: The longest sequence the checkpoint was made for.

    Example:
        >>> ModelSpec.named("Llama-3.1-8B").params
        8029995008
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    intermediate: int
    experts: int = 0
    experts_per_token: int = 0
    shared_experts: int = 0
    expert_intermediate: int = 0
    dense_layers: int = 0
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    qk_nope_head_dim: int = 0
    v_head_dim: int = 0
    q_lora_rank: int = 0
    sliding_window_tokens: int = 0
    sliding_layers: int = 0
    tied_embeddings: bool = False
    precision: Precision = Precision.BF16
    quantised_experts_only: bool = False
    max_context_tokens: int = 131072

    def __post_init__(self) -> None:
        for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab"):
            value = getattr(self, field)
            if value < 1:
                raise ConfigError(f"model.{field}={value}: expected >= 1", model=self.name)
        if self.experts and not (1 <= self.experts_per_token <= self.experts and self.expert_intermediate > 0):
            raise ConfigError(
                f"model.experts_per_token={self.experts_per_token}: expected 1 to {self.experts}", model=self.name
            )
        if not self.experts and self.intermediate < 1:
            raise ConfigError(f"model.intermediate={self.intermediate}: expected >= 1", model=self.name)

    @classmethod
    def from_config(cls, config: Path | str | Mapping[str, Any], name: str = "") -> ModelSpec:
        """Read a Hugging Face ``config.json`` (a path to it, to its folder, or its mapping).

        Raises:
            ConfigError: the file is missing, not JSON, lacks a dimension, or names layers that keep no KV
                cache (linear attention, state-space), for which these cost models hold no terms.
        Example:
            >>> ModelSpec.from_config({"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
            ...     "vocab_size": 100, "intermediate_size": 128}).head_dim
            16
        """
        if not isinstance(config, Mapping):
            path = Path(config)
            path = path / "config.json" if path.is_dir() else path
            try:
                loaded = json.loads(path.read_text())
            except FileNotFoundError as error:
                raise ConfigError(f"model.config={str(config)!r}: no such file") from error
            except (OSError, json.JSONDecodeError) as error:
                raise ConfigError(f"model.config={str(config)!r}: not a readable config.json ({error})") from error
            if not isinstance(loaded, dict):
                raise ConfigError(f"model.config={str(config)!r}: expected a JSON object")
            return cls.from_config(loaded, name or path.parent.name)
        return _from_mapping(config, name or str(config.get("_name_or_path") or config.get("model_type") or "model"))

    @classmethod
    def named(cls, name: str) -> ModelSpec:
        """A model that this package knows by name (``cluster/models.yaml``).

        Raises:
            ConfigError: unknown name; the text lists the known ones.
        """
        presets = known_models()
        wanted = name.rsplit("/", 1)[-1].lower()
        for known, config in presets.items():
            if known.lower() == wanted:
                return cls.from_config(config, known)
        raise ConfigError(
            f"model={name!r}: unknown; give model.config (a config.json) or one of {', '.join(sorted(presets))}"
        )

    def with_precision(self, precision: Precision | str) -> ModelSpec:
        """The same geometry with its linear layers stored in ``precision``."""
        try:
            return replace(self, precision=Precision(precision))
        except ValueError as error:
            raise ConfigError(
                f"model.precision={precision!r}: expected one of {', '.join(p.value for p in Precision)}"
            ) from error

    @property
    def is_mla(self) -> bool:
        """Keeps one compressed latent per token (multi-head latent attention) instead of keys and values."""
        return self.kv_lora_rank > 0

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def full_attention_layers(self) -> int:
        """Layers that attend to the whole context."""
        return self.layers - self.sliding_layers

    @cached_property
    def attention_params(self) -> int:
        """Weights of one layer's attention projections, biases and norms left out."""
        if self.is_mla:
            qk = self.qk_nope_head_dim + self.qk_rope_head_dim
            query = (
                self.hidden * self.q_lora_rank + self.q_lora_rank * self.heads * qk
                if self.q_lora_rank
                else self.hidden * self.heads * qk
            )
            down = self.hidden * (self.kv_lora_rank + self.qk_rope_head_dim)
            up = self.kv_lora_rank * self.heads * (self.qk_nope_head_dim + self.v_head_dim)
            return query + down + up + self.heads * self.v_head_dim * self.hidden
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @cached_property
    def expert_params(self) -> int:
        """Weights of one routed expert (gate, up, down)."""
        return 3 * self.hidden * self.expert_intermediate

    @cached_property
    def dense_mlp_params(self) -> int:
        """Weights of one dense MLP (gate, up, down)."""
        return 3 * self.hidden * self.intermediate

    @property
    def embedding_params(self) -> int:
        """Weights of the token embedding; the output head is as large again unless tied."""
        return self.vocab * self.hidden

    @cached_property
    def linear_params(self) -> int:
        """Weights of all layers' matrices: what ``precision`` applies to."""
        moe = self.moe_layers * ((self.experts + self.shared_experts) * self.expert_params + self.hidden * self.experts)
        dense = (self.layers - self.moe_layers) * self.dense_mlp_params
        return self.layers * self.attention_params + moe + dense

    @cached_property
    def params(self) -> int:
        """All weights, embedding and output head included."""
        return self.linear_params + self.embedding_params * (1 if self.tied_embeddings else 2)

    @cached_property
    def active_params(self) -> int:
        """Weights one token is multiplied with, output head included, embedding look-up not."""
        moe = self.moe_layers * (
            (self.experts_per_token + self.shared_experts) * self.expert_params + self.hidden * self.experts
        )
        dense = (self.layers - self.moe_layers) * self.dense_mlp_params
        return self.layers * self.attention_params + moe + dense + self.embedding_params

    @property
    def attention_weight_bytes(self) -> float:
        """Bytes per attention weight."""
        return 2.0 if self.quantised_experts_only else self.precision.weight_bytes

    @cached_property
    def weight_bytes(self) -> float:
        """Bytes of the whole checkpoint in memory, before sharding."""
        attention = self.layers * self.attention_params
        other = self.linear_params - attention
        head = self.embedding_params * (1 if self.tied_embeddings else 2) * 2.0
        return attention * self.attention_weight_bytes + other * self.precision.weight_bytes + head

    @property
    def kv_values_per_token_layer(self) -> int:
        """Values that one token leaves in one layer's KV cache: 2 * kv_heads * head_dim, or the MLA latent."""
        if self.is_mla:
            return self.kv_lora_rank + self.qk_rope_head_dim
        return 2 * self.kv_heads * self.head_dim


@cache
def known_models() -> Mapping[str, Mapping[str, Any]]:
    """Configs of the models that this package knows by name: the fields that matter, as published."""
    loaded: Mapping[str, Mapping[str, Any]] = yaml.safe_load(_PRESETS.read_text())
    return loaded


def _precision(config: Mapping[str, Any]) -> Precision:
    quant = config.get("quantization_config") or {}
    method = str(quant.get("quant_method", "")).lower()
    if not method:
        return Precision.BF16
    if method == "mxfp4":
        return Precision.MXFP4
    if method in ("fp8", "fbgemm_fp8", "modelopt"):
        return Precision.FP8_BLOCK if quant.get("weight_block_size") else Precision.FP8
    if method in ("awq", "gptq"):
        return Precision.INT4
    if method == "compressed-tensors":
        groups = quant.get("config_groups") or {}
        bits = {int((group.get("weights") or {}).get("num_bits", 16)) for group in groups.values()}
        return Precision.INT4 if bits == {4} else Precision.FP8 if bits == {8} else Precision.BF16
    raise ConfigError(
        f"quantization_config.quant_method={method!r}: expected fp8, mxfp4, awq, gptq or compressed-tensors"
    )


def _from_mapping(config: Mapping[str, Any], name: str) -> ModelSpec:
    text = config.get("text_config")
    if isinstance(text, Mapping):
        quant = config.get("quantization_config")
        config = dict(text) if quant is None else {**text, "quantization_config": quant}

    def need(*keys: str) -> int:
        for key in keys:
            if isinstance(config.get(key), int):
                return int(config[key])
        raise ConfigError(f"model.config.{keys[0]}: missing or not a whole number", model=name)

    def get(*keys: str) -> int:
        for key in keys:
            if isinstance(config.get(key), int):
                return int(config[key])
        return 0

    layers = need("num_hidden_layers", "n_layer")
    kinds = [str(kind) for kind in config.get("layer_types") or []]
    if any("linear" in kind or "mamba" in kind for kind in kinds) or get("mamba_d_state", "linear_num_key_heads"):
        raise ConfigError(
            "model.config.layer_types: linear attention and state-space layers are not modelled", model=name
        )
    heads, hidden = need("num_attention_heads", "n_head"), need("hidden_size", "n_embd")
    experts = get("n_routed_experts", "num_local_experts", "num_experts")
    moe_width = get("moe_intermediate_size") or get("intermediate_size")
    window = get("sliding_window") if config.get("use_sliding_window", True) else 0
    sliding = sum("sliding" in kind for kind in kinds) if kinds else (layers if window else 0)
    precision = _precision(config)
    return ModelSpec(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=get("num_key_value_heads") or heads,
        head_dim=get("head_dim") or hidden // heads,
        vocab=need("vocab_size"),
        intermediate=get("intermediate_size", "n_inner"),
        experts=experts,
        experts_per_token=get("num_experts_per_tok", "experts_per_token") if experts else 0,
        shared_experts=get("n_shared_experts") if experts else 0,
        expert_intermediate=moe_width if experts else 0,
        dense_layers=get("first_k_dense_replace") if experts else 0,
        kv_lora_rank=get("kv_lora_rank"),
        qk_rope_head_dim=get("qk_rope_head_dim"),
        qk_nope_head_dim=get("qk_nope_head_dim"),
        v_head_dim=get("v_head_dim"),
        q_lora_rank=get("q_lora_rank"),
        sliding_window_tokens=window if sliding else 0,
        sliding_layers=sliding if window else 0,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        precision=precision,
        quantised_experts_only=precision in (Precision.MXFP4,) or (experts > 0 and precision is Precision.INT4),
        max_context_tokens=get("max_position_embeddings") or 131072,
    )
