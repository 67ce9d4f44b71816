import math

import pytest

from cluster.errors import ConfigError, PlacementInfeasible
from cluster.hardware.catalogue import GIB, gpu
from cluster.hardware.engine_constants import engine_constants
from cluster.hardware.memory import kv_budget_bytes, weight_bytes_per_gpu
from cluster.model.known_models import known_model
from cluster.model.model_spec import ModelSpec

# What vLLM logs as available KV cache memory on 80 GB H100s at 0.9, GiB on each GPU.
LOGGED = [("Llama-3.1-8B", "bf16", 1, 51.38), ("Qwen3-32B", "bf16", 2, 34.49), ("Llama-3.1-70B", "fp8", 2, 32.00)]


@pytest.mark.parametrize(("name", "precision", "tp", "gib"), LOGGED)
def test_kv_capacity_is_within_three_percent_of_the_log(name: str, precision: str, tp: int, gib: float) -> None:
    model = known_model(name).with_precision(precision)
    found = kv_budget_bytes(model, gpu("H100-SXM"), engine_constants("vllm"), tp, 0.9) / GIB
    assert found == pytest.approx(gib, rel=0.03)


def test_weights_that_leave_no_memory_are_infeasible() -> None:
    with pytest.raises(PlacementInfeasible, match="GiB of weights"):
        kv_budget_bytes(known_model("Llama-3.1-70B"), gpu("H100-SXM"), engine_constants("vllm"), 1)


def test_kv_heads_repeat_past_their_number() -> None:
    model = known_model("Qwen3-235B-A22B")  # 4 KV heads
    assert weight_bytes_per_gpu(model, 4) == model.weights.total_bytes / 4
    assert weight_bytes_per_gpu(model, 8) > model.weights.total_bytes / 8


DENSE = known_model("Qwen3-32B")
EXPERTS = known_model("Qwen3-30B-A3B")


@pytest.mark.parametrize("model", [DENSE, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (2, 4)])
def test_gpus_of_a_worker_hold_its_weights_between_them(model: ModelSpec, tp: int, pp: int) -> None:
    share = weight_bytes_per_gpu(model, tp, pp)
    # Stages in the middle hold less than the ends, so that the sum may only be over.
    assert model.weights.total_bytes <= share * tp * pp * (1 + 1e-9)
    assert share < weight_bytes_per_gpu(model, 1) or tp * pp == 1


@pytest.mark.parametrize("dp", [2, 4, 8])
def test_ranks_share_experts_and_nothing_else(dp: int) -> None:
    assert weight_bytes_per_gpu(DENSE, 1, dp=dp) == weight_bytes_per_gpu(DENSE, 1)
    alone, spread = weight_bytes_per_gpu(EXPERTS, 1), weight_bytes_per_gpu(EXPERTS, 1, dp=dp)
    routed = EXPERTS.moe_layers * EXPERTS.experts * EXPERTS.weights.expert_params * EXPERTS.precision.weight_bytes
    assert alone - spread == pytest.approx(routed * (1 - 1 / dp))


@pytest.mark.parametrize("utilisation", [0.85, 0.9, 0.95])
def test_what_utilisation_adds_goes_to_the_cache_alone(utilisation: float) -> None:
    h100, engine = gpu("H100-SXM"), engine_constants("vllm")
    less = kv_budget_bytes(DENSE, h100, engine, 2, utilisation - 0.05)
    more = kv_budget_bytes(DENSE, h100, engine, 2, utilisation)
    assert more - less == pytest.approx(0.05 * h100.memory_bytes)


@pytest.mark.parametrize(("tp", "reserves"), [(1, False), (2, True)])
def test_a_worker_of_several_gpus_reserves_memory_for_their_communication(tp: int, reserves: bool) -> None:
    h100, engine, model = gpu("H100-SXM"), engine_constants("vllm"), DENSE.with_precision("fp8")
    without = kv_budget_bytes(model, h100, engine.with_overrides(reserved_tp_bytes=0), tp)
    difference = without - kv_budget_bytes(model, h100, engine, tp)
    assert engine.reserved_tp_bytes > 0
    assert difference == pytest.approx(engine.reserved_tp_bytes if reserves else 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("gemm_share", 0.0), ("gemm_share", -1.0), ("memory_utilisation", 1.01), ("step_s", -1e-9), ("layer_s", math.nan)],
)
def test_constants_out_of_range_are_named_with_their_engine(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.vllm\.{field}=.*: expected"):
        engine_constants("vllm").with_overrides(**{field: value})
