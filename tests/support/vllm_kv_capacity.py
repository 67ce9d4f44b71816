"""Ask vLLM how it cuts up a KV cache for model configs, without weights: layers are built on torch's meta device.

Reads ``[{"name", "config", "architecture", "lengths_tokens"}]`` as JSON from standard input and prints, by name, the
blocks of a budget and the blocks that one request of each length takes (``get_kv_cache_groups``,
``get_kv_cache_config_from_groups`` and the groups' ``max_memory_usage_bytes``). Runs in a process of its own: vLLM's
process groups are global.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_TARGET_DEVICE="cpu")
BUDGET_BYTES = 40 * 2**30
BLOCK_TOKENS = 32
IN_FLIGHT_TOKENS = 2048


def main(scratch: str) -> None:
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        destroy_model_parallel,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.utils.math_utils import cdiv
    from vllm.v1.core import kv_cache_utils

    found = {}
    for at, case in enumerate(json.load(sys.stdin)):
        folder = f"{scratch}/{at}"
        Path(folder).mkdir()
        config = {**case["config"], "architectures": [case["architecture"]]}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        vllm_config = EngineArgs(
            model=folder,
            tokenizer=folder,
            skip_tokenizer_init=True,
            max_model_len=max(case["lengths_tokens"]),
            block_size=BLOCK_TOKENS,
            dtype="bfloat16",
            enforce_eager=True,
            enable_prefix_caching=False,
            max_num_batched_tokens=IN_FLIGHT_TOKENS,
            max_num_seqs=64,
            async_scheduling=False,
            language_model_only=True,
            # On CPUs vLLM may choose it by the CPU; said here, it is the same on each.
            mamba_ssm_cache_dtype="float32",
        ).create_engine_config()
        with set_current_vllm_config(vllm_config):
            if not at:
                init_distributed_environment(1, 0, f"file://{scratch}/store", 0, "gloo")
            ensure_model_parallel_initialized(1, 1)
            torch.set_default_dtype(torch.bfloat16)
            with torch.device("meta"):
                initialize_model(vllm_config=vllm_config)
            torch.set_default_dtype(torch.float32)
            current_platform.update_block_size_for_backend(vllm_config)
            layers = vllm_config.compilation_config.static_forward_context.items()
            specs = {
                name: spec
                for name, layer in layers
                if isinstance(layer, AttentionLayerBase) and (spec := layer.get_kv_cache_spec(vllm_config)) is not None
            }
        destroy_model_parallel()
        vllm_config.cache_config.kv_cache_layout = "LBNHC"
        groups = kv_cache_utils.get_kv_cache_groups(vllm_config, specs)
        kv = kv_cache_utils.get_kv_cache_config_from_groups(vllm_config, groups, BUDGET_BYTES)
        blocks = {}
        for length in case["lengths_tokens"]:
            vllm_config.model_config.max_model_len = length
            blocks[length] = sum(
                cdiv(group.kv_cache_spec.max_memory_usage_bytes(vllm_config), group.kv_cache_spec.page_size_bytes)
                for group in kv.kv_cache_groups
            )
        found[case["name"]] = {
            "pool_blocks": kv.num_blocks,
            "block_tokens": vllm_config.cache_config.block_size,
            "groups": len(groups),
            "request_blocks": blocks,
            "in_flight_tokens": vllm_config.max_in_flight_tokens,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch_folder:
        main(scratch_folder)
