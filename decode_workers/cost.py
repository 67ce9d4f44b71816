"""Time and room of a decode worker: seconds per step, tokens of KV cache."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.engine_constants import EngineConstants
from cluster.hardware import GpuSpec
from cluster.memory import kv_budget_bytes
from cluster.model import ModelSpec
from cluster.roofline import StepCost
from kv_transfer.blocks import kv_bytes_per_token_per_gpu


class DecodeCost:
    """Cost model of one decode (or colocated) worker.

    Args:
        model: Geometry.
        gpu: Kind of GPU.
        engine: Fitted constants.
        tp: GPUs of the worker.
        kv_dtype_bytes: 2 for bf16, 1 for fp8.
        expert_parallel: Experts placed whole.
        memory_utilisation: Share of GPU memory, the engine's default if ``None``.

    Example:
        >>> from cluster.engine_constants import engine_constants
        >>> from cluster.hardware import gpu
        >>> cost = DecodeCost(ModelSpec.named("Llama-3.1-8B"), gpu("H100-SXM"), engine_constants("vllm"))
        >>> 0.004 < cost.step_s(1, 1000) < 0.012
        True
    """

    __slots__ = ("_memory_utilisation", "_step_s", "roofline")

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        engine: EngineConstants,
        tp: int = 1,
        *,
        kv_dtype_bytes: float = 2.0,
        expert_parallel: bool = False,
        memory_utilisation: float | None = None,
    ) -> None:
        self.roofline = StepCost(model, gpu, engine, tp, kv_dtype_bytes=kv_dtype_bytes, expert_parallel=expert_parallel)
        self._memory_utilisation = memory_utilisation
        self._step_s = self.roofline.decode_s

    def step_s(self, batch_size: int, context_tokens: int) -> float:
        """Seconds of one decode step for ``batch_size`` sequences whose contexts sum to ``context_tokens``."""
        return self._step_s(batch_size, context_tokens)

    def mixed_step_s(self, batch_size: int, context_tokens: int, chunks: Sequence[tuple[int, int]] = ()) -> float:
        """Seconds of one step that also prefills ``chunks`` of ``(new_tokens, context_before)``: colocated."""
        return self.roofline.mixed_s(batch_size, context_tokens, chunks)

    def kv_budget_bytes(self) -> float:
        """Bytes for KV cache on each GPU of the worker.

        Raises:
            PlacementInfeasible: the weights leave no room.
        """
        cost = self.roofline
        return kv_budget_bytes(cost.model, cost.gpu, cost.engine, cost.tp, self._memory_utilisation)

    def kv_capacity_tokens(self) -> int:
        """Tokens whose KV the worker can hold.

        Raises:
            PlacementInfeasible: the weights leave no room.
        """
        cost = self.roofline
        return int(self.kv_budget_bytes() / kv_bytes_per_token_per_gpu(cost.model, cost.tp, cost.kv_dtype_bytes))
