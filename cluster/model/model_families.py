"""Model types whose cache, weights and work are known, with what each takes where its config is silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.model.attention_families import latent, llama4, minimax_m2, plain, sparse_latent
from cluster.model.config_keys import ConfigReader, Values
from cluster.model.state_families import (
    gated_delta_net,
    jamba,
    kimi_delta,
    lightning,
    mamba2_granite,
    mamba2_parallel,
    nemotron_h,
    short_conv,
)


@dataclass(frozen=True)
class Family:
    """One model type.

    Args:
        read: Fills in the geometry beyond what all types share.
        defaults: Values of keys that a config may leave out, as the type's own class has them.
    """

    read: Callable[[ConfigReader, Values], None]
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
}
_GEMMA2 = {"sliding_window": 4096, "sliding_window_pattern": 2, "tie_word_embeddings": True, "head_dim": 256}
_QWEN = {"use_sliding_window": False}
_QWEN_NEXT = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "full_attention_interval": 4,
    "head_dim": 256,
}
_LLAMA4 = {
    "attention_chunk_size": 8192,
    "head_dim": 128,
    "interleave_moe_layer_step": 1,
    "intermediate_size_mlp": 16384,
}

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("llama", "olmo2", "granite", "smollm3", "glm4", "seed_oss", "cohere", "mixtral", "glm4_moe", "granitemoe"),
        Family(plain),
    ),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "qwen3_vl_text", "mimo"), Family(plain, _QWEN)),
    "qwen3_vl_moe_text": Family(plain, _QWEN),
    "mistral": Family(plain, {"sliding_window": 4096}),
    "phi3": Family(plain),
    "gemma": Family(plain, {"tie_word_embeddings": True, "head_dim": 256}),
    "gemma2": Family(plain, _GEMMA2),
    "gemma3_text": Family(plain, _GEMMA3),
    "cohere2": Family(plain, {"sliding_window": 4096, "sliding_window_pattern": 4, "tie_word_embeddings": True}),
    "olmo3": Family(plain, {"sliding_window": 4096, "sliding_window_pattern": 4}),
    "exaone4": Family(plain),
    "gpt_oss": Family(plain, {"sliding_window": 128, "sliding_window_pattern": 2, "head_dim": 64}),
    "llama4_text": Family(llama4, _LLAMA4),
    "minimax_m2": Family(minimax_m2),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2"), Family(latent)),
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), Family(sparse_latent)),
    "lfm2": Family(short_conv, {"conv_L_cache": 3, "tie_word_embeddings": True}),
    "lfm2_moe": Family(short_conv, {"conv_L_cache": 3, "num_dense_layers": 2, "tie_word_embeddings": True}),
    "jamba": Family(
        jamba,
        {
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    "bamba": Family(mamba2_granite, {"mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_state": 256}),
    "granitemoehybrid": Family(
        mamba2_granite, {"mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_state": 256}
    ),
    "falcon_h1": Family(
        mamba2_parallel, {"mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_state": 256}
    ),
    "nemotron_h": Family(nemotron_h, {"conv_kernel": 4, "n_groups": 8, "ssm_state_size": 128}),
    **dict.fromkeys(("minimax_text_01", "minimax"), Family(lightning)),
    "qwen3_next": Family(gated_delta_net, _QWEN_NEXT),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), Family(gated_delta_net, _QWEN_NEXT)),
    "kimi_linear": Family(kimi_delta),
}

WRAPPERS = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "kimi_k25": "deepseek_v3",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
}
"""Model types of which the language model lies under ``text_config``, and its own type where it does not say it."""

_OTHER_CACHE = "its layers keep a cache or share weights in a way that is not modelled"
REFUSED = {
    "recurrent_gemma": "gated linear recurrences beside windows of attention (block_types) are not modelled, and vLLM "
    "does not serve it",
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"), "no layer keeps keys and values"),
    **dict.fromkeys(
        ("zamba", "zamba2", "plamo2", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "deepseek_v4"), _OTHER_CACHE
    ),
    **dict.fromkeys(
        ("mimo_v2_flash", "step3p5", "step3p7", "minimax_m3", "minimax_m3_vl", "nemotron-nas", "kimi_k3"), _OTHER_CACHE
    ),
    **dict.fromkeys(
        ("t5", "bart", "whisper", "mllama", "bert", "roberta"), "encoders and cross-attention are not modelled"
    ),
}
"""Model types that are known and not modelled, with the reason."""
