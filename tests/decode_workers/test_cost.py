import timeit

import pytest

from cluster.errors import PlacementInfeasible
from cluster.hardware.catalogue import gpu
from cluster.hardware.engine_constants import engine_constants
from cluster.model.known_models import known_model
from decode_workers.cost import DecodeCost


def _cost(name: str = "Llama-3.1-8B", tp: int = 1, **options: float) -> DecodeCost:
    return DecodeCost(known_model(name), gpu("H100-SXM"), engine_constants("vllm"), tp, **options)  # type: ignore[arg-type]


def test_capacity_in_tokens_follows_bytes() -> None:
    cost = _cost()
    assert cost.kv_capacity_tokens() == int(cost.kv_budget_bytes() / 131072)
    assert _cost(kv_dtype_bytes=1.0).kv_capacity_tokens() == pytest.approx(2 * cost.kv_capacity_tokens(), abs=2)
    assert _cost(memory_utilisation=0.8).kv_capacity_tokens() < cost.kv_capacity_tokens()


def test_more_gpus_make_a_step_shorter() -> None:
    steps = [_cost("Qwen3-32B", tp).step_s(32, 32 * 4000) for tp in (2, 4, 8)]
    assert steps == sorted(steps, reverse=True)


def test_a_mixed_step_without_prompts_is_a_decode_step() -> None:
    cost = _cost()
    assert cost.mixed_step_s(16, 16000) == pytest.approx(cost.step_s(16, 16000))


def test_what_does_not_fit_has_no_capacity() -> None:
    with pytest.raises(PlacementInfeasible):
        _cost("Llama-3.1-70B").kv_capacity_tokens()


def test_a_step_is_cheap_to_ask_for() -> None:
    cost = _cost()
    cost.step_s(64, 128_000)
    seconds = min(timeit.repeat(lambda: cost.step_s(64, 128_000), number=20_000, repeat=5)) / 20_000
    assert seconds < 5e-6  # 0.4 µs on an idle core; the simulator asks tens of millions of times
