"""Roofline of one engine step: the terms that prefill and decode share.

A step runs ``tokens`` tokens through every layer's matrices, lets some of them attend to a context, sums partial
results across the tensor-parallel GPUs, and pays per layer and per step for everything else. Matrix
multiplications are bound by compute or by reading weights; the two are blended by a norm, so the change from one
to the other is soft. Attention in prefill is bound by compute, in decode by reading the KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.engine_constants import EngineConstants
from cluster.errors import ConfigError
from cluster.hardware import GpuSpec
from cluster.model import ModelSpec

_CACHE_LIMIT = 65536


class StepCost:
    """Seconds of engine steps for one worker: one model on ``tp`` GPUs of one kind under one engine.

    Methods are plain float arithmetic over coefficients computed once, for they run tens of millions of times.

    Args:
        model: Geometry.
        gpu: Kind of GPU.
        engine: Fitted constants.
        tp: GPUs of the worker, over which matrices and KV heads are split.
        kv_dtype_bytes: 2 for bf16, 1 for fp8.
        expert_parallel: Experts are placed whole, ``experts / tp`` on each GPU, instead of being sliced.
    Raises:
        ConfigError: ``tp`` is not positive or does not divide the heads.
    """

    __slots__ = (
        "_all_reduce_latency_s",
        "_all_reduce_token_s",
        "_attention_pair_s",
        "_attention_window_pair_s",
        "_dense",
        "_eager_s",
        "_fixed_s",
        "_gemm_cache",
        "_head",
        "_head_cache",
        "_kv_token_s",
        "_kv_window_token_s",
        "_sequence_s",
        "_softness",
        "_token_s",
        "_window_tokens",
        "engine",
        "expert_parallel",
        "gpu",
        "kv_dtype_bytes",
        "model",
        "tp",
    )

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        engine: EngineConstants,
        tp: int = 1,
        *,
        kv_dtype_bytes: float = 2.0,
        expert_parallel: bool = False,
    ) -> None:
        if tp < 1 or model.heads % tp:
            raise ConfigError(f"tp={tp}: expected a divisor of {model.heads} attention heads", model=model.name)
        self.model, self.gpu, self.engine, self.tp = model, gpu, engine, tp
        self.kv_dtype_bytes, self.expert_parallel = kv_dtype_bytes, expert_parallel
        self._softness = engine.softness
        self._gemm_cache: dict[int, float] = {}
        self._head_cache: dict[int, float] = {}
        read = 1.0 / (gpu.hbm_bytes_per_s * engine.memory_share)
        fp8 = model.precision.computes_in_fp8
        rate = gpu.flops(fp8) * (engine.gemm_fp8_share if fp8 else engine.gemm_share)
        attention_fp8 = fp8 and not model.quantised_experts_only
        attention_rate = gpu.flops(attention_fp8) * (engine.gemm_fp8_share if attention_fp8 else engine.gemm_share)
        moe = model.moe_layers
        dense_mlp = (model.layers - moe) * model.dense_mlp_params + moe * model.shared_experts * model.expert_params
        attention = model.layers * model.attention_params
        # Seconds per token of compute, and seconds to read the weights once, of everything but routed experts.
        self._dense = (
            (2.0 * attention / attention_rate + 2.0 * dense_mlp / rate) / tp,
            (attention * model.attention_weight_bytes + dense_mlp * model.precision.weight_bytes) * read / tp,
        )
        head = float(model.embedding_params)
        self._head = (2.0 * head / (gpu.bf16_flops * engine.gemm_share) / tp, head * 2.0 * read / tp)
        self._set_attention()
        link = gpu.peer_bytes_per_s * engine.all_reduce_share
        reduces = 2 * model.layers if tp > 1 else 0
        self._all_reduce_latency_s = reduces * engine.all_reduce_s * math.log2(tp) if tp > 1 else 0.0
        self._all_reduce_token_s = reduces * model.hidden * 2.0 * 2.0 * (tp - 1) / tp / link
        layers_s = model.layers * engine.layer_s + moe * engine.moe_layer_s
        self._eager_s = model.layers * engine.prefill_layer_s + moe * engine.prefill_moe_layer_s
        self._fixed_s = layers_s + engine.step_s + self._all_reduce_latency_s
        self._token_s = model.layers * engine.token_layer_s + self._all_reduce_token_s
        self._sequence_s = engine.sequence_s

    def _set_attention(self) -> None:
        model, gpu, engine = self.model, self.gpu, self.engine
        shards = 1 if model.is_mla else min(self.tp, model.kv_heads)
        kv_layer_bytes = model.kv_values_per_token_layer * self.kv_dtype_bytes / shards
        read = kv_layer_bytes / (gpu.hbm_bytes_per_s * engine.kv_share)
        heads = model.heads / self.tp
        rate = gpu.bf16_flops * engine.attention_share
        if model.is_mla:
            # Decode works on the latent: every head reads all of it, twice (scores and values).
            absorbed = 2.0 * heads * (2 * model.kv_lora_rank + model.qk_rope_head_dim) / rate
            read = (read**self._softness + absorbed**self._softness) ** (1 / self._softness)
            pair = 2.0 * heads * (model.qk_nope_head_dim + model.qk_rope_head_dim + model.v_head_dim) / rate
        else:
            pair = 4.0 * heads * model.head_dim / rate
        self._kv_token_s = model.full_attention_layers * read
        self._kv_window_token_s = model.sliding_layers * read
        self._attention_pair_s = model.full_attention_layers * pair
        self._attention_window_pair_s = model.sliding_layers * pair
        self._window_tokens = model.sliding_window_tokens

    def gemm_s(self, tokens: int) -> float:
        """All layers' matrix multiplications for ``tokens`` tokens, output head left out."""
        found = self._gemm_cache.get(tokens)
        if found is None:
            compute, read = self._dense
            found = self._blend(compute * tokens, read) + self._experts_s(tokens)
            if len(self._gemm_cache) < _CACHE_LIMIT:
                self._gemm_cache[tokens] = found
        return found

    def head_s(self, sampled: int) -> float:
        """Output head for the ``sampled`` tokens of which a next token is drawn."""
        found = self._head_cache.get(sampled)
        if found is None:
            found = self._blend(self._head[0] * sampled, self._head[1])
            if len(self._head_cache) < _CACHE_LIMIT:
                self._head_cache[sampled] = found
        return found

    def _experts_s(self, tokens: int) -> float:
        model, engine = self.model, self.engine
        if not model.experts or tokens <= 0:
            return 0.0
        # Experts that at least one of the tokens is routed to, were routing uniform.
        touched = model.experts * (1.0 - (1.0 - model.experts_per_token / model.experts) ** tokens)
        weights = model.moe_layers * model.expert_params
        router = model.moe_layers * model.hidden * model.experts * 2.0
        bandwidth = self.gpu.hbm_bytes_per_s * engine.moe_memory_share
        read = (weights * touched * model.precision.weight_bytes / self.tp + router) / bandwidth
        rate = self.gpu.flops(model.precision.computes_in_fp8) * engine.moe_share
        compute = 2.0 * weights * model.experts_per_token * tokens / self.tp / rate
        return self._blend(compute, read)

    def _blend(self, compute_s: float, read_s: float) -> float:
        high, low = (compute_s, read_s) if compute_s > read_s else (read_s, compute_s)
        if high <= 0.0:
            return 0.0
        softness = self._softness
        return high * float((1.0 + (low / high) ** softness) ** (1.0 / softness))

    def decode_attention_s(self, batch_size: int, context_tokens: int) -> float:
        """Decode attention of a batch whose contexts sum to ``context_tokens``."""
        if not self._window_tokens:
            return self._kv_token_s * context_tokens
        window = min(context_tokens, batch_size * self._window_tokens)
        return self._kv_token_s * context_tokens + self._kv_window_token_s * window

    def prefill_attention_s(self, new_tokens: int, context_before: int) -> float:
        """Causal attention of ``new_tokens`` tokens over themselves and ``context_before`` tokens before them."""
        pairs = new_tokens * (context_before + 0.5 * new_tokens)
        if not self._window_tokens:
            return self._attention_pair_s * pairs
        window = min(pairs, float(new_tokens * self._window_tokens))
        return self._attention_pair_s * pairs + self._attention_window_pair_s * window

    def decode_s(self, batch_size: int, context_tokens: int) -> float:
        """One step that decodes one token for each of ``batch_size`` sequences."""
        return (
            self.gemm_s(batch_size)
            + self.head_s(batch_size)
            + self.decode_attention_s(batch_size, context_tokens)
            + self._fixed_s
            + batch_size * (self._token_s + self._sequence_s)
        )

    def mixed_s(self, batch_size: int, context_tokens: int, chunks: Sequence[tuple[int, int]] = ()) -> float:
        """One step with ``batch_size`` decoding sequences and prefill pieces beside them.

        Args:
            batch_size: Decoding sequences, may be 0.
            context_tokens: Sum of their contexts.
            chunks: ``(new_tokens, context_before)`` of each prefill piece.
        """
        tokens, attention = batch_size, self.decode_attention_s(batch_size, context_tokens)
        for new_tokens, context_before in chunks:
            tokens += new_tokens
            attention += self.prefill_attention_s(new_tokens, context_before)
        sequences = batch_size + len(chunks)
        return (
            self.gemm_s(tokens)
            + self.head_s(sequences)
            + attention
            + (self._fixed_s + self._eager_s if chunks else self._fixed_s)
            + tokens * self._token_s
            + sequences * self._sequence_s
        )

    def terms_s(self, batch_size: int, context_tokens: int, chunks: Sequence[tuple[int, int]] = ()) -> dict[str, float]:
        """The same step, term by term: matrices, output head, attention, all-reduce, overhead. Sums to the step."""
        tokens = batch_size + sum(new for new, _ in chunks)
        sequences = batch_size + len(chunks)
        return {
            "matrices": self.gemm_s(tokens),
            "output head": self.head_s(sequences),
            "decode attention": self.decode_attention_s(batch_size, context_tokens),
            "prefill attention": sum(self.prefill_attention_s(new, before) for new, before in chunks),
            "all-reduce": self._all_reduce_latency_s + tokens * self._all_reduce_token_s,
            "overhead": self._fixed_s
            + (self._eager_s if chunks else 0.0)
            - self._all_reduce_latency_s
            + tokens * (self._token_s - self._all_reduce_token_s)
            + sequences * self._sequence_s,
        }
