"""The part of an engine's settings that all pools share; each pool's profile adds its own."""

from __future__ import annotations

from pathlib import Path

from cluster.engine.vllm_settings import VllmSettings
from cluster.model.model_parsers import reasons, with_parsers
from cluster.model.model_path import expand
from cluster.spec.config import ClusterSpec, PoolSettings


def base_settings(
    spec: ClusterSpec,
    pool: PoolSettings,
    *,
    kv_role: str | None,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    enforce_eager: bool,
) -> VllmSettings:
    """Model, types, block size and lease from the spec; batch limits from the pool's profile."""
    speculative = pool.engine.speculative
    return VllmSettings(
        model_path=expand(spec.model.path),
        max_model_len_tokens=spec.model.max_model_len_tokens,
        dtype=spec.model.dtype,
        block_size_tokens=pool.engine.block_size_tokens,
        on_cpu=pool.accelerators_per_worker == 0,
        tensor_parallel_size=pool.tensor_parallel_size,
        expert_parallel=pool.expert_parallel,
        gpu_memory_utilization=pool.engine.gpu_memory_utilization,
        kv_blocks=pool.engine.kv_blocks,
        max_num_seqs=max_num_seqs,
        # vLLM asks for at least one token per sequence.
        max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs),
        # vLLM's own limit; the canary asks for some, too.
        max_logprobs=max(20, spec.gateway.max_logprobs),
        enforce_eager=enforce_eager,
        quantization=spec.model.quantization,
        kv_cache_dtype=spec.model.kv_cache_dtype,
        trust_remote_code=spec.model.trust_remote_code,
        reasons=reasons(with_parsers(spec.model, Path(expand(spec.model.path)))),
        kv_role=kv_role,
        kv_lease_s=spec.transfer.lease_s,
        speculative_num_tokens=speculative.num_tokens if speculative else None,
        speculative_lookup_max_tokens=speculative.prompt_lookup_max_tokens if speculative else 4,
    )
