"""KV cache in bytes: per token, per block, per request, and how tensor parallelism splits it."""

from __future__ import annotations

from cluster.errors import ConfigError
from cluster.model.model_spec import ModelSpec


def kv_bytes_per_token(model: ModelSpec, kv_dtype_bytes: float = 2.0) -> float:
    """Bytes of KV cache one token takes, over all layers, before tensor-parallel sharding.

    Grouped-query attention keeps a key and a value per layer and KV head:
    ``2 * layers * kv_heads * head_dim * kv_dtype_bytes``. Multi-head latent attention keeps one latent and
    one rotary key: ``layers * (kv_lora_rank + qk_rope_head_dim) * kv_dtype_bytes``.
    Layers with a window are counted in full, as for a token inside it; `kv_layout` says what whole requests hold.
    An indexer of sparse attention keeps an fp8 key besides; layers with a state keep nothing per token.

    Args:
        model: Attention geometry.
        kv_dtype_bytes: 2 for bf16, 1 for fp8.
    Returns:
        Bytes per token.
    Raises:
        ConfigError: ``kv_dtype_bytes`` is not positive.
    Source: arXiv:2305.13245 (GQA), arXiv:2405.04434 (MLA).
    Example:
        >>> from cluster.model.known_models import known_model
        >>> kv_bytes_per_token(known_model("Llama-3.1-8B"))
        131072.0
    """
    if kv_dtype_bytes <= 0:
        raise ConfigError(f"kv_dtype_bytes={kv_dtype_bytes}: expected > 0")
    index = model.index_layers * model.index_bytes_per_token_layer
    return float(model.attention_layers * model.kv_values_per_token_layer * kv_dtype_bytes + index)


def kv_shards(model: ModelSpec, tp: int) -> int:
    """Over how many GPUs one copy of the KV cache is spread under tensor parallelism.

    KV heads cannot be cut, so past ``kv_heads`` GPUs each head is repeated; an MLA latent is whole on every GPU.

    Example:
        >>> from cluster.model.known_models import known_model
        >>> kv_shards(known_model("Qwen3-235B-A22B"), tp=8)
        4
    """
    return 1 if model.is_mla else min(tp, model.kv_heads)


def kv_bytes_per_token_per_gpu(model: ModelSpec, tp: int, kv_dtype_bytes: float = 2.0) -> float:
    """Bytes of KV cache one token takes on each GPU of a tensor-parallel worker."""
    return kv_bytes_per_token(model, kv_dtype_bytes) / kv_shards(model, tp)


def blocks_for(tokens: int, block_size_tokens: int) -> int:
    """Blocks that hold ``tokens`` tokens.

    Example:
        >>> blocks_for(33, 32)
        2
    """
    if block_size_tokens < 1:
        raise ConfigError(f"block_size_tokens={block_size_tokens}: expected >= 1")
    return -(-tokens // block_size_tokens)


def kv_bytes(model: ModelSpec, tokens: int, block_size_tokens: int, kv_dtype_bytes: float = 2.0) -> int:
    """Bytes that a handoff of ``tokens`` tokens moves: whole blocks, all layers, all shards of one copy."""
    return int(blocks_for(tokens, block_size_tokens) * block_size_tokens * kv_bytes_per_token(model, kv_dtype_bytes))
