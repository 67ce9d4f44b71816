"""Which rows of the measured table our cost models are held against, and as what."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from benchmarks.silicon import CONFIGURATION, LOCKSTEP, LOCKSTEP_VERSIONS, SPREAD, generator, held_out, parse, parse_all
from cluster.model.precision import Precision

ROW: Mapping[str, str] = {
    "backend": "vllm", "backend_version": "0.14.0", "model_path": "Qwen/Qwen3-32B", "system": "h100_sxm",
    "precision": "bf16", "mode": "agg", "isl": "1024", "osl": "512", "tp_size": "2", "moe_tp_size": "",
    "moe_ep_size": "", "attention_dp_size": "", "pp_size": "1", "batch_size": "8", "concurrency": "16",
    "silicon_ttft_ms": "250", "silicon_tpot_ms": "20",
}  # fmt: skip
EXPERTS = {**ROW, "model_path": "Qwen/Qwen3-235B-A22B-FP8", "tp_size": "8", "moe_tp_size": "1", "moe_ep_size": "8"}


def test_a_row_is_a_closed_loop_in_seconds() -> None:
    found = parse(ROW)
    assert found is not None
    assert (found.clients, found.isl_tokens, found.osl_tokens, found.tp) == (16, 1024, 512, 2)
    assert (found.ttft_s, found.tpot_s) == (0.25, 0.02)
    assert (found.gpu.name, found.engine, found.kv_dtype_bytes) == ("H100-SXM", "vllm", 2.0)
    without = parse({**ROW, "concurrency": ""})
    assert without is not None
    assert without.clients == 8


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "disagg"},
        {"system": "b200_sxm"},
        {"model_path": "someone/else"},
        {"attention_dp_size": "8"},
        {"pp_size": "2"},
        {"tp_size": "16"},
        {"concurrency": "", "batch_size": ""},
    ],
)
def test_what_the_colocated_model_does_not_cover_is_left_out(change: dict[str, str]) -> None:
    assert parse({**ROW, **change}) is None
    assert len(parse_all([ROW, {**ROW, **change}, ROW])) == 2


@pytest.mark.parametrize(
    ("moe_tp", "moe_ep", "kept"), [("1", "8", True), ("8", "1", True), ("2", "8", False), ("", "", False)]
)
def test_experts_must_lie_on_the_gpus_that_split_the_rest(moe_tp: str, moe_ep: str, kept: bool) -> None:
    found = parse({**EXPERTS, "moe_tp_size": moe_tp, "moe_ep_size": moe_ep})
    assert (found is not None) is kept
    if found is not None:
        assert found.expert_parallel is (moe_ep == "8")
        assert found.model.precision is Precision.FP8_BLOCK


@pytest.mark.parametrize(
    ("change", "precision", "kv_bytes"),
    [
        ({"precision": "fp8"}, Precision.FP8, 2.0),
        ({"precision": "fp8", "backend_version": ""}, Precision.FP8, 1.0),
        ({"precision": "fp8", "backend": "trtllm"}, Precision.FP8, 1.0),
        ({"precision": "fp8", "backend": "sglang"}, Precision.FP8_BLOCK, 2.0),
    ],
)
def test_fp8_means_what_each_engine_makes_of_it(change: dict[str, str], precision: Precision, kv_bytes: float) -> None:
    found = parse({**ROW, **change})
    assert found is not None
    assert (found.model.precision, found.kv_dtype_bytes) == (precision, kv_bytes)


@pytest.mark.parametrize(("version", "engine"), [("1.0.0rc3", "trtllm-1.0"), ("1.2.0rc6.post1", "trtllm")])
def test_two_runtimes_of_one_engine_have_constants_of_their_own(version: str, engine: str) -> None:
    found = parse({**ROW, "backend": "trtllm", "backend_version": version})
    assert found is not None
    assert found.engine == engine


def test_sheets_that_start_all_clients_together_are_lockstep() -> None:
    for version, shares in [*((each, LOCKSTEP) for each in LOCKSTEP_VERSIONS), ("0.14.0", SPREAD)]:
        found = parse({**ROW, "backend_version": version})
        assert found is not None
        assert found.lockstep is (shares is LOCKSTEP)
        made = generator(found)
        assert (made.stall_share, made.collision_share) == shares


@pytest.mark.parametrize("column", CONFIGURATION)
def test_a_row_is_held_out_where_any_part_of_its_configuration_was_not_tuned_on(column: str) -> None:
    assert held_out([ROW], [ROW]) == []
    if column != "system":
        assert held_out([{**ROW, column: "other"}], [ROW])
    # What was measured is no part of a configuration.
    assert held_out([{**ROW, "silicon_tpot_ms": "99", "concurrency": "1"}], [ROW]) == []


def test_rows_of_other_systems_are_never_held_out() -> None:
    assert held_out([{**ROW, "system": "b200_sxm"}], []) == []
