"""Roofline of one engine step: the terms that prefill and decode share.

A step runs ``tokens`` tokens through every layer's matrices, lets some of them attend to a context, sums partial
results across the tensor-parallel GPUs, and pays per layer and per step for everything else. Matrix
multiplications are bound by compute or by reading weights; the two are blended by a norm, so the change from one
to the other is soft. Attention in prefill is bound by compute, in decode by reading the KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.errors import ConfigError
from cluster.hardware.catalogue import GpuSpec
from cluster.hardware.engine_constants import EngineConstants
from cluster.model.model_spec import ModelSpec
from cluster.model.precision import Precision

_CACHE_LIMIT = 65536
NETWORK_SHARE = 0.8
"""Share of a network card that an exchange of tokens reaches: 39 to 40 of 50 GB/s (DeepEP's low-latency kernels)."""
STAGE_LATENCY_S = 10e-6
"""To hand activations to the next pipeline stage: a point-to-point message between GPUs."""


class StepCost:
    """Seconds of engine steps for one worker: one model on some GPUs of one kind under one engine.

    Methods are plain float arithmetic over coefficients computed once, for they run tens of millions of times.
    Batches and contexts are those of the whole worker: ``dp`` ranks take equal parts of them, and of ``pp`` stages
    each works on a part of its own at any time, so that a step is what one such part takes through all stages.

    Args:
        model: Geometry.
        gpu: Kind of GPU.
        engine: Fitted constants.
        tp: GPUs over which matrices and KV heads are split.
        kv_dtype_bytes: 2 for bf16, 1 for fp8.
        expert_parallel: Experts are placed whole, ``experts / (tp * dp)`` on each GPU, instead of being sliced.
        pp: Pipeline stages over which layers are split.
        dp: Ranks with attention of their own, which share the experts.
    Raises:
        ConfigError: a size is not positive or does not divide what it splits.
    """

    __slots__ = (
        "_all_reduce_latency_s",
        "_all_reduce_token_s",
        "_attention_pair_s",
        "_attention_window_pair_s",
        "_dense",
        "_eager_s",
        "_exchange_latency_s",
        "_exchange_token_s",
        "_fixed_s",
        "_gemm_cache",
        "_head",
        "_head_cache",
        "_kv_token_s",
        "_kv_window_token_s",
        "_parts",
        "_sequence_s",
        "_softness",
        "_state_s",
        "_token_s",
        "_window_tokens",
        "dp",
        "engine",
        "expert_parallel",
        "gpu",
        "kv_dtype_bytes",
        "model",
        "pp",
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
        pp: int = 1,
        dp: int = 1,
    ) -> None:
        if tp < 1 or model.heads % tp:
            raise ConfigError(f"tp={tp}: expected a divisor of {model.heads} attention heads", model=model.name)
        if pp < 1 or pp > model.layers or dp < 1:
            raise ConfigError(f"pp={pp}, dp={dp}: expected 1 to {model.layers} stages and 1 or more ranks")
        if dp > 1 and not model.experts:
            raise ConfigError(
                f"dp={dp}: ranks that share nothing are workers of their own; {model.name} has no experts"
            )
        self.model, self.gpu, self.engine, self.tp, self.pp, self.dp = model, gpu, engine, tp, pp, dp
        self.kv_dtype_bytes, self.expert_parallel = kv_dtype_bytes, expert_parallel
        self._parts = pp * dp
        self._softness = engine.softness
        self._gemm_cache: dict[tuple[int, int], float] = {}
        self._head_cache: dict[int, float] = {}
        read = 1.0 / (gpu.hbm_bytes_per_s * engine.memory_share)
        rate = self._rate(model.precision, engine.gemm_share)
        attention_rate = self._rate(
            Precision.BF16 if model.quantised_experts_only else model.precision, engine.gemm_share
        )
        moe = model.moe_layers
        dense_mlp = (model.mlp_layers - moe) * model.weights.dense_mlp_params + moe * model.weights.shared_params
        attention = model.weights.mixer_params
        # Seconds per token of compute, and seconds to read the weights once, of everything but routed experts.
        self._dense = (
            (2.0 * attention / attention_rate + 2.0 * dense_mlp / rate) / tp,
            (attention * model.weights.attention_weight_bytes + dense_mlp * model.precision.weight_bytes) * read / tp,
        )
        head = float(model.weights.embedding_params)
        self._head = (2.0 * head / (gpu.bf16_flops * engine.gemm_share) / tp, head * 2.0 * read / tp)
        self._set_attention()
        layers = model.layer_equivalents
        mixers = model.attention_layers + (model.state.layers if model.state else 0)
        link = gpu.link_bytes_per_s(tp) * engine.all_reduce_share
        reduces = mixers + model.mlp_layers if tp > 1 else 0
        self._all_reduce_latency_s = reduces * engine.all_reduce_s * math.log2(tp) if tp > 1 else 0.0
        self._all_reduce_token_s = reduces * model.hidden * 2.0 * 2.0 * (tp - 1) / tp / link
        self._set_exchange()
        layers_s = layers * engine.layer_s + moe * engine.moe_layer_s
        self._eager_s = layers * engine.prefill_layer_s + moe * engine.prefill_moe_layer_s
        hand_over_s = (pp - 1) * STAGE_LATENCY_S
        self._fixed_s = layers_s + engine.step_s + self._all_reduce_latency_s + self._exchange_latency_s + hand_over_s
        stage_token_s = (pp - 1) * model.hidden * 2.0 / gpu.link_bytes_per_s(tp * pp)
        self._token_s = layers * engine.token_layer_s + self._all_reduce_token_s + stage_token_s
        self._sequence_s = engine.sequence_s

    def _rate(self, precision: Precision, share: float) -> float:
        """Operations a second of a matrix multiplication with weights so stored."""
        narrow = precision.computes_in_fp8 or (precision.computes_in_fp4 and self.gpu.fp4_flops > 0)
        return self.gpu.rate(precision) * (self.engine.gemm_fp8_share if narrow else share)

    def _set_exchange(self) -> None:
        """Tokens to their experts and back (all-to-all), where ranks with attention of their own share experts.

        Each token goes out in fp8 and comes back in bf16. In decode a copy goes to each of its experts; in prefill one
        to each node that holds any of them, which hands it on inside.
        """
        model, gpu = self.model, self.gpu
        self._exchange_latency_s, self._exchange_token_s = 0.0, (0.0, 0.0)
        if self.dp == 1:
            return
        total = self.tp * self.dp
        nodes = -(-total // gpu.scaleup_gpus)
        copy_bytes = model.moe_layers * model.hidden * (1.0 + 2.0) / self.tp
        copies = min(model.experts_per_token, total)
        near_s = copies * (total - 1) / total * copy_bytes / (gpu.peer_bytes_per_s * self.engine.all_reduce_share)
        far_s = copy_bytes / (gpu.nic_bytes_per_s * NETWORK_SHARE) * (1.0 - 1.0 / nodes)
        reached = nodes * (1.0 - (1.0 - 1.0 / nodes) ** copies)
        # The scale-up link and the network work side by side.
        self._exchange_token_s = (max(near_s / nodes, copies * far_s), max(near_s, reached * far_s))
        self._exchange_latency_s = 2.0 * model.moe_layers * self.engine.all_reduce_s * math.log2(min(total, 16))

    def _set_attention(self) -> None:
        model, gpu, engine = self.model, self.gpu, self.engine
        shards = 1 if model.is_mla else min(self.tp, model.kv_heads)
        kv_layer_bytes = model.kv_values_per_token_layer * self.kv_dtype_bytes / shards
        bandwidth = gpu.hbm_bytes_per_s * engine.kv_share
        read = kv_layer_bytes / bandwidth
        heads = model.heads / self.tp
        rate = gpu.bf16_flops * engine.attention_share
        if model.is_mla:
            # Decode works on the latent: every head reads all of it, twice (scores and values).
            absorbed = 2.0 * heads * (2 * model.kv_lora_rank + model.qk_rope_head_dim) / rate
            read = (read**self._softness + absorbed**self._softness) ** (1 / self._softness)
            pair = 2.0 * heads * (model.qk_nope_head_dim + model.qk_rope_head_dim + model.v_head_dim) / rate
        else:
            pair = 4.0 * heads * model.head_dim / rate
        near, self._window_tokens = model.sliding_layers, model.sliding_window_tokens
        if model.chunked_layers:
            # A token sees its chunk so far, half of it on average.
            near, self._window_tokens = model.chunked_layers, max(1, model.chunk_tokens // 2)
        full_read, full_pair = model.full_attention_layers * read, model.full_attention_layers * pair
        if model.index_layers:
            # The indexer looks at every token, whole on each GPU; attention only at those that it chose.
            near, self._window_tokens = model.attention_layers, model.index_topk
            look = 2.0 * model.index_heads * model.index_head_dim / (gpu.flops(True) * engine.attention_share)
            fetch = model.index_bytes_per_token_layer / bandwidth
            full_read = model.index_layers * (fetch**self._softness + look**self._softness) ** (1 / self._softness)
            full_pair = model.index_layers * look
        self._kv_token_s, self._kv_window_token_s = full_read, near * read
        self._attention_pair_s, self._attention_window_pair_s = full_pair, near * pair
        # A state is read and written at each token of decode; in prefill its recurrence is computed.
        state = model.state
        self._state_s = (
            state.layers * 2.0 * state.bytes_per_gpu(self.tp) / bandwidth if state else 0.0,
            state.layers * state.scan_flops(self.tp) / rate if state else 0.0,
        )

    def gemm_s(self, tokens: int) -> float:
        """All layers' matrix multiplications for ``tokens`` tokens, output head left out."""
        return self._gemm_s(-(-tokens // self._parts), -(-tokens // self.pp))

    def _gemm_s(self, rank_tokens: int, expert_tokens: int) -> float:
        key = (rank_tokens, expert_tokens)
        found = self._gemm_cache.get(key)
        if found is None:
            compute, read = self._dense
            found = self._blend(compute * rank_tokens, read) + self._experts_s(expert_tokens)
            if len(self._gemm_cache) < _CACHE_LIMIT:
                self._gemm_cache[key] = found
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
        touched += engine.idle_expert_share * (model.experts - touched)
        weights = model.moe_layers * model.weights.expert_params
        gpus = self.tp * self.dp
        router = model.moe_layers * model.hidden * model.experts * 2.0
        bandwidth = self.gpu.hbm_bytes_per_s * engine.moe_memory_share
        read = (weights * touched * model.precision.weight_bytes / gpus + router) / bandwidth
        rate = self.gpu.rate(model.precision) * engine.moe_share
        compute = 2.0 * weights * model.experts_per_token * tokens / gpus / rate
        return self._blend(compute, read)

    def _blend(self, compute_s: float, read_s: float) -> float:
        high, low = (compute_s, read_s) if compute_s > read_s else (read_s, compute_s)
        if high <= 0.0:
            return 0.0
        softness = self._softness
        return high * float((1.0 + (low / high) ** softness) ** (1.0 / softness))

    def decode_attention_s(self, batch_size: float, context_tokens: float) -> float:
        """Decode attention, and what keeps a state instead, of a batch whose contexts sum to ``context_tokens``.

        Both are those that one rank handles at a time.
        """
        state_s = self._state_s[0] * batch_size
        if not self._window_tokens:
            return state_s + self._kv_token_s * context_tokens
        window = min(context_tokens, batch_size * self._window_tokens)
        return state_s + self._kv_token_s * context_tokens + self._kv_window_token_s * window

    def prefill_attention_s(self, new_tokens: int, context_before: int) -> float:
        """Causal attention of ``new_tokens`` tokens over themselves and ``context_before`` tokens before them."""
        pairs = new_tokens * (context_before + 0.5 * new_tokens)
        state_s = self._state_s[1] * new_tokens
        if not self._window_tokens:
            return state_s + self._attention_pair_s * pairs
        window = min(pairs, float(new_tokens * self._window_tokens))
        return state_s + self._attention_pair_s * pairs + self._attention_window_pair_s * window

    def decode_s(self, batch_size: int, context_tokens: int) -> float:
        """One step that decodes one token for each of ``batch_size`` sequences."""
        if self._parts == 1:
            return (
                self._gemm_s(batch_size, batch_size)
                + self.head_s(batch_size)
                + self.decode_attention_s(batch_size, context_tokens)
                + self._fixed_s
                + batch_size * (self._token_s + self._sequence_s)
            )
        return sum(self.terms_s(batch_size, context_tokens).values())

    def mixed_s(self, batch_size: int, context_tokens: int, chunks: Sequence[tuple[int, int]] = ()) -> float:
        """One step with ``batch_size`` decoding sequences and prefill pieces beside them.

        Args:
            batch_size: Decoding sequences, may be 0.
            context_tokens: Sum of their contexts.
            chunks: ``(new_tokens, context_before)`` of each prefill piece.
        """
        if self._parts > 1:
            return sum(self.terms_s(batch_size, context_tokens, chunks).values())
        tokens, attention = batch_size, self.decode_attention_s(batch_size, context_tokens)
        for new_tokens, context_before in chunks:
            tokens += new_tokens
            attention += self.prefill_attention_s(new_tokens, context_before)
        sequences = batch_size + len(chunks)
        return (
            self._gemm_s(tokens, tokens)
            + self.head_s(sequences)
            + attention
            + (self._fixed_s + self._eager_s if chunks else self._fixed_s)
            + tokens * self._token_s
            + sequences * self._sequence_s
        )

    def terms_s(
        self,
        batch_size: int,
        context_tokens: int,
        chunks: Sequence[tuple[int, int]] = (),
        tokens_each: int = 1,
    ) -> dict[str, float]:
        """The same step, term by term; sums to the step.

        Pieces of prompts are dealt to the ranks; a piece is never cut, so the longest is the least that one rank has.

        Args:
            batch_size: Decoding sequences.
            context_tokens: Sum of their contexts.
            chunks: Prefill pieces.
            tokens_each: Tokens of each decoding sequence, more than one where proposed tokens are verified.
        """
        decoding = batch_size / self._parts
        new = [tokens for tokens, _ in chunks]
        piece_tokens = max(sum(new) / self.dp, max(new, default=0))
        sequences = math.ceil(decoding + len(chunks) / self.dp)
        tokens = decoding * tokens_each + piece_tokens
        pieces_s = [self.prefill_attention_s(tokens, before) for tokens, before in chunks]
        terms = {
            "matrices": self._gemm_s(math.ceil(tokens), math.ceil(batch_size * tokens_each / self.pp + sum(new))),
            "output head": self.head_s(sequences + math.ceil(decoding * (tokens_each - 1))),
            "decode attention": self.decode_attention_s(decoding, context_tokens / self._parts),
            "prefill attention": max(sum(pieces_s) / self.dp, max(pieces_s, default=0.0)),
            "all-reduce": self._all_reduce_latency_s + tokens * self._all_reduce_token_s,
            "overhead": self._fixed_s
            + (self._eager_s if chunks else 0.0)
            - self._all_reduce_latency_s
            + tokens * (self._token_s - self._all_reduce_token_s)
            + sequences * self._sequence_s,
        }
        if self.dp > 1:
            decode_s, prefill_s = self._exchange_token_s
            exchange_s = self._exchange_latency_s + decoding * tokens_each * decode_s + piece_tokens * prefill_s
            work_s = sum(terms.values())
            # Two halves of the batch in turn: one is exchanged while the other computes. The larger of both counts, and
            # half of the smaller, which has nothing to hide behind when the halves start and end.
            terms["all-to-all"] = max(exchange_s, work_s) + 0.5 * min(exchange_s, work_s) - work_s
        return terms
