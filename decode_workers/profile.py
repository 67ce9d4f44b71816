"""How decode and colocated engines are set up: for memory bandwidth, and for both."""

from __future__ import annotations

from cluster.engine.vllm_settings import VllmSettings
from cluster.spec.config import ClusterSpec, PoolSettings, Role
from workers.engine_settings import base_settings

MAX_SEQS_GPU = 256
"""Requests per step: each adds its KV reads alone, the weights are read once for all."""
MAX_SEQS_CPU = 64
BATCHED_TOKENS_GPU = 8192
"""Tokens per step. Decode needs one per request; the rest lets it prefill a lost request's ledger when it must."""
BATCHED_TOKENS_CPU = 512
"""A prefill here holds up every running stream for one step, so steps are short: 0.3 s for a 3 M model on one core."""


def engine_settings(spec: ClusterSpec, pool: PoolSettings, role: Role) -> VllmSettings:
    """Settings of a decode engine (reads others' KV, can export its own) or of a colocated one (neither)."""
    on_cpu = pool.accelerators_per_worker == 0
    return base_settings(
        spec,
        pool,
        kv_role="kv_consumer" if role is Role.DECODE else None,
        max_num_seqs=pool.engine.max_num_seqs or (MAX_SEQS_CPU if on_cpu else MAX_SEQS_GPU),
        max_num_batched_tokens=pool.engine.max_num_batched_tokens
        or (BATCHED_TOKENS_CPU if on_cpu else BATCHED_TOKENS_GPU),
        enforce_eager=pool.engine.enforce_eager if pool.engine.enforce_eager is not None else on_cpu,
    )
