"""Readers of configs whose layers all attend: windows, chunks, experts, latent and sparse attention."""

from __future__ import annotations

from cluster.model.config_keys import ConfigReader, Values

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
