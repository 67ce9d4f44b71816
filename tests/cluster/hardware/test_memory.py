import pytest

from cluster.errors import PlacementInfeasible
from cluster.hardware.catalogue import GIB, gpu
from cluster.hardware.engine_constants import engine_constants
from cluster.hardware.memory import kv_budget_bytes, weight_bytes_per_gpu
from cluster.model.known_models import known_model

# What vLLM logs as available KV cache memory on 80 GB H100s at 0.9, GiB on each GPU.
LOGGED = [("Llama-3.1-8B", "bf16", 1, 51.38), ("Qwen3-32B", "bf16", 2, 34.49), ("Llama-3.1-70B", "fp8", 2, 32.00)]


@pytest.mark.parametrize(("name", "precision", "tp", "gib"), LOGGED)
def test_kv_room_is_within_three_percent_of_the_log(name: str, precision: str, tp: int, gib: float) -> None:
    model = known_model(name).with_precision(precision)
    found = kv_budget_bytes(model, gpu("H100-SXM"), engine_constants("vllm"), tp, 0.9) / GIB
    assert found == pytest.approx(gib, rel=0.03)


def test_weights_that_leave_no_room_are_infeasible() -> None:
    with pytest.raises(PlacementInfeasible, match="GiB of weights"):
        kv_budget_bytes(known_model("Llama-3.1-70B"), gpu("H100-SXM"), engine_constants("vllm"), 1)


def test_kv_heads_repeat_past_their_number() -> None:
    model = known_model("Qwen3-235B-A22B")  # 4 KV heads
    assert weight_bytes_per_gpu(model, 4) == model.weights.total_bytes / 4
    assert weight_bytes_per_gpu(model, 8) > model.weights.total_bytes / 8
