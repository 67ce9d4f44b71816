"""Hybrid models, stages, ranks, and speculative decoding in plans."""

from typing import Any

import numpy as np
import pytest

from cluster.engine.speculation import Speculation
from cluster.errors import ConfigError, PlacementInfeasible
from cluster.hardware.catalogue import gpu
from cluster.hardware.engine_constants import engine_constants
from cluster.hardware.memory import weight_bytes_per_gpu
from cluster.hardware.roofline import StepCost
from cluster.model.known_models import known_model
from cluster.spec.config import Role
from decode_workers.cost import DecodeCost
from planner.capacity.check import profile
from planner.capacity.emit import cluster_spec
from planner.capacity.lengths import LengthDistribution, RequestLengths
from planner.capacity.planner import plan
from planner.capacity.pools import Sized
from planner.capacity.resolve import resolve
from planner.capacity.shape import Shape
from planner.capacity.spec import PlanSpec, parse
from planner.capacity.trust import ANALYTIC_EXPERTS_BAND, Tag
from planner.capacity.view import candidate_record
from planner.capacity.worker_model import WorkerModel

ENGINE = engine_constants("vllm")
R1 = known_model("DeepSeek-R1")
GEMMA3: dict[str, Any] = {
    "layers": 62,
    "hidden": 5376,
    "heads": 32,
    "kv_heads": 16,
    "head_dim": 128,
    "vocab": 262208,
    "intermediate": 21504,
    "tied_embeddings": True,
}


def _spec(**changes: Any) -> PlanSpec:
    tree: dict[str, Any] = {
        "model": {"name": "Qwen3-32B", "precision": "fp8"},
        "hardware": {"gpus": ["H200-SXM"], "tensor_parallel": [4]},
        "workload": {"rate_per_s": 2.0, "input_tokens": 8000, "answer_tokens": 1000},
        "slo": {"ttft_s": 10.0, "itl_s": 0.2},
        "simulate": {"finalists": 0},
    }
    return parse({**tree, **changes})


def test_windows_hold_more_requests_than_full_attention() -> None:
    windows = {"sliding_layers": 52, "sliding_window_tokens": 1024}
    capacities = []
    for more in ({}, windows):
        problem = resolve(_spec(model={"by_hand": {**GEMMA3, **more}, "kv_cache_dtype": "bf16"}))
        worker = WorkerModel(problem, problem.gpus[0], 4)
        capacities.append(worker.context_capacity_tokens)
        held = worker.kv_needed_tokens(8.0) / worker.kv_tokens
        assert worker.load_at(8.0, False).kv_share < held < 1
    assert 3 < capacities[1] / capacities[0] < 6.2
    problem = resolve(_spec(model={"by_hand": {**GEMMA3, **windows}}))
    best = plan(problem.spec).best
    blocks = profile(problem, best.pools[-1]).total_blocks
    assert blocks == int(best.pools[-1].worker.context_capacity_tokens) // 32
    # The handoff of a long prompt moves windows, not all of it.
    assert problem.handoff_bytes(32768) < 0.3 * 32768 * problem.kv_token_bytes


def test_contexts_in_flight_have_the_moments_that_are_known_in_closed_form() -> None:
    lengths = RequestLengths(
        LengthDistribution.lognormal(2000, 1.0), LengthDistribution.lognormal(0), LengthDistribution.lognormal(500, 1.0)
    )
    values, weights = lengths.in_flight_contexts
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(values @ weights) == pytest.approx(lengths.in_flight_context_tokens, rel=0.02)
    assert float((values**2) @ weights) == pytest.approx(lengths.in_flight_context_square, rel=0.1)


def test_stages_share_weights_and_add_no_speed_to_one_stream() -> None:
    model = known_model("Llama-3.1-70B")
    one, two = (StepCost(model, gpu("H100-SXM"), ENGINE, 4, pp=pp) for pp in (1, 2))
    assert weight_bytes_per_gpu(model, 4, pp=2) == pytest.approx(weight_bytes_per_gpu(model, 4) / 2, rel=0.05)
    assert one.decode_s(1, 1000) < two.decode_s(2, 2000) < 1.2 * one.decode_s(1, 1000)
    # Twice the requests in a little more time: both stages are at work.
    assert two.decode_s(128, 128_000) < 1.1 * one.decode_s(64, 64_000)


def test_ranks_share_experts_and_have_attention_and_kv_of_their_own() -> None:
    alone, wide = (DecodeCost(R1, gpu("H200-SXM"), ENGINE, 8 // dp, dp=dp, expert_parallel=True) for dp in (1, 8))
    # Under plain tensor parallel every GPU holds the same latent.
    assert wide.kv_capacity_tokens() > 4 * alone.kv_capacity_tokens()
    routed = R1.moe_layers * R1.experts * R1.weights.expert_params
    assert weight_bytes_per_gpu(R1, 1, dp=8) == pytest.approx(R1.weights.total_bytes - routed * 7 / 8, rel=1e-6)
    terms = wide.roofline.terms_s(256, 256 * 2000)
    assert terms["all-to-all"] > 0 and sum(terms.values()) == pytest.approx(wide.step_s(256, 256 * 2000))
    nodes = [DecodeCost(R1, gpu("H200-SXM"), ENGINE, 1, dp=dp, expert_parallel=True) for dp in (8, 16)]
    near, far = (cost.roofline.terms_s(64 * cost.roofline.dp, 64 * 2000)["all-to-all"] for cost in nodes)
    assert far > near
    with pytest.raises(ConfigError, match="no experts"):
        StepCost(known_model("Qwen3-8B"), gpu("H100-SXM"), ENGINE, 1, dp=2)


def test_a_plan_considers_shapes_by_pool_and_emits_what_a_cluster_spec_can_say() -> None:
    asked = _spec(
        model={"name": "DeepSeek-R1"},
        hardware={
            "gpus": ["H100-SXM", "H200-SXM"],
            "tensor_parallel": [8],
            "prefill": {"gpus": ["H100-SXM"], "tensor_parallel": [1], "data_parallel": [16]},
            "decode": {"gpus": ["H200-SXM"], "tensor_parallel": [1], "data_parallel": [32]},
        },
        modes=["mixed_gpus"],
    )
    best = plan(asked).best
    assert [pool.worker.shape for pool in best.pools] == [Shape(dp=16), Shape(dp=32)]
    assert best.trust.tag is Tag.ANALYTIC and best.trust.band == ANALYTIC_EXPERTS_BAND
    assert [pool["nodes_per_worker"] for pool in candidate_record(best)["pools"]] == [2, 4]
    assert best.gpus == sum(pool.workers * pool.worker.shape.gpus for pool in best.pools)
    assert "32 (TP1 DP32 EP32)x H200-SXM" in best.label
    with pytest.raises(ConfigError, match="tensor parallel alone"):
        cluster_spec(resolve(asked), best)


def test_a_simulated_worker_of_ranks_has_places_for_all_and_reads_a_prompt_on_one() -> None:
    problem = resolve(_spec(model={"name": "DeepSeek-R1"}, hardware={"gpus": ["H200-SXM"]}))
    sized = Sized(Role.DECODE, WorkerModel(problem, problem.gpus[0], Shape(dp=16)), 1.0, 1, "")
    kind = profile(problem, sized)
    assert (kind.ranks, kind.gpus, kind.max_num_seqs) == (16, 16, 16 * 256)
    assert kind.piece_tokens == problem.chunk_tokens
    # Full steps read at the pace of all ranks together.
    alone_s = kind.prefill.chunk_s([(kind.piece_tokens, 0)])
    assert kind.prefill_tokens_per_s > 8 * kind.piece_tokens / alone_s


def test_a_pool_of_a_kind_that_is_not_listed_is_refused() -> None:
    with pytest.raises(ConfigError, match="not among"):
        plan(_spec(hardware={"gpus": ["H200-SXM"], "decode": {"gpus": ["H100-SXM"]}}))


def test_a_kind_without_a_price_needs_one() -> None:
    with pytest.raises(ConfigError, match="price_usd_h"):
        resolve(_spec(hardware={"gpus": ["GB200-NVL72"]}))
    priced = {"GB200-NVL72": {"price_usd_h": 6.0}}
    assert resolve(_spec(hardware={"gpus": ["GB200-NVL72"], "overrides": priced})).gpus[0].price_usd_h == 6.0


def test_speculative_decoding_gains_what_is_stated_and_costs_memory() -> None:
    plain, ahead = (
        DecodeCost(known_model("DeepSeek-V3.2"), gpu("H200-SXM"), ENGINE, 8, speculation=speculation)
        for speculation in (None, Speculation(tokens=1, acceptance=0.8))
    )
    gain = plain.step_s(4, 8000) / ahead.step_s(4, 8000)
    assert 1.2 < gain < 1.8
    assert ahead.kv_capacity_tokens() < plain.kv_capacity_tokens()
    never = DecodeCost(known_model("DeepSeek-V3.2"), gpu("H200-SXM"), ENGINE, 8, speculation=Speculation(1, 0.0))
    assert never.step_s(4, 8000) > plain.step_s(4, 8000)
    with pytest.raises(ConfigError, match="no MTP layer"):
        resolve(_spec(engine={"speculative": {"acceptance": 0.7}})).cost(gpu("H200-SXM"), Shape(4))
    with pytest.raises(ConfigError, match="acceptance"):
        Speculation(1, 1.5)


def test_a_model_too_large_names_memory() -> None:
    with pytest.raises(PlacementInfeasible) as caught:
        plan(_spec(model={"name": "DeepSeek-R1"}, hardware={"gpus": ["H100-SXM"], "tensor_parallel": [1]}))
    assert caught.value.ids["limit"] == "memory"


def test_a_thinned_distribution_keeps_its_mean() -> None:
    lengths = LengthDistribution.lognormal(3000, 2.0)
    thin = lengths.thinned(32)
    assert thin.values.size <= 32 and thin.mean == pytest.approx(lengths.mean)
    assert np.all(np.diff(thin.values) > 0)
