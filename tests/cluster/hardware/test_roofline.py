import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.hardware.catalogue import gpu
from cluster.hardware.engine_constants import engine_constants
from cluster.hardware.roofline import StepCost
from cluster.model.known_models import known_model, known_models

COSTS = {
    name: StepCost(known_model(name), gpu("H200-SXM"), engine_constants("vllm"), tp)
    for name, tp in (("Llama-3.1-8B", 1), ("Qwen3-32B", 2), ("gpt-oss-120b", 2), ("DeepSeek-R1", 8))
}
names = st.sampled_from(sorted(COSTS))
batches = st.integers(1, 512)
contexts = st.integers(1, 20_000)


@settings(deadline=None)
@given(names, batches, contexts)
def test_a_decode_step_grows_with_batch_and_context(name: str, batch: int, context: int) -> None:
    cost = COSTS[name]
    here = cost.decode_s(batch, batch * context)
    assert 0 < here <= cost.decode_s(batch + 1, batch * context) + 1e-12
    assert here < cost.decode_s(batch, batch * context + 1000)


@settings(deadline=None)
@given(names, batches, contexts, st.integers(1, 8192), st.integers(0, 8192))
def test_a_mixed_step_costs_more_than_its_parts_and_less_than_both(
    name: str, batch: int, context: int, new: int, before: int
) -> None:
    cost = COSTS[name]
    decode, prefill = cost.decode_s(batch, batch * context), cost.mixed_s(0, 0, [(new, before)])
    mixed = cost.mixed_s(batch, batch * context, [(new, before)])
    assert max(decode, prefill) <= mixed * (1 + 1e-9)
    assert mixed <= (decode + prefill) * (1 + 1e-9)


@settings(deadline=None)
@given(names, batches, contexts, st.integers(1, 8192))
def test_terms_sum_to_the_step(name: str, batch: int, context: int, new: int) -> None:
    cost = COSTS[name]
    for chunks in ((), ((new, 0),)):
        terms = cost.terms_s(batch, batch * context, chunks)
        assert sum(terms.values()) == pytest.approx(cost.mixed_s(batch, batch * context, chunks), rel=1e-9)
        assert all(value >= 0 for value in terms.values())


@settings(deadline=None)
@given(names, st.integers(2, 8192), st.data())
def test_chunking_a_prompt_costs_the_same_attention(name: str, tokens: int, data: st.DataObject) -> None:
    cut, cost = data.draw(st.integers(1, tokens - 1)), COSTS[name]
    if cost.model.sliding_layers:
        return
    whole = cost.prefill_attention_s(tokens, 0)
    assert cost.prefill_attention_s(cut, 0) + cost.prefill_attention_s(tokens - cut, cut) == pytest.approx(whole)


def test_decode_of_a_small_batch_reads_the_weights_once() -> None:
    cost = COSTS["Llama-3.1-8B"]
    engine = engine_constants("vllm")
    floor = known_model("Llama-3.1-8B").weights.total_bytes / (gpu("H200-SXM").hbm_bytes_per_s * engine.memory_share)
    assert 0.85 * floor < cost.decode_s(1, 1) < 2.0 * floor


def test_prefill_of_a_long_prompt_is_bound_by_compute() -> None:
    model, engine = known_model("Llama-3.1-8B"), engine_constants("vllm")
    least = 2.0 * (model.weights.linear_params) * 8192 / (gpu("H200-SXM").bf16_flops * engine.gemm_share)
    assert least < COSTS["Llama-3.1-8B"].mixed_s(0, 0, [(8192, 0)]) < 1.6 * least


def test_experts_are_read_as_they_are_touched() -> None:
    cost = StepCost(known_model("Qwen3-30B-A3B"), gpu("H100-SXM"), engine_constants("vllm"))
    # 128 experts, 8 a token: one token touches a sixteenth, hundreds touch all.
    assert cost.gemm_s(1) < 0.35 * cost.gemm_s(256)


def test_a_sliding_window_bounds_decode_attention() -> None:
    cost = COSTS["gpt-oss-120b"]
    near, far = cost.decode_attention_s(1, 1_000), cost.decode_attention_s(1, 101_000)
    full = cost.model.full_attention_layers / cost.model.layers
    assert (far - near) / 100_000 == pytest.approx(full * cost.decode_attention_s(1, 100) / 100, rel=1e-6)


def test_tp_must_divide_the_heads() -> None:
    for tp in (0, 3):
        with pytest.raises(ConfigError, match="tp="):
            StepCost(known_model("Llama-3.1-8B"), gpu("H100-SXM"), engine_constants("vllm"), tp)


def test_every_known_model_has_a_cost() -> None:
    for name in known_models():
        assert StepCost(known_model(name), gpu("B200-SXM"), engine_constants("sglang"), 8).decode_s(8, 8000) > 0
