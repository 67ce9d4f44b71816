"""Geometry of a language model: what memory and time follow from.

Only facts of the checkout live here: layer counts, widths, experts, kinds of attention, stored precision.
Parameter counts are exact for the dense GQA families (checked against published totals in the tests).
``cluster/model/model_config.py`` reads them from a ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from cluster.errors import ConfigError
from cluster.model.precision import Precision
from cluster.model.state_layers import StateLayers

_REST = -1


@dataclass(frozen=True)
class ModelSpec:
    """Geometry of one model. Widths are in elements, before any tensor-parallel sharding.

    Args:
        name: What the operator calls it.
        layers: Blocks of the model.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key/value heads; fewer than ``heads`` under GQA. Ignored for MLA.
        head_dim: Width of one head.
        vocab: Rows of the embedding.
        intermediate: Width of a dense MLP.
        experts: Routed experts of a mixture-of-experts layer, 0 for a dense model.
        experts_per_token: Routed experts each token goes through.
        shared_experts: Experts every token goes through.
        expert_intermediate: Width of one routed expert.
        dense_layers: Layers with a dense MLP in a mixture-of-experts model.
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
        attention_layers: Layers that keep keys and values; all unless said.
        mlp_layers: Layers with an MLP or experts; all unless said.
        mlp_matrices: Matrices of an MLP: 3 with a gate, 2 without.
        chunk_tokens: Chunk of the chunked layers, 0 for none.
        chunked_layers: How many layers attend only within their chunk of the context (Llama 4).
        attention_gate: Attention's output is gated by a projection as wide as the queries.
        shared_expert_intermediate: Width of a shared expert, 0 where it is that of a routed one.
        state: Layers that keep a state of fixed size per request.
        index_layers: Layers with an indexer of their own (sparse attention), 0 for none.
        index_heads: Heads of the indexer.
        index_head_dim: Width of its heads and of the key that each token leaves in its cache.
        index_topk: Tokens that attention reads at most, whatever the context.
        expert_hidden: Width in which the experts work where it is not the residual's, else 0.
        mtp_layers: Layers that predict tokens ahead; loaded only when an engine speculates with them.
        extra_params: Weights beside the language model, in bf16: a vision tower.
        kv_dtype_bytes: Bytes of a KV value as the checkpoint asks for them.

    Example:
        >>> from cluster.model.known_models import known_model
        >>> known_model("Llama-3.1-8B").weights.params
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
    attention_layers: int = _REST
    mlp_layers: int = _REST
    mlp_matrices: int = 3
    chunk_tokens: int = 0
    chunked_layers: int = 0
    attention_gate: bool = False
    shared_expert_intermediate: int = 0
    state: StateLayers | None = None
    index_layers: int = 0
    index_heads: int = 0
    index_head_dim: int = 0
    index_topk: int = 0
    expert_hidden: int = 0
    mtp_layers: int = 0
    extra_params: int = 0
    kv_dtype_bytes: float = 2.0

    def __post_init__(self) -> None:
        for field in ("attention_layers", "mlp_layers"):
            if getattr(self, field) == _REST:
                object.__setattr__(self, field, self.layers)
        for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "attention_layers"):
            value = getattr(self, field)
            if value < 1:
                raise ConfigError(f"model.{field}={value}: expected >= 1", model=self.name)
        if self.sliding_layers + self.chunked_layers > self.attention_layers or self.attention_layers > self.layers:
            raise ConfigError(
                f"model: {self.sliding_layers} sliding and {self.chunked_layers} chunked of {self.attention_layers} "
                f"attention layers among {self.layers}: expected a part of the whole",
                model=self.name,
            )
        if bool(self.sliding_layers) != bool(self.sliding_window_tokens):
            raise ConfigError("model.sliding_window_tokens: expected with sliding_layers, and only then")
        if self.experts and not (1 <= self.experts_per_token <= self.experts and self.expert_intermediate > 0):
            raise ConfigError(
                f"model.experts_per_token={self.experts_per_token}: expected 1 to {self.experts}", model=self.name
            )
        if not self.experts and self.intermediate < 1:
            raise ConfigError(f"model.intermediate={self.intermediate}: expected >= 1", model=self.name)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ModelSpec:
        """A geometry given by hand, or written by ``dataclasses.asdict``.

        Raises:
            ConfigError: an unknown field, or one that is missing.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(record) - known):
            raise ConfigError(f"model.by_hand.{unknown[0]}: unknown; expected some of {', '.join(sorted(known))}")
        values = dict(record)
        try:
            if values.get("state") is not None and not isinstance(values["state"], StateLayers):
                values["state"] = StateLayers(**values["state"])
            if "precision" in values:
                values["precision"] = Precision(values["precision"])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.by_hand: {error}") from error

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
        return self.mlp_layers - self.dense_layers if self.experts else 0

    @property
    def full_attention_layers(self) -> int:
        """Layers that attend to the whole context."""
        return self.attention_layers - self.sliding_layers - self.chunked_layers

    @property
    def hybrid(self) -> bool:
        """Holds layers whose cache does not grow with the context as others' does."""
        return self.state is not None or self.full_attention_layers < self.attention_layers or self.index_layers > 0

    @property
    def layer_equivalents(self) -> float:
        """Blocks of one mixer and one MLP each that the model amounts to, for overheads per layer."""
        mixers = self.attention_layers + (self.state.layers if self.state else 0)
        return max(0.5 * (mixers + self.mlp_layers), 1.0)

    @cached_property
    def weights(self) -> ModelWeights:
        """Its weights, counted."""
        return ModelWeights(self)

    @property
    def kv_values_per_token_layer(self) -> int:
        """Values that one token leaves in one layer's KV cache: 2 * kv_heads * head_dim, or the MLA latent."""
        if self.is_mla:
            return self.kv_lora_rank + self.qk_rope_head_dim
        return 2 * self.kv_heads * self.head_dim

    @property
    def index_bytes_per_token_layer(self) -> int:
        """Bytes that one token leaves in one indexer's cache: an fp8 key and a scale per 128 values."""
        return self.index_head_dim + self.index_head_dim // 128 * 4 if self.index_layers else 0


class ModelWeights:
    """How many weights a model has, part by part, and what they take. Owns no more than the sums."""

    def __init__(self, model: ModelSpec) -> None:
        self._model = model

    @cached_property
    def attention_params(self) -> int:
        """Weights of one layer's attention projections, biases and norms left out."""
        model = self._model
        if model.is_mla:
            qk = model.qk_nope_head_dim + model.qk_rope_head_dim
            query = (
                model.hidden * model.q_lora_rank + model.q_lora_rank * model.heads * qk
                if model.q_lora_rank
                else model.hidden * model.heads * qk
            )
            down = model.hidden * (model.kv_lora_rank + model.qk_rope_head_dim)
            up = model.kv_lora_rank * model.heads * (model.qk_nope_head_dim + model.v_head_dim)
            return query + down + up + model.heads * model.v_head_dim * model.hidden
        gate = model.heads if model.attention_gate else 0
        return model.hidden * model.head_dim * (2 * model.heads + 2 * model.kv_heads + gate)

    @cached_property
    def index_params(self) -> int:
        """Weights of one layer's indexer: queries from the compressed query, a key, and a weight per head."""
        model = self._model
        if not model.index_layers:
            return 0
        query = (model.q_lora_rank or model.hidden) * model.index_heads * model.index_head_dim
        return query + model.hidden * (model.index_head_dim + model.index_heads)

    @cached_property
    def mixer_params(self) -> int:
        """Weights of all layers' attention, indexers and state mixers."""
        model = self._model
        state = model.state.layers * model.state.params if model.state else 0
        return model.attention_layers * self.attention_params + model.index_layers * self.index_params + state

    @cached_property
    def expert_params(self) -> int:
        """Weights of one routed expert."""
        model = self._model
        return model.mlp_matrices * (model.expert_hidden or model.hidden) * model.expert_intermediate

    @cached_property
    def shared_params(self) -> int:
        """Weights that every token goes through in a layer with experts: shared experts, router, change of width."""
        model = self._model
        width = model.shared_expert_intermediate or model.expert_intermediate
        latent = 2 * model.hidden * model.expert_hidden if model.expert_hidden else 0
        return model.shared_experts * model.mlp_matrices * model.hidden * width + latent

    @cached_property
    def dense_mlp_params(self) -> int:
        """Weights of one dense MLP."""
        model = self._model
        return model.mlp_matrices * model.hidden * model.intermediate

    @property
    def embedding_params(self) -> int:
        """Weights of the token embedding; the output head is as large again unless tied."""
        model = self._model
        return model.vocab * model.hidden

    def _mlp_params(self, experts: int) -> int:
        model = self._model
        routed = model.moe_layers * (experts * self.expert_params + self.shared_params + model.hidden * model.experts)
        return routed + (model.mlp_layers - model.moe_layers) * self.dense_mlp_params

    @cached_property
    def linear_params(self) -> int:
        """Weights of all layers' matrices: what ``precision`` applies to."""
        model = self._model
        return self.mixer_params + self._mlp_params(model.experts)

    @cached_property
    def params(self) -> int:
        """All weights of the language model, embedding and output head included."""
        model = self._model
        return self.linear_params + self.embedding_params * (1 if model.tied_embeddings else 2)

    @cached_property
    def active_params(self) -> int:
        """Weights one token is multiplied with, output head included, embedding look-up not."""
        model = self._model
        return self.mixer_params + self._mlp_params(model.experts_per_token) + self.embedding_params

    @property
    def attention_weight_bytes(self) -> float:
        """Bytes per attention weight."""
        model = self._model
        return 2.0 if model.quantised_experts_only else model.precision.weight_bytes

    @cached_property
    def total_bytes(self) -> float:
        """Bytes of the whole checkpoint in memory, before sharding; MTP layers left out."""
        model = self._model
        other = self.linear_params - self.mixer_params
        wide = self.embedding_params * (1 if model.tied_embeddings else 2) + model.extra_params
        return self.mixer_params * self.attention_weight_bytes + other * model.precision.weight_bytes + wide * 2.0

    @cached_property
    def mtp_params(self) -> int:
        """Weights of one MTP layer: a block of the model and the projection that joins two hidden states."""
        model = self._model
        moe = model.experts * self.expert_params + self.shared_params + model.hidden * model.experts
        mlp = moe if model.experts else self.dense_mlp_params
        return self.attention_params + mlp + 2 * model.hidden * model.hidden
