"""Weights add up, whatever the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.model.known_models import known_model, known_models
from cluster.model.model_choice import ModelChoice
from cluster.model.model_spec import ModelSpec
from cluster.model.precision import Precision
from cluster.model.state_layers import StateLayers

EVERY = sorted(known_models())
SMALL = ModelSpec("small", layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, vocab=100, intermediate=128)


@pytest.mark.parametrize("name", EVERY)
def test_the_whole_is_the_sum_of_its_parts(name: str) -> None:
    model = known_model(name)
    weights = model.weights
    experts = model.moe_layers * (
        model.experts * weights.expert_params + weights.shared_params + model.hidden * model.experts
    )
    dense = (model.mlp_layers - model.moe_layers) * weights.dense_mlp_params
    assert weights.linear_params == weights.mixer_params + experts + dense
    ends = weights.params - weights.linear_params
    assert ends == weights.embedding_params * (1 if model.tied_embeddings else 2)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("precision", list(Precision))
def test_bytes_follow_the_precision_and_are_never_more_than_in_bf16(name: str, precision: Precision) -> None:
    wide = known_model(name).with_precision("bf16")
    narrow = wide.with_precision(precision)
    saved = wide.weights.total_bytes - narrow.weights.total_bytes
    counted = narrow.weights.linear_params - (narrow.weights.mixer_params if narrow.quantised_experts_only else 0)
    assert saved == pytest.approx(counted * (2.0 - precision.weight_bytes), rel=1e-9)
    assert narrow.weights.params == wide.weights.params


@given(used=st.integers(1, 8), more=st.integers(0, 8), shared=st.integers(0, 2))
def test_a_token_goes_through_no_more_weights_than_there_are(used: int, more: int, shared: int) -> None:
    model = replace(SMALL, experts=used + more, experts_per_token=used, shared_experts=shared, expert_intermediate=32)
    weights = model.weights
    assert weights.active_params <= weights.params
    unused = model.moe_layers * more * weights.expert_params
    assert weights.linear_params - unused == weights.active_params - weights.embedding_params


def test_what_is_asked_for_by_hand_is_checked() -> None:
    by_hand = {"layers": 4, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 100, "intermediate": 128}
    assert ModelChoice(name="mine", by_hand=by_hand).geometry() == replace(SMALL, name="mine")
    assert ModelChoice(by_hand=by_hand, precision="fp8").geometry().precision is Precision.FP8
    wrong = (
        ({"depth": 2}, "by_hand.depth"),
        ({"precision": "int3"}, "int3"),
        ({"layers": 0}, "layers=0"),
    )
    for changes, named in wrong:
        with pytest.raises(ConfigError, match=named):
            ModelChoice(by_hand={**by_hand, **changes}).geometry()


def test_a_model_is_named_or_described() -> None:
    assert ModelChoice(name="Qwen3-32B").geometry() == known_model("qwen/qwen3-32b")
    with pytest.raises(ValueError, match="give name or config"):
        ModelChoice()
    with pytest.raises(ConfigError, match="Qwen3-32B"):  # the known ones are listed
        ModelChoice(name="Qwen3-33B").geometry()
    assert [ModelChoice(name="x", kv_cache_dtype=kind).kv_dtype_bytes for kind in (None, "bf16", "fp8")] == [None, 2, 1]


@given(groups=st.integers(1, 16), tp=st.sampled_from([1, 2, 4, 8, 16]), width=st.integers(1, 64))
def test_state_on_all_gpus_is_never_less_than_the_whole(groups: int, tp: int, width: int) -> None:
    state = StateLayers(
        "mixer", 2, 10, conv_width=16 * width + groups * 16, conv_tokens=4, state_heads=16, state_width=8,
        groups=groups, group_width=16,
    )  # fmt: skip
    whole, shared = state.bytes_per_gpu(1), state.bytes_per_gpu(tp)
    assert shared <= whole or groups % tp
    if groups % tp == 0:
        assert tp * shared == pytest.approx(whole, abs=tp)
    elif groups < tp:
        assert tp * shared > whole - tp  # groups are repeated
    assert state.scan_flops(tp) == pytest.approx(state.scan_flops(1) / tp)


@pytest.mark.parametrize("values", [{"layers": 0}, {"params": 0}, {"conv_width": 0}])
def test_a_state_layer_keeps_something(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        StateLayers("mixer", **{"layers": 1, "params": 1, "conv_width": 8, "conv_tokens": 2, **values})
