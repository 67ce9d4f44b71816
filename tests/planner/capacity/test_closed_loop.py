import numpy as np
import pytest

from cluster.hardware.catalogue import gpu
from cluster.hardware.engine_constants import engine_constants
from cluster.model.known_models import known_model
from decode_workers.cost import DecodeCost
from planner.capacity.closed_loop import LoadGenerator, closed_loop, prefill_added_s
from planner.capacity.least_squares import fit

COST = DecodeCost(known_model("Llama-3.1-8B"), gpu("H100-SXM"), engine_constants("vllm"))


def test_the_formula_is_decode_plus_the_others_prefills() -> None:
    found = closed_loop(COST, 16, 1000, 500)
    added = prefill_added_s(COST, 1000, 16, 16 * 1250)
    assert found.tpot_s == pytest.approx(COST.step_s(16, 16 * 1250) + 15 / 500 * added)


def test_one_client_waits_for_nobody() -> None:
    alone = closed_loop(COST, 1, 1000, 500)
    assert alone.tpot_s == alone.decode_step_s
    assert alone.ttft_s == pytest.approx(COST.mixed_step_s(0, 0, [(1000, 0)]) + engine_constants("vllm").first_token_s)


def test_a_full_kv_cache_holds_the_batch_down() -> None:
    assert closed_loop(COST, 4096, 8000, 1000).batch_size == pytest.approx(COST.kv_capacity_tokens() / 8500, abs=1)


def test_lockstep_stalls_less_and_collides_more() -> None:
    together, spread = LoadGenerator("lockstep", 0.6, 0.4), LoadGenerator.spread()
    assert closed_loop(COST, 8, 1000, 200, together).tpot_s < closed_loop(COST, 8, 1000, 200, spread).tpot_s
    assert closed_loop(COST, 8, 1000, 200, together).ttft_s > closed_loop(COST, 8, 1000, 200, spread).ttft_s


def test_least_squares_keeps_bounds_and_shrugs_off_outliers() -> None:
    x = np.linspace(0, 1, 40)
    y = 2 * x + 1
    y[::10] += 50
    found = fit(lambda p: p[0] * x + p[1] - y, [0, 0], [-9, -9], [9, 9])
    assert found == pytest.approx([2, 1], abs=0.1)
    assert fit(lambda p: p[0] * x + p[1] - y, [0, 0], [-9, -9], [1.5, 9])[0] == 1.5


def test_an_engine_that_runs_few_at_a_time_is_as_fast_as_with_few_clients() -> None:
    limited = closed_loop(COST, 400, 1000, 500, LoadGenerator("limited", 1.0, 0.0, most_running=50))
    assert limited.batch_size == 50
    assert limited.tpot_s == closed_loop(COST, 50, 1000, 500).tpot_s


def test_prompts_that_come_again_leave_decode_alone() -> None:
    fresh = closed_loop(COST, 64, 4000, 200)
    again = closed_loop(COST, 64, 4000, 200, LoadGenerator("again", 1.0, 0.0, repeats_prompts=True))
    assert again.tpot_s < 0.6 * fresh.tpot_s
    assert again.tpot_s == pytest.approx(again.decode_step_s, rel=0.25)


def test_prompts_of_ranks_are_read_at_once() -> None:
    model, kind, engine = known_model("DeepSeek-R1"), gpu("H200-SXM"), engine_constants("sglang")
    wide = DecodeCost(model, kind, engine, 1, dp=8, expert_parallel=True)
    alone_s = wide.mixed_step_s(8, 8000, ((1024, 0),)) - wide.step_s(8, 8000)
    assert prefill_added_s(wide, 1024, 8, 8000) < 0.5 * alone_s
