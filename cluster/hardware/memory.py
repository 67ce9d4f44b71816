"""GPU memory of one worker: weights, what the engine keeps back, and what is left for KV cache."""

from __future__ import annotations

from cluster.errors import PlacementInfeasible
from cluster.hardware.catalogue import GIB, GpuSpec
from cluster.hardware.engine_constants import EngineConstants
from cluster.model.model_spec import ModelSpec


def weight_bytes_per_gpu(model: ModelSpec, tp: int, pp: int = 1, dp: int = 1) -> float:
    """Bytes of weights on each GPU of a worker; KV heads past ``kv_heads`` are repeated.

    Every data-parallel rank holds all but the routed experts, which the ranks share; every pipeline stage an equal
    part of the layers, and the first and last the embedding and the output head.
    """
    routed = model.moe_layers * model.experts * model.weights.expert_params * model.precision.weight_bytes
    embeddings = model.weights.embedding_params * (1 if model.tied_embeddings else 2) * 2.0 + model.extra_params * 2.0
    ends = embeddings if pp == 1 else embeddings / 2.0
    bytes_ = ((model.weights.total_bytes - routed - embeddings) / pp + ends + routed / (pp * dp)) / tp
    if not model.is_mla and tp > model.kv_heads:
        copies = 1.0 / model.kv_heads - 1.0 / tp
        per_layer = 2 * model.hidden * model.head_dim * model.kv_heads * model.weights.attention_weight_bytes
        bytes_ += model.attention_layers * per_layer * copies / pp
    return bytes_


def activation_bytes(model: ModelSpec, engine: EngineConstants, tp: int) -> float:
    """Peak of activations in the engine's profiling pass, per GPU.

    The widest moment of a layer: the residual, its norm and the MLP's gate, up and product, for
    ``profile_tokens`` tokens in bf16.
    """
    width = model.intermediate if not model.experts else model.expert_intermediate * model.experts_per_token
    return engine.profile_tokens * 2.0 * (2 * model.hidden + 3 * width / tp)


def kv_budget_bytes(
    model: ModelSpec,
    gpu: GpuSpec,
    engine: EngineConstants,
    tp: int,
    memory_utilisation: float | None = None,
    *,
    pp: int = 1,
    dp: int = 1,
) -> float:
    """Bytes left for KV cache on each GPU.

    ``memory * utilisation - weights - activation peak - reserved``; what vLLM logs as available KV cache memory.

    Raises:
        PlacementInfeasible: the weights leave no memory.
    """
    share = engine.memory_utilisation if memory_utilisation is None else memory_utilisation
    reserved = engine.reserved_bytes + (engine.reserved_tp_bytes if tp * dp * pp > 1 else 0.0)
    weights = weight_bytes_per_gpu(model, tp, pp, dp)
    left = gpu.memory_bytes * share - weights - activation_bytes(model, engine, tp) - reserved
    if left <= 0:
        raise PlacementInfeasible(
            f"{model.name} ({model.precision}) needs {weights / GIB:.1f} GiB of weights on each of {tp * pp * dp} "
            f"{gpu.name}, of which {gpu.memory_bytes * share / GIB:.1f} GiB are usable"
        )
    return left
