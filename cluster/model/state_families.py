"""Readers of hybrid model types: layers with a state of fixed size among, or beside, those with attention."""

from __future__ import annotations

from typing import Any

from cluster.model.attention_families import experts, latent, mtp
from cluster.model.config_keys import ConfigReader, Values
from cluster.model.state_layers import StateLayers


def _experts(reader: ConfigReader, values: Values) -> None:
    experts(reader, values)
    mtp(reader, values)


def _counts(reader: ConfigReader, values: Values, state: tuple[str, ...], attention: tuple[str, ...]) -> int:
    """Layers with a state by ``layer_types``; the others keep keys and values. 0 where the key is absent."""
    kinds = [str(kind) for kind in reader.names("layer_types")]
    if not kinds:
        return 0
    if strange := sorted(set(kinds) - set(state) - set(attention)):
        raise reader.refuse("layer_types", f"layers of kind {strange[0]!r} are not modelled for this model type")
    if len(kinds) != values["layers"]:
        raise reader.refuse("layer_types", f"{len(kinds)} entries for {values['layers']} layers")
    return sum(kind in state for kind in kinds)


def _with_state(reader: ConfigReader, values: Values, layers: int, **state: Any) -> None:
    """Record the state layers; the rest are attention."""
    if not layers:
        return
    values["state"] = StateLayers(layers=layers, **state)
    values["attention_layers"] = values["layers"] - layers
    if values["attention_layers"] < 1:
        raise reader.refuse("layer_types", "no layer keeps keys and values")


def state_dtype_bytes(reader: ConfigReader, *keys: str, default: str) -> float:
    """Bytes of one value of the recurrent state, as the config says or the engine takes.

    Raises:
        ConfigError: another type.
    """
    name = str(reader.get(*keys) or default)
    if name not in ("float32", "bfloat16", "float16"):
        raise reader.refuse(keys[0], f"{name!r}: expected float32, bfloat16 or float16")
    return 4.0 if name == "float32" else 2.0


def short_conv(reader: ConfigReader, values: Values) -> None:
    """LFM2: gated short convolutions, attention in the layers that ``layer_types`` names."""
    hidden, layers = values["hidden"], values["layers"]
    reader.skip("conv_dim_out", "conv_dim", "theta", "num_heads", "block_use_swiglu", "block_use_xavier_init")
    reader.skip("block_dim", "block_norm_eps", "block_mlp_init_scale", "block_out_init_scale", "block_multiple_of_dim")
    conv = _counts(reader, values, ("conv",), ("full_attention",))
    if not conv:
        chosen = reader.names("full_attn_idxs")
        conv = layers - len(chosen) if chosen else 0
    reader.skip("full_attn_idxs")
    width = reader.whole("block_ff_dim") or values["intermediate"]
    adjust = reader.get("block_auto_adjust_ff_dim")
    multiple, factor = reader.whole("block_multiple_of") or 256, reader.get("block_ffn_dim_multiplier")
    if reader.kind == "lfm2" and adjust is not False:
        # As the model's own code rounds the width of its MLP.
        width = int(2 * width / 3)
        width = int(float(factor) * width) if factor is not None else width
        width = multiple * -(-width // multiple)
    values["intermediate"] = width
    window = reader.need("conv_L_cache")
    params = 4 * hidden * hidden + hidden * window
    _with_state(
        reader, values, conv, kind="short convolution", params=params, conv_width=hidden, conv_tokens=window - 1
    )
    _experts(reader, values)


def jamba(reader: ConfigReader, values: Values) -> None:
    """Jamba: Mamba layers, attention every ``attn_layer_period``, experts every ``expert_layer_period``."""
    layers, hidden = values["layers"], values["hidden"]
    inner, states = reader.need("mamba_expand") * hidden, reader.need("mamba_d_state")
    window = reader.need("mamba_d_conv")
    rank = reader.get("mamba_dt_rank")
    rank = rank if isinstance(rank, int) else -(-hidden // 16)
    period, offset = reader.need("attn_layer_period"), reader.need("attn_layer_offset")
    attention = sum(i % period == offset for i in range(layers))
    kinds = reader.names("layers_block_type")
    if kinds:
        attention = kinds.count("attention")
    params = 3 * inner * hidden + inner * (window + rank + 2 * states) + rank * inner + inner * states
    _with_state(
        reader,
        values,
        layers - attention,
        kind="mamba",
        params=params,
        conv_width=inner,
        conv_tokens=window - 1,
        state_heads=inner,
        state_width=states,
        state_dtype_bytes=state_dtype_bytes(reader, "mamba_ssm_cache_dtype", default="bfloat16"),
    )
    period, offset = reader.need("expert_layer_period"), reader.need("expert_layer_offset")
    _experts(reader, values)
    if values.get("experts", 0) <= 1:
        for key in [key for key in values if "expert" in key] + ["dense_layers"]:
            values.pop(key, None)
    else:
        values["dense_layers"] = layers - sum(i % period == offset for i in range(layers))


def _mamba2(
    hidden: int, heads: int, head_dim: int, groups: int, states: int, window: int, dtype_bytes: float
) -> dict[str, Any]:
    inner = heads * head_dim
    conv = inner + 2 * groups * states
    return {
        "kind": "mamba2",
        "params": hidden * (inner + conv + heads) + conv * window + inner * hidden,
        "conv_width": conv,
        "conv_tokens": window - 1,
        "state_heads": heads,
        "state_width": head_dim * states,
        "state_dtype_bytes": dtype_bytes,
        "groups": groups,
        "group_width": 2 * states,
    }


def _mamba2_keys(reader: ConfigReader, values: Values) -> dict[str, Any]:
    hidden, heads = values["hidden"], reader.need("mamba_n_heads")
    reader.skip("mamba_expand")
    inner = reader.whole("mamba_d_ssm") or reader.need("mamba_expand") * hidden
    head_dim = reader.get("mamba_d_head")
    head_dim = head_dim if isinstance(head_dim, int) else inner // heads
    if heads * head_dim != inner:
        raise reader.refuse("mamba_n_heads", f"{heads} heads of {head_dim} are not the width of {inner}")
    return _mamba2(
        hidden,
        heads,
        head_dim,
        reader.need("mamba_n_groups"),
        reader.need("mamba_d_state"),
        reader.need("mamba_d_conv"),
        state_dtype_bytes(reader, "mamba_ssm_cache_dtype", "mamba_ssm_dtype", default="bfloat16"),
    )


def mamba2_granite(reader: ConfigReader, values: Values) -> None:
    """Granite 4 and Bamba: Mamba-2 layers, attention where ``layer_types`` or ``attn_layer_indices`` says."""
    chosen = reader.names("attn_layer_indices")
    kinds = _counts(reader, values, ("mamba", "linear_attention"), ("attention", "full_attention"))
    layers = kinds or (values["layers"] - len(chosen) if chosen else 0)
    state = _mamba2_keys(reader, values)
    _with_state(reader, values, layers, **state)
    _experts(reader, values)
    if not values.get("experts") and reader.whole("shared_intermediate_size"):
        values["intermediate"] = reader.whole("shared_intermediate_size")


def mamba2_parallel(reader: ConfigReader, values: Values) -> None:
    """Falcon-H1: attention and a Mamba-2 mixer side by side in every layer."""
    reader.skip("mamba_use_mlp", "projectors_bias", "attn_layer_indices")
    values["state"] = StateLayers(layers=values["layers"], **_mamba2_keys(reader, values))


def nemotron_h(reader: ConfigReader, values: Values) -> None:
    """Nemotron-H: each layer is one of a Mamba-2 mixer, attention, an MLP or experts, by a pattern."""
    pattern = reader.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        kinds = ["M*-E".find(mark) for mark in pattern]
    else:
        names = ("mamba", "linear_attention"), ("attention", "full_attention"), ("mlp",), ("moe",)
        listed = [str(kind) for kind in reader.names("layers_block_type")]
        kinds = [next((i for i, each in enumerate(names) if kind in each), -1) for kind in listed]
    reader.skip(
        "mtp_hybrid_override_pattern", "mtp_layers_block_type", "expand", "mamba_num_groups", "norm_before_gate"
    )
    if not kinds or -1 in kinds or len(kinds) != values["layers"]:
        raise reader.refuse("hybrid_override_pattern", f"expected {values['layers']} of M, *, - and E")
    window = reader.whole("sliding_window")
    if window:
        raise reader.refuse("sliding_window", "windows in a nemotron_h are not modelled")
    state = _mamba2(
        values["hidden"],
        reader.need("mamba_num_heads"),
        reader.need("mamba_head_dim"),
        reader.need("n_groups"),
        reader.need("ssm_state_size"),
        reader.need("conv_kernel"),
        state_dtype_bytes(reader, "mamba_ssm_cache_dtype", default="float32"),
    )
    if not kinds.count(1):
        raise reader.refuse("hybrid_override_pattern", "no layer keeps keys and values")
    routed, shared_width = kinds.count(3), reader.whole("moe_shared_expert_intermediate_size")
    latent = reader.whole("moe_latent_size")
    _experts(reader, values)
    if not routed:
        for key in [key for key in values if "expert" in key]:
            values.pop(key)
    else:
        values |= {"shared_expert_intermediate": shared_width, "expert_hidden": latent}
    values |= {
        "attention_layers": kinds.count(1),
        "mlp_layers": kinds.count(2) + routed,
        "dense_layers": kinds.count(2) if routed else 0,
        "mlp_matrices": 2,
    }
    if kinds.count(0):
        values["state"] = StateLayers(layers=kinds.count(0), **state)


def lightning(reader: ConfigReader, values: Values) -> None:
    """MiniMax-Text-01: lightning attention, full attention where ``attn_type_list`` (1) or ``layer_types`` says."""
    marks = reader.names("attn_type_list")
    if marks and len(marks) != values["layers"]:
        raise reader.refuse("attn_type_list", f"{len(marks)} entries for {values['layers']} layers")
    if set(marks) - {0, 1}:
        raise reader.refuse("attn_type_list", "expected 0 (linear) and 1 (full attention)")
    layers = marks.count(0) or _counts(reader, values, ("linear_attention",), ("full_attention",))
    if not marks and not reader.names("layer_types"):
        raise reader.refuse("attn_type_list", "missing: it says which layers are linear attention")
    reader.skip("block_size")
    if reader.whole("sliding_window"):
        raise reader.refuse("sliding_window", "windows in a minimax_text_01 are not modelled")
    heads, head_dim = values["heads"], values["head_dim"]
    _with_state(
        reader,
        values,
        layers,
        kind="lightning attention",
        params=5 * values["hidden"] * heads * head_dim,
        state_heads=heads,
        state_width=head_dim * head_dim,
    )
    reader.skip("shared_moe_mode", "shared_moe_coefficient", "layernorm_coefficient")
    if any(reader.get(key) for key in ("shared_intermediate_size",)):
        raise reader.refuse("shared_intermediate_size", "a shared expert in a minimax_text_01 is not modelled")
    _experts(reader, values)


def gated_delta_net(reader: ConfigReader, values: Values) -> None:
    """Qwen3-Next and Qwen3.5: gated delta nets, gated attention in every ``full_attention_interval``-th layer."""
    layers, hidden = values["layers"], values["hidden"]
    keys, key_dim = reader.need("linear_num_key_heads"), reader.need("linear_key_head_dim")
    heads, head_dim = reader.need("linear_num_value_heads"), reader.need("linear_value_head_dim")
    window, interval = reader.need("linear_conv_kernel_dim"), reader.need("full_attention_interval")
    linear = _counts(reader, values, ("linear_attention",), ("full_attention",)) or layers - layers // interval
    conv = 2 * keys * key_dim + heads * head_dim
    default = "float32" if reader.kind.startswith("qwen3_5") else "bfloat16"
    _with_state(
        reader,
        values,
        linear,
        kind="gated delta net",
        params=hidden * (conv + heads * head_dim + 2 * heads) + conv * window + heads * head_dim * hidden,
        conv_width=conv,
        conv_tokens=window - 1,
        state_heads=heads,
        state_width=head_dim * key_dim,
        state_dtype_bytes=state_dtype_bytes(reader, "mamba_ssm_dtype", "mamba_ssm_cache_dtype", default=default),
    )
    values["attention_gate"] = reader.get("attn_output_gate") is not False
    reader.skip("output_gate_type")
    _experts(reader, values)


def kimi_delta(reader: ConfigReader, values: Values) -> None:
    """Kimi Linear: Kimi delta attention, latent attention in the layers listed."""
    hidden, layers = values["hidden"], values["layers"]
    block = reader.get("linear_attn_config")
    if isinstance(block, dict):
        heads, head_dim = int(block["num_heads"]), int(block["head_dim"])
        window, linear = int(block.get("short_conv_kernel_size", 4)), len(block["kda_layers"])
        if linear + len(block.get("full_attn_layers", [])) != layers:
            raise reader.refuse("linear_attn_config", f"its lists do not add up to {layers} layers")
    else:
        heads, head_dim = reader.need("linear_num_heads"), reader.need("linear_head_dim")
        window, linear = reader.need("linear_conv_kernel_dim"), 0
        kinds = [str(kind) for kind in reader.names("layer_types")]
        linear = kinds.count("linear_attention")
    if not linear:
        raise reader.refuse("linear_attn_config", "missing: it says which layers are linear attention")
    saved = reader.config.pop("layer_types", None)
    latent(reader, values)
    if saved is not None:
        reader.config["layer_types"] = saved
    width = heads * head_dim
    _with_state(
        reader,
        values,
        linear,
        kind="Kimi delta attention",
        params=4 * hidden * width + 2 * (hidden + width) * head_dim + hidden * heads + 3 * width * window,
        conv_width=3 * width,
        conv_tokens=window - 1,
        state_heads=heads,
        state_width=head_dim * head_dim,
        state_dtype_bytes=4.0,
    )
