"""Rows 1 to 4 of the planner's cases, and that no key of a config is passed over in silence."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.hardware.catalogue import gpu
from cluster.model.known_models import known_model
from cluster.model.model_config import read_config
from cluster.model.model_spec import ModelSpec
from cluster.model.precision import Precision, attention_left_wide, precision_of
from kv_transfer.kv_layout import kv_layout

DENSE: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 65536,
    "intermediate_size": 8192,
}
LFM2 = {
    **DENSE,
    "model_type": "lfm2",
    "conv_L_cache": 3,
    "layer_types": (["conv", "conv", "full_attention"] * 6)[:16],
    "block_auto_adjust_ff_dim": True,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
}
MINIMAX = {
    **DENSE,
    "model_type": "minimax_text_01",
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
    "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 2,
}
GEMMA3 = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304},
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
}


def test_row_1_convolutions_keep_a_state_and_attention_the_context() -> None:
    model = read_config(LFM2)
    assert (model.attention_layers, model.state and model.state.layers) == (5, 11)
    assert model.state is not None and model.state.bytes_per_gpu(1) == 2048 * 2 * 2
    # Its MLP is two thirds of what intermediate_size says, in whole multiples of 256.
    assert model.intermediate == 5632
    attention_alone = read_config({**DENSE, "intermediate_size": 5632})
    one, other = (kv_layout(each, block_size_tokens=16).request_bytes(32768) for each in (model, attention_alone))
    assert one < 0.4 * other


def test_row_2_recurrent_gemma_is_refused_by_name() -> None:
    asked = {**DENSE, "model_type": "recurrent_gemma", "block_types": ["recurrent", "recurrent", "attention"]}
    with pytest.raises(ConfigError, match=r"recurrent_gemma.*block_types.*by_hand"):
        read_config({**asked, "attention_window_size": 2048})


def test_row_3_seven_linear_layers_to_one_with_attention() -> None:
    model = read_config(MINIMAX)
    assert (model.attention_layers, model.state and model.state.layers) == (2, 14)
    short, long = (kv_layout(model, block_size_tokens=16).request_bytes(tokens) for tokens in (16, 65536))
    grown = read_config({**DENSE, "num_hidden_layers": 2})
    assert long - short == pytest.approx(kv_layout(grown, block_size_tokens=16).request_bytes(65536), rel=0.01)


@pytest.mark.parametrize("listed", [False, True])
def test_row_4_local_layers_keep_a_window_in_both_forms_of_gemma_3(listed: bool) -> None:
    text = dict(GEMMA3["text_config"])  # type: ignore[call-overload]
    if listed:
        text.pop("sliding_window_pattern")
        text["layer_types"] = [
            "full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(text["num_hidden_layers"])
        ]
    model = read_config({**GEMMA3, "text_config": text})
    assert (model.sliding_layers, model.sliding_window_tokens, model.full_attention_layers) == (52, 1024, 10)
    assert model.vocab == 262208 and model.tied_embeddings and model.extra_params > 0.4e9
    full = read_config({**GEMMA3, "text_config": {**text, "sliding_window": 131072}})
    near, far = (kv_layout(each, block_size_tokens=16).request_bytes(32768) for each in (model, full))
    assert near < 0.25 * far


def test_windows_by_depth_and_switches() -> None:
    qwen = {**DENSE, "model_type": "qwen2", "sliding_window": 4096, "max_window_layers": 12}
    assert read_config(qwen).sliding_layers == 0
    assert read_config({**qwen, "use_sliding_window": True}).sliding_layers == 4
    assert read_config({**DENSE, "model_type": "mistral"}).sliding_layers == 16
    assert read_config({**DENSE, "model_type": "mistral", "sliding_window": None}).sliding_layers == 0
    exaone = {**DENSE, "model_type": "exaone4", "sliding_window": 4096, "sliding_window_pattern": "LLLG"}
    assert read_config(exaone).full_attention_layers == 4


def test_chunks_of_llama_4_and_its_two_kinds_of_mlp() -> None:
    model = read_config(
        {
            "model_type": "llama4",
            "text_config": {
                "model_type": "llama4_text",
                "attention_chunk_size": 8192,
                "hidden_size": 5120,
                "interleave_moe_layer_step": 2,
                "intermediate_size": 8192,
                "intermediate_size_mlp": 16384,
                "num_attention_heads": 40,
                "num_experts_per_tok": 1,
                "num_hidden_layers": 48,
                "num_key_value_heads": 8,
                "num_local_experts": 128,
                "vocab_size": 202048,
            },
        }
    )
    assert (model.chunked_layers, model.dense_layers) == (36, 24)
    assert model.weights.params / 1e9 == pytest.approx(400.7, rel=0.005)


def test_nemotron_h_by_its_pattern_has_what_is_published() -> None:
    model = read_config(
        {
            "model_type": "nemotron_h",
            "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            "num_hidden_layers": 52,
            "hidden_size": 2688,
            "intermediate_size": 1856,
            "mamba_head_dim": 64,
            "mamba_num_heads": 64,
            "head_dim": 128,
            "moe_intermediate_size": 1856,
            "moe_shared_expert_intermediate_size": 3712,
            "n_groups": 8,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "num_attention_heads": 32,
            "num_experts_per_tok": 6,
            "num_key_value_heads": 2,
            "ssm_state_size": 128,
            "vocab_size": 131072,
        }
    )
    assert model.state is not None
    assert (model.state.layers, model.attention_layers, model.moe_layers) == (23, 6, 23)
    assert model.weights.params / 1e9 == pytest.approx(
        31.6, rel=0.005
    ) and model.weights.active_params / 1e9 == pytest.approx(3.2, rel=0.02)


@pytest.mark.parametrize(
    ("name", "billions", "active"), [("GLM-5", 744, 40), ("Qwen3.5-397B-A17B", 397, 17), ("DeepSeek-V3.2", 671, 37)]
)
def test_hybrid_models_known_by_name_have_what_is_published(name: str, billions: float, active: float) -> None:
    model = known_model(name)
    assert model.weights.params / 1e9 == pytest.approx(billions, rel=0.01)
    assert model.weights.active_params / 1e9 == pytest.approx(active, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3n"}, "gemma3n"),
        ({"model_type": "brand_new"}, r"brand_new.*by_hand"),
        ({"kv_sharing_stride": 2}, r"kv_sharing_stride.*ignore_keys"),
        ({"block_types": ["recurrent"]}, "block_types"),
        ({"audio_config": {}, "text_config": {**DENSE}}, "audio_config"),
        ({"layer_types": ["sliding_attention"] * 16}, "sliding_window"),
        ({"layer_types": ["full_attention"]}, "16 layers"),
        ({"sliding_window": 4096}, "sliding_window.*llama"),
        ({"model_type": "minimax_text_01", "attn_type_list": [0, 2] * 8}, "attn_type_list"),
        ({"model_type": "minimax_text_01"}, "attn_type_list"),
        ({"model_type": "jamba", "mamba_ssm_cache_dtype": "int8"}, "mamba_ssm_cache_dtype"),
        ({"model_type": "lfm2", "layer_types": ["conv"] * 16}, "keeps keys and values"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quant_method"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}}, "quant_algo"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"a": {"weights": {"num_bits": 8, "type": "int"}}},
                }
            },
            "num_bits",
        ),
    ],
)
def test_what_is_not_modelled_is_refused_in_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_config({**DENSE, **change})
    assert "\n" not in str(caught.value)


def test_a_key_may_be_ignored_by_whoever_knows_it() -> None:
    strange = {**DENSE, "my_note": "hello"}
    assert read_config(strange, "m", ("my_note",)) == read_config(DENSE, "m")


def test_a_geometry_by_hand_is_taken_and_checked() -> None:
    by_hand = {"name": "m", "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 4, "head_dim": 16, "vocab": 100}
    state = {"kind": "mine", "layers": 1, "params": 10, "conv_width": 64, "conv_tokens": 3}
    model = ModelSpec.from_record({**by_hand, "intermediate": 128, "attention_layers": 1, "state": state})
    assert model.state is not None and model.state.bytes_per_gpu(1) == 64 * 3 * 2
    with pytest.raises(ConfigError, match="layer: unknown"):
        ModelSpec.from_record({**by_hand, "layer": 3})
    with pytest.raises(ConfigError, match="intermediate"):
        ModelSpec.from_record(by_hand)


def test_narrow_weights_run_by_what_the_gpu_can_do() -> None:
    hopper, blackwell = gpu("H200-SXM"), gpu("B200-SXM")
    assert hopper.rate(Precision.NVFP4) == hopper.bf16_flops and blackwell.rate(Precision.NVFP4) == blackwell.fp4_flops
    assert hopper.rate(Precision.MXFP4) == hopper.bf16_flops and blackwell.rate(Precision.MXFP4) == blackwell.fp8_flops
    assert gpu("A100-SXM-80").rate(Precision.FP8) == gpu("A100-SXM-80").bf16_flops


def test_quantisation_is_read_from_the_config_or_beside_it(tmp_path: Path) -> None:
    float4 = {"num_bits": 4, "type": "float", "group_size": 16}
    quant = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": float4}}}
    assert precision_of(quant) is Precision.NVFP4
    assert attention_left_wide({"ignore": ["model.layers.0.self_attn*"]}, Precision.NVFP4, True)
    assert not attention_left_wide({"ignore": ["model.layers.0.self_attn.q_norm"]}, Precision.FP8, True)
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    model = read_config(tmp_path)
    assert (model.precision, model.kv_dtype_bytes) == (Precision.NVFP4, 1.0)
    (tmp_path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="hf_quant_config"):
        read_config(tmp_path)
