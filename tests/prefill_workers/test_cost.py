import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.hardware.catalogue import gpu
from cluster.hardware.engine_constants import engine_constants
from cluster.model.known_models import known_model
from prefill_workers.cost import PrefillCost

COST = PrefillCost(known_model("Qwen3-32B"), gpu("H100-SXM"), engine_constants("vllm"), 2)


@settings(deadline=None)
@given(st.integers(1, 30_000), st.integers(0, 30_000))
def test_prefill_grows_with_new_and_with_cached_tokens(new: int, cached: int) -> None:
    assert COST.prefill_s(new + 500, cached) > COST.prefill_s(new, cached)
    assert COST.prefill_s(new, cached + 500) > COST.prefill_s(new, cached)


@settings(deadline=None)
@given(st.integers(2, 30_000), st.data())
def test_a_cached_prefix_never_costs_more(tokens: int, data: st.DataObject) -> None:
    cached = data.draw(st.integers(1, tokens - 1))
    assert COST.prefill_s(tokens - cached, cached) <= COST.prefill_s(tokens) * (1 + 1e-9)


def test_nothing_to_prefill_takes_no_time() -> None:
    assert COST.prefill_s(0) == 0.0


def test_a_long_prompt_takes_several_steps() -> None:
    whole = COST.chunk_s([(8192, 0)]) + COST.chunk_s([(1808, 8192)])
    assert COST.prefill_s(10_000) == pytest.approx(whole)


def test_prompts_share_a_step() -> None:
    assert COST.chunk_s([(256, 0)] * 4) < 4 * COST.chunk_s([(256, 0)])
    assert COST.first_token_overhead_s() > 0
