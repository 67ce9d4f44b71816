"""Model types whose cache, weights and work are known, with what each takes where its config is silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.model.config_keys import ConfigReader
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

Values = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """One model type.

    Args:
        read: Fills in the geometry beyond what all types share.
        defaults: Values of keys that a config may leave out, as the type's own class has them.
    """

    read: Callable[[ConfigReader, Values], None]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def windows(reader: ConfigReader, values: Values) -> None:
    """Layers that attend to a window or within a chunk, by ``layer_types``, a pattern, or for all layers."""
    layers = values["layers"]
    window = reader.whole("sliding_window")
    if not reader.get("use_sliding_window") and reader.get("use_sliding_window") is not None:
        window = 0
    pattern = _pattern(reader)
    first_full = reader.whole("max_window_layers")
    kinds = [str(kind) for kind in reader.names("layer_types")]
    if kinds:
        known = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
        if reader.get("index_topk"):
            known |= {"indexed_attention", "deepseek_sparse_attention"}
        if strange := sorted(set(kinds) - known):
            text = "linear attention and state-space layers" if _stateful(strange[0]) else "layers"
            raise reader.refuse("layer_types", f"{text} of kind {strange[0]!r} are not modelled for this model type")
        if len(kinds) != layers:
            raise reader.refuse("layer_types", f"{len(kinds)} entries for {layers} layers")
        sliding, chunked = kinds.count("sliding_attention"), kinds.count("chunked_attention")
    else:
        chunked = 0
        sliding = layers - layers // pattern if pattern else layers - min(first_full, layers)
    if sliding and window and not kinds and reader.kind in WITHOUT_WINDOWS:
        raise reader.refuse("sliding_window", f"engines give {reader.kind} no window without layer_types")
    if sliding and window:
        values |= {"sliding_layers": sliding, "sliding_window_tokens": window}
    elif kinds and sliding and reader.get("use_sliding_window") is not False:
        raise reader.refuse("sliding_window", "missing, and layer_types names sliding layers")
    if chunked:
        values |= {"chunked_layers": chunked, "chunk_tokens": reader.need("attention_chunk_size")}


def _stateful(kind: str) -> bool:
    return any(part in kind for part in ("linear", "mamba", "conv", "recurrent", "ssm", "hybrid"))


def _pattern(reader: ConfigReader) -> int:
    """Every how many layers one is global; 0 where nothing says so."""
    value = reader.get("sliding_window_pattern", "_sliding_window_pattern")
    if isinstance(value, str):
        if set(value) - {"L", "G"} or value.count("G") != 1:
            raise reader.refuse("sliding_window_pattern", f"{value!r} is not local layers and one global one")
        return len(value)
    return reader.whole("sliding_window_pattern", "_sliding_window_pattern")


def experts(reader: ConfigReader, values: Values) -> None:
    """Routed and shared experts, and which layers have a dense MLP instead."""
    count = reader.whole("n_routed_experts", "num_local_experts", "num_experts")
    per_token = reader.whole("num_experts_per_tok", "experts_per_token", "num_experts_per_token")
    width = reader.whole("moe_intermediate_size") or values["intermediate"]
    shared = reader.whole("n_shared_experts", "num_shared_experts")
    shared_width = reader.whole("shared_expert_intermediate_size", "shared_intermediate_size")
    dense = _dense_layers(reader, values["layers"])
    if not count:
        return
    if shared_width and not shared:
        shared = 1
    values |= {
        "experts": count,
        "experts_per_token": per_token,
        "expert_intermediate": width,
        "shared_experts": shared,
        "shared_expert_intermediate": shared_width,
        "dense_layers": dense,
    }


def _dense_layers(reader: ConfigReader, layers: int) -> int:
    dense = set(range(reader.whole("first_k_dense_replace", "num_dense_layers")))
    dense |= {int(each) for each in reader.names("mlp_only_layers")}
    step = reader.whole("decoder_sparse_step", "interleave_moe_layer_step")
    if step > 1:
        dense |= {i for i in range(layers) if (i + 1) % step}
    frequency = reader.get("moe_layer_freq")
    if isinstance(frequency, (list, tuple)):
        dense |= {i for i, sparse in enumerate(frequency) if not sparse}
    elif isinstance(frequency, int) and frequency > 1:
        dense |= {i for i in range(layers) if i % frequency}
    kinds = reader.names("mlp_layer_types")
    if kinds:
        return kinds.count("dense")
    chosen = reader.names("moe_layers")
    if chosen:
        return layers - len(chosen)
    return len([i for i in dense if i < layers])


def mtp(reader: ConfigReader, values: Values) -> None:
    """Layers that predict tokens ahead."""
    modules = reader.whole("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
    per_module = reader.whole("mtp_transformer_layers") or 1
    reader.skip("use_mtp", "mtp_use_dedicated_embeddings")
    values["mtp_layers"] = modules * per_module


def plain(reader: ConfigReader, values: Values) -> None:
    """Grouped-query attention with windows, and a dense MLP or experts."""
    windows(reader, values)
    experts(reader, values)
    mtp(reader, values)


def latent(reader: ConfigReader, values: Values) -> None:
    """Multi-head latent attention (DeepSeek, Kimi K2), experts beside shared ones."""
    plain(reader, values)
    for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"):
        values[key] = reader.need(key)
    values["q_lora_rank"] = reader.whole("q_lora_rank")


def sparse_latent(reader: ConfigReader, values: Values) -> None:
    """The same with an indexer that chooses the tokens to attend to (DSA); layers may share their indexer's choice."""
    latent(reader, values)
    layers = values["layers"]
    kinds = reader.names("indexer_types")
    reader.skip("index_topk_freq", "index_skip_topk_offset", "index_topk_pattern")
    if not kinds and any(reader.get(key) for key in ("index_topk_freq", "index_topk_pattern")):
        raise reader.refuse("index_topk_freq", "layers that share an indexer, without indexer_types to say which")
    values |= {
        "index_layers": kinds.count("full") if kinds else layers,
        "index_heads": reader.need("index_n_heads"),
        "index_head_dim": reader.need("index_head_dim"),
        "index_topk": reader.need("index_topk"),
    }


def llama4(reader: ConfigReader, values: Values) -> None:
    """Three layers of four attend within their chunk of the context; one shared expert as wide as a routed one."""
    if not reader.names("layer_types"):
        period = 4
        values |= {
            "chunked_layers": values["layers"] - values["layers"] // period,
            "chunk_tokens": reader.whole("attention_chunk_size"),
        }
        if not values["chunk_tokens"]:
            values |= {"chunked_layers": 0}
    else:
        windows(reader, values)
    reader.skip("attention_chunk_size")
    experts(reader, values)
    values |= {"shared_experts": 1, "intermediate": reader.need("intermediate_size_mlp")}


def minimax_m2(reader: ConfigReader, values: Values) -> None:
    """Full attention in every layer, which ``attn_type_list`` says with ones."""
    if any(kind != 1 for kind in reader.names("attn_type_list")):
        raise reader.refuse("attn_type_list", "layers that are not full attention in a minimax_m2")
    plain(reader, values)


WITHOUT_WINDOWS = frozenset(
    (
        "llama",
        "olmo2",
        "granite",
        "granitemoe",
        "smollm3",
        "glm4",
        "glm4_moe",
        "seed_oss",
        "cohere",
        "gemma",
        "minimax_m2",
    )
)
"""Model types whose own code has no windows; ``sliding_window`` in such a config is a leftover, or another model."""

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
