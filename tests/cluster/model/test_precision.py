"""How a checkpoint says that its weights are stored."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.model.precision import Precision, attention_left_wide, kv_dtype_bytes_of, precision_of


def groups(*weights: dict[str, Any]) -> dict[str, Any]:
    each = {f"group_{index}": {"weights": weight} for index, weight in enumerate(weights)}
    return {"quant_method": "compressed-tensors", "config_groups": each}


@pytest.mark.parametrize(
    ("quant", "precision"),
    [
        (None, Precision.BF16),
        ({}, Precision.BF16),
        ({"quant_method": "mxfp4"}, Precision.MXFP4),
        ({"quant_method": "modelopt"}, Precision.FP8),
        ({"quant_method": "modelopt", "quant_algo": "nvfp4"}, Precision.NVFP4),
        ({"quant_method": "modelopt_fp4"}, Precision.NVFP4),
        ({"quant_method": "fp8"}, Precision.FP8),
        ({"quant_method": "FP8", "weight_block_size": [128, 128]}, Precision.FP8_BLOCK),
        ({"quant_method": "fbgemm_fp8"}, Precision.FP8),
        ({"quant_method": "awq"}, Precision.INT4),
        ({"quant_method": "awq", "w_bit": 4}, Precision.INT4),
        ({"quant_method": "gptq", "bits": 4}, Precision.INT4),
        (groups(), Precision.BF16),
        (groups({}), Precision.BF16),
        (groups({"num_bits": 8, "type": "float"}), Precision.FP8),
        (groups({"num_bits": 4, "type": "int"}, {"num_bits": 4, "type": "int"}), Precision.INT4),
        (groups({"num_bits": 4, "type": "float"}), Precision.NVFP4),
        (groups({"num_bits": 4, "type": "float", "group_size": 32}), Precision.MXFP4),
    ],
)
def test_each_way_of_saying_it_is_read(quant: dict[str, Any] | None, precision: Precision) -> None:
    assert precision_of(quant) is precision


@pytest.mark.parametrize(
    ("quant", "named"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method='bitsandbytes'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8"}, "quant_algo='W4A8'"),
        ({"quant_method": "gptq", "bits": 8}, "bits=8"),
        (groups({"num_bits": 8, "type": "int"}), "num_bits='8 int'"),
        (groups({"num_bits": 8, "type": "float"}, {"num_bits": 4, "type": "float"}), "several widths"),
    ],
)
def test_what_is_not_known_is_refused_by_name(quant: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match="by_hand") as refused:
        precision_of(quant)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("names", "wide"),
    [
        (["model.layers.0.self_attn.q_proj"], True),
        (["re:.*self_attn.*"], True),
        (["model.layers.*.self_attn*"], True),
        (["lm_head"], False),
        (["model.layers.0.self_attn.q_norm"], False),
        (["model.layers.0.self_attn.indexer"], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("key", ["ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules"])
def test_attention_is_wide_where_its_projections_are_left_alone(key: str, names: list[str], wide: bool) -> None:
    assert attention_left_wide({key: names}, Precision.FP8, experts=False) is wide
    assert not attention_left_wide({key: names}, Precision.BF16, experts=False)


@pytest.mark.parametrize(
    ("precision", "experts", "wide"),
    [
        (Precision.MXFP4, False, True),
        (Precision.INT4, True, True),
        (Precision.INT4, False, False),
        (Precision.FP8, True, False),
    ],
)
def test_four_bit_experts_leave_attention_wide_unsaid(precision: Precision, experts: bool, wide: bool) -> None:
    assert attention_left_wide(None, precision, experts) is wide


@pytest.mark.parametrize(
    ("quant", "size"),
    [
        (None, 2.0),
        ({"kv_cache_scheme": {"num_bits": 8}}, 1.0),
        ({"kv_cache_scheme": {"num_bits": 16}}, 2.0),
        ({"kv_cache_scheme": None}, 2.0),
        ({"kv_cache_quant_algo": "fp8"}, 1.0),
    ],
)
def test_kv_is_as_wide_as_the_checkpoint_asks(quant: dict[str, Any] | None, size: float) -> None:
    assert kv_dtype_bytes_of(quant) == size


def test_no_weight_is_larger_than_bf16_and_scales_count() -> None:
    assert max(each.weight_bytes for each in Precision) == Precision.BF16.weight_bytes
    assert all(each.weight_bytes > 0.5 for each in (Precision.INT4, Precision.MXFP4, Precision.NVFP4))
