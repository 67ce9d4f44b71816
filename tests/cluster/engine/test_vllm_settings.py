"""What vLLM is started with, without vLLM."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.engine.vllm_settings import VllmSettings, engine_arguments

CPU = VllmSettings("/models/m", 1024, "bfloat16", 32, on_cpu=True)
GPU = replace(CPU, on_cpu=False, tensor_parallel_size=2)


def arguments(settings: VllmSettings) -> dict[str, Any]:
    return engine_arguments(settings, "incarnation", "some.module")


def test_what_is_left_out_is_left_to_vllm() -> None:
    optional = {
        "num_gpu_blocks_override",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_logprobs",
        "quantization",
        "structured_outputs_config",
        "speculative_config",
        "kv_transfer_config",
    }
    assert not optional & arguments(CPU).keys()
    full = replace(
        CPU, kv_blocks=9, max_num_seqs=4, max_num_batched_tokens=64, max_logprobs=30, quantization="fp8",
        reasons=True, speculative_num_tokens=3, kv_role="kv_consumer",
    )  # fmt: skip
    assert optional <= arguments(full).keys()


@pytest.mark.parametrize(("settings", "eager"), [(CPU, True), (GPU, False), (replace(GPU, enforce_eager=True), True)])
def test_cpu_engines_are_always_eager(settings: VllmSettings, eager: bool) -> None:
    assert arguments(settings)["enforce_eager"] is eager


def test_a_cpu_engine_runs_in_one_process_and_a_gpu_engine_takes_its_share_of_memory() -> None:
    on_cpu, on_gpu = arguments(CPU), arguments(replace(GPU, gpu_memory_utilization=0.7))
    assert on_cpu["distributed_executor_backend"] == "uni"
    assert "gpu_memory_utilization" not in on_cpu
    assert on_gpu["gpu_memory_utilization"] == 0.7
    assert "distributed_executor_backend" not in on_gpu


@pytest.mark.parametrize("on_cpu", [True, False])
def test_latent_attention_on_cpu_names_its_backend(tmp_path: Path, on_cpu: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"kv_lora_rank": 512}))
    settings = replace(CPU if on_cpu else GPU, model_path=str(tmp_path))
    assert arguments(settings).get("attention_backend") == ("CPU_MLA" if on_cpu else None)


@pytest.mark.parametrize(("settings", "buffer"), [(CPU, "cpu"), (GPU, "cuda")])
def test_an_engine_that_hands_over_is_known_by_its_incarnation(settings: VllmSettings, buffer: str) -> None:
    transfer = arguments(replace(settings, kv_role="kv_producer", kv_lease_s=11))["kv_transfer_config"]
    assert (transfer["engine_id"], transfer["kv_connector_module_path"]) == ("incarnation", "some.module")
    assert (transfer["kv_role"], transfer["kv_buffer_device"]) == ("kv_producer", buffer)
    assert transfer["kv_connector_extra_config"] == {"kv_lease_duration": 11}
    assert transfer["kv_load_failure_policy"] == "fail"  # the ledger is prefilled again, by us


def test_two_engines_share_no_arguments() -> None:
    first, second = arguments(replace(CPU, kv_role="kv_consumer")), arguments(replace(CPU, kv_role="kv_consumer"))
    first["kv_transfer_config"]["engine_id"] = "changed"
    assert second["kv_transfer_config"]["engine_id"] == "incarnation"
