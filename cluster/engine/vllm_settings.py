"""What a vLLM engine is started with, and the same in vLLM's own arguments. Imports no vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.engine.reasoning_end import PARSER, PARSER_MODULE
from cluster.model.model_path import uses_latent_attention


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Everything an engine is started with. Made from the spec by the pool's profile."""

    model_path: str
    max_model_len_tokens: int
    dtype: str
    block_size_tokens: int
    on_cpu: bool
    tensor_parallel_size: int = 1
    expert_parallel: bool = False
    gpu_memory_utilization: float = 0.9
    kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_logprobs: int | None = None
    enforce_eager: bool = False
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    trust_remote_code: bool = False
    reasons: bool = False
    kv_role: str | None = None
    kv_lease_s: int = 30
    speculative_num_tokens: int | None = None
    speculative_lookup_max_tokens: int = 4


def engine_arguments(settings: VllmSettings, incarnation: str, connector_module: str) -> dict[str, Any]:
    """Arguments of vLLM's ``AsyncEngineArgs``; the two that are config objects there are mappings here.

    Args:
        settings: What the engine is to be.
        incarnation: Its id in transfer parameters.
        connector_module: Module with ``HandoffConnector``.
    """
    s = settings
    arguments: dict[str, Any] = {
        "model": s.model_path,
        "dtype": s.dtype,
        "max_model_len": s.max_model_len_tokens,
        "block_size": s.block_size_tokens,
        "enforce_eager": s.enforce_eager or s.on_cpu,
        "tensor_parallel_size": s.tensor_parallel_size,
        "enable_expert_parallel": s.expert_parallel,
        "enable_prefix_caching": True,
        "trust_remote_code": s.trust_remote_code,
        "kv_cache_dtype": s.kv_cache_dtype,
        "skip_tokenizer_init": False,
        # By name: imported in each of vLLM's processes, where it also keeps AMX attention off (see there).
        "worker_extension_cls": "cluster.engine.vllm_worker.WorkerExtension",
    }
    limits = {
        "num_gpu_blocks_override": s.kv_blocks,
        "max_num_seqs": s.max_num_seqs,
        "max_num_batched_tokens": s.max_num_batched_tokens,
        "max_logprobs": s.max_logprobs,
        "quantization": s.quantization,
    }
    arguments |= {name: value for name, value in limits.items() if value}
    arguments |= _device_arguments(s)
    # Not by the argument `reasoning_parser`, which would also look for the parser in this process.
    if s.reasons:
        arguments["structured_outputs_config"] = {
            "reasoning_parser": PARSER,
            "reasoning_parser_plugin": PARSER_MODULE,
        }
    if s.speculative_num_tokens:
        arguments["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": s.speculative_num_tokens,
            "prompt_lookup_max": s.speculative_lookup_max_tokens,
        }
    if s.kv_role:
        arguments["kv_transfer_config"] = {
            "kv_connector": "HandoffConnector",
            "kv_connector_module_path": connector_module,
            "kv_role": s.kv_role,
            "engine_id": incarnation,
            "kv_buffer_device": "cpu" if s.on_cpu else "cuda",
            "kv_load_failure_policy": "fail",
            "kv_connector_extra_config": {"kv_lease_duration": s.kv_lease_s},
        }
    return arguments


def _device_arguments(settings: VllmSettings) -> dict[str, Any]:
    if not settings.on_cpu:
        return {"gpu_memory_utilization": settings.gpu_memory_utilization}
    # The default multiprocess executor spins a core per engine when idle (FACTS section 2).
    arguments = {"distributed_executor_backend": "uni"}
    if uses_latent_attention(settings.model_path):
        arguments["attention_backend"] = "CPU_MLA"  # or vLLM takes AMX_MLA where the processor has AMX
    return arguments
