import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.model.known_models import known_model, known_models
from cluster.model.model_config import read_config
from kv_transfer.kv_layout import KvGroups, kv_layout

SCRIPT = Path(__file__).parent.parent / "support" / "vllm_kv_capacity.py"
BUDGET_BYTES = 40 * 2**30
LENGTHS_TOKENS = [2048, 6000, 16384, 32768]
DENSE = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 2048,
    "vocab_size": 4096,
    "max_position_embeddings": 32768,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
MAMBA2 = {
    "mamba_n_heads": 32,
    "mamba_d_head": 64,
    "mamba_n_groups": 1,
    "mamba_d_state": 128,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}
LINEAR = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
}
# Kinds of layers in the proportions and numbers that published models have; widths are small.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**DENSE, "num_hidden_layers": 32}),
    "qwen3": ("Qwen3ForCausalLM", {**DENSE, "num_hidden_layers": 36, "use_sliding_window": False}),
    "mistral": ("MistralForCausalLM", {**DENSE, "num_hidden_layers": 32, "sliding_window": 4096}),
    "gemma2": ("Gemma2ForCausalLM", {**DENSE, "num_hidden_layers": 42, "sliding_window": 4096, "model_type": "gemma2"}),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {**DENSE, "num_hidden_layers": 62, "sliding_window": 1024, "sliding_window_pattern": 6},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        {
            **DENSE,
            "num_hidden_layers": 24,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
        },
    ),
    "llama4_text": (
        "Llama4ForCausalLM",
        {
            **DENSE,
            "num_hidden_layers": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 2048,
            "attention_chunk_size": 8192,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            **DENSE,
            "num_hidden_layers": 61,
            "num_key_value_heads": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "n_shared_experts": 1,
            "first_k_dense_replace": 3,
            "n_group": 1,
            "topk_group": 1,
            "kv_lora_rank": 512,
            "q_lora_rank": 256,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
        },
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        {
            **DENSE,
            "num_hidden_layers": 16,
            "head_dim": 64,
            "block_dim": 1024,
            "block_ff_dim": 2048,
            "conv_bias": False,
            "norm_eps": 1e-5,
            "conv_dim": 1024,
            "conv_dim_out": 1024,
            "conv_L_cache": 3,
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "layer_types": [
                *("conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv"),
                *(
                    "full_attention",
                    "conv",
                    "full_attention",
                    "conv",
                    "full_attention",
                    "conv",
                    "full_attention",
                    "conv",
                ),
            ],
        },
    ),
    "jamba": (
        "JambaForCausalLM",
        {
            **DENSE,
            "head_dim": 64,
            "num_hidden_layers": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_dt_rank": 64,
        },
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        {
            **DENSE,
            **MAMBA2,
            "head_dim": 64,
            "num_hidden_layers": 40,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 256,
            "layer_types": (["mamba"] * 9 + ["attention"]) * 4,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
            "attention_multiplier": 1.0,
            "position_embedding_type": "nope",
        },
    ),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        {**DENSE, **MAMBA2, "num_hidden_layers": 36, "mamba_d_ssm": 2048, "mamba_chunk_size": 128},
    ),
    "nemotron_h": (
        "NemotronHForCausalLM",
        {
            **DENSE,
            "num_hidden_layers": 52,
            "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
            "mamba_num_heads": 32,
            "mamba_head_dim": 64,
            "n_groups": 8,
            "ssm_state_size": 128,
            "conv_kernel": 4,
        },
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        {
            **DENSE,
            **LINEAR,
            **EXPERTS,
            "num_hidden_layers": 48,
            "shared_expert_intermediate_size": 256,
            "full_attention_interval": 4,
            "decoder_sparse_step": 1,
        },
    ),
}


def _config(kind: str) -> dict[str, Any]:
    stateful = kind in ("jamba", "granitemoehybrid", "falcon_h1", "nemotron_h", "qwen3_next")
    return {"model_type": kind, **CASES[kind][1], **({"mamba_ssm_cache_dtype": "float32"} if stateful else {})}


@pytest.fixture(scope="module")
def vllm_capacity() -> dict[str, Any]:
    asked = [
        {"name": kind, "config": _config(kind), "architecture": CASES[kind][0], "lengths_tokens": LENGTHS_TOKENS}
        for kind in CASES
    ]
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], input=json.dumps(asked), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.engine
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", CASES)
def test_kv_capacity_is_what_vllm_computes(kind: str, vllm_capacity: dict[str, Any]) -> None:
    theirs, model = vllm_capacity[kind], read_config(_config(kind), kind)
    # vLLM's backend for latent attention on CPUs takes smaller blocks than asked for.
    layout = kv_layout(model, block_size_tokens=32 if model.state else theirs["block_tokens"])
    for length in LENGTHS_TOKENS:
        held = theirs["pool_blocks"] / theirs["request_blocks"][str(length)]
        # vLLM's figure leaves the empty block in; a windowed layer counts a block more than a short request has.
        ours = (layout.pool_blocks(BUDGET_BYTES) + 1) / layout.blocks(length, theirs["in_flight_tokens"])
        assert ours == pytest.approx(held, rel=0.03), (layout, theirs)
    assert sum(each.groups for each in layout.kinds) == theirs["groups"]
    assert layout.block_tokens == theirs["block_tokens"]


def test_latent_attention_beside_an_indexer_is_one_block_table() -> None:
    """DeepSeek-V3.2's two caches, which vLLM builds on GPUs alone: the bytes of its own specs, in one group."""
    torch = pytest.importorskip("torch")
    interface = pytest.importorskip("vllm.v1.kv_cache_interface")
    latent = interface.MLAAttentionSpec(block_size=64, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)
    index = interface.MLAAttentionSpec(block_size=64, num_kv_heads=1, head_size=132, dtype=torch.uint8)
    specs = {f"{i}.{name}": spec for i in range(61) for name, spec in (("attn", latent), ("indexer", index))}
    together = interface.UniformTypeKVCacheSpecs.from_specs(specs)
    layout = kv_layout(known_model("DeepSeek-V3.2"), block_size_tokens=64)
    assert together is not None and layout.plain
    assert layout.block_bytes == together.page_size_bytes


def test_kimi_linear_has_the_states_that_vllm_computes() -> None:
    mamba_utils = pytest.importorskip("vllm.model_executor.layers.mamba.mamba_utils")
    conv, state = mamba_utils.MambaStateShapeCalculator.kda_state_shape(4, 32, 128)
    model = read_config(
        {
            "model_type": "kimi_linear",
            "num_hidden_layers": 27,
            "hidden_size": 2304,
            "num_attention_heads": 32,
            "vocab_size": 163840,
            "intermediate_size": 9216,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "linear_attn_config": {
                "num_heads": 32,
                "head_dim": 128,
                "short_conv_kernel_size": 4,
                "kda_layers": [i for i in range(27) if i % 4 != 3 and i != 26],
                "full_attn_layers": [3, 7, 11, 15, 19, 23, 26],
            },
        }
    )
    assert model.state is not None and (model.state.layers, model.attention_layers) == (20, 7)
    assert model.state.bytes_per_gpu(4) == conv[0] * conv[1] * 2 + state[0] * state[1] * state[2] * 4
    # Blocks are made large enough for a state, in steps of 128 tokens as vLLM asks for latent attention.
    layout = kv_layout(model, 4, block_size_tokens=16)
    assert layout.block_tokens % 128 == 0
    assert layout.block_tokens * 576 * 2 >= model.state.bytes_per_gpu(4) > (layout.block_tokens - 128) * 576 * 2


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_states_are_cut_as_vllm_cuts_them(tp: int) -> None:
    mamba_utils = pytest.importorskip("vllm.model_executor.layers.mamba.mamba_utils")
    shapes = mamba_utils.MambaStateShapeCalculator
    for groups in (1, 8):
        kind = {**_config("nemotron_h"), "n_groups": groups}
        conv, state = shapes.mamba2_state_shape(tp, 2048, groups, 32, 64, 128, 4)
        model = read_config(kind)
        assert model.state is not None
        theirs = conv[0] * conv[1] * 2 + state[0] * state[1] * state[2] * 4
        assert model.state.bytes_per_gpu(tp) == theirs
    (theirs_linear,) = shapes.linear_attention_state_shape(64, tp, 128)
    minimax = read_config(MINIMAX)
    assert minimax.state is not None
    assert minimax.state.bytes_per_gpu(tp) == theirs_linear[0] * theirs_linear[1] * theirs_linear[2] * 2


MINIMAX = {
    "model_type": "minimax_text_01",
    "num_hidden_layers": 80,
    "hidden_size": 6144,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 200064,
    "intermediate_size": 9216,
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
    "attn_type_list": ([0] * 7 + [1]) * 10,
}


@given(st.integers(1, 200_000), st.integers(1, 5000), st.integers(1, 256))
def test_a_window_never_holds_more_than_all_tokens_or_much_more_than_itself(
    context: int, window: int, block: int
) -> None:
    near, far = KvGroups(3, 9, window_tokens=window), KvGroups(3, 9)
    held = near.blocks(context, block)
    assert 0 < held <= far.blocks(context, block)
    assert held <= 3 * ((window + 2 * block) / block + 1)
    assert held * block >= 3 * min(context, window - 1)


@given(st.sampled_from(sorted(known_models())), st.integers(1, 100_000), st.integers(1, 10_000))
def test_a_longer_request_holds_no_less(name: str, context: int, more: int) -> None:
    layout = kv_layout(known_model(name), 2, block_size_tokens=32)
    assert layout.blocks(context + more) >= layout.blocks(context) > 0
    assert layout.pool_blocks(layout.block_bytes * 10.5) == 9


def test_stages_share_the_layers_and_bad_blocks_are_refused() -> None:
    model = known_model("Llama-3.1-70B")
    assert kv_layout(model, 4, pp=2).block_bytes * 2 == kv_layout(model, 4).block_bytes
    with pytest.raises(ConfigError, match="block_size_tokens"):
        kv_layout(model, block_size_tokens=0)
