"""How a prefill engine is set up: for compute."""

from __future__ import annotations

from cluster.engine.vllm_settings import VllmSettings
from cluster.spec.config import ClusterSpec, PoolSettings
from workers.engine_settings import base_settings

BATCHED_TOKENS_GPU = 16384
"""Prompt tokens per step: enough to keep the tensor cores busy, few enough that a step ends in about a second."""
BATCHED_TOKENS_CPU = 2048
MAX_SEQS = 64
"""Prompts per step; each leaves after one token, so few are ever in the batch together."""


def engine_settings(spec: ClusterSpec, pool: PoolSettings) -> VllmSettings:
    """Settings of a prefill engine: a large token budget, chunked prefill, prefix caching, KV kept for others."""
    on_cpu = pool.accelerators_per_worker == 0
    return base_settings(
        spec,
        pool,
        # A producer must never load KV; a consumer can also give its own away, so it can take either role.
        kv_role="kv_consumer" if spec.changes_roles else "kv_producer",
        max_num_seqs=pool.engine.max_num_seqs or MAX_SEQS,
        max_num_batched_tokens=pool.engine.max_num_batched_tokens
        or (BATCHED_TOKENS_CPU if on_cpu else BATCHED_TOKENS_GPU),
        enforce_eager=pool.engine.enforce_eager if pool.engine.enforce_eager is not None else True,
    )
