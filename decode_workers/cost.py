"""Time and KV capacity of a decode worker: seconds per step, tokens of KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.engine.speculation import Speculation
from cluster.errors import PlacementInfeasible
from cluster.hardware.catalogue import GpuSpec
from cluster.hardware.engine_constants import EngineConstants
from cluster.hardware.memory import kv_budget_bytes
from cluster.hardware.roofline import StepCost
from cluster.model.model_spec import ModelSpec
from kv_transfer.kv_layout import KvLayout, kv_layout


class DecodeCost:
    """Cost model of one decode (or colocated) worker.

    Args:
        model: Geometry.
        gpu: Kind of GPU.
        engine: Fitted constants.
        tp: GPUs over which matrices are split.
        kv_dtype_bytes: 2 for bf16, 1 for fp8.
        expert_parallel: Experts placed whole.
        pp: Pipeline stages.
        dp: Ranks with attention of their own that share the experts.
        memory_utilisation: Share of GPU memory, the engine's default if ``None``.
        speculation: Tokens proposed ahead; a step then counts as the time of one token that comes out.

    Example:
        >>> from cluster.hardware.engine_constants import engine_constants
        >>> from cluster.hardware.catalogue import gpu
        >>> from cluster.model.known_models import known_model
        >>> cost = DecodeCost(known_model("Llama-3.1-8B"), gpu("H100-SXM"), engine_constants("vllm"))
        >>> 0.004 < cost.step_s(1, 1000) < 0.012
        True
    """

    __slots__ = ("_memory_utilisation", "_step_s", "roofline", "speculation")

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        engine: EngineConstants,
        tp: int = 1,
        *,
        kv_dtype_bytes: float = 2.0,
        expert_parallel: bool = False,
        pp: int = 1,
        dp: int = 1,
        memory_utilisation: float | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        if speculation is not None:
            speculation.check(model)
        self.speculation = speculation
        self.roofline = StepCost(
            model, gpu, engine, tp, kv_dtype_bytes=kv_dtype_bytes, expert_parallel=expert_parallel, pp=pp, dp=dp
        )
        self._memory_utilisation = memory_utilisation
        self._step_s = self.roofline.decode_s if speculation is None else self._speculative_s

    def step_s(self, batch_size: int, context_tokens: int) -> float:
        """Seconds of one decode step for ``batch_size`` sequences whose contexts sum to ``context_tokens``."""
        return self._step_s(batch_size, context_tokens)

    def mixed_step_s(self, batch_size: int, context_tokens: int, chunks: Sequence[tuple[int, int]] = ()) -> float:
        """Seconds of one step that also prefills ``chunks`` of ``(new_tokens, context_before)``: colocated."""
        if self.speculation is None or not batch_size:
            return self.roofline.mixed_s(batch_size, context_tokens, chunks)
        added_s = self.roofline.mixed_s(batch_size, context_tokens, chunks) - self.roofline.decode_s(
            batch_size, context_tokens
        )
        return self._step_s(batch_size, context_tokens) + added_s

    def _speculative_s(self, batch_size: int, context_tokens: int) -> float:
        """Time per token that comes out: the step that verifies, and the proposals before it, over its tokens."""
        speculation, cost = self.speculation, self.roofline
        assert speculation is not None
        terms = cost.terms_s(batch_size, context_tokens, tokens_each=speculation.tokens + 1)
        step_s = sum(terms.values())
        if speculation.mtp:
            # One layer and the output head for each proposal, one after the other.
            plain = cost.terms_s(batch_size, context_tokens)
            head_s = plain.pop("output head")
            layer_s = (sum(plain.values()) - cost.engine.step_s) / cost.model.layer_equivalents
            step_s += speculation.tokens * (layer_s + head_s)
        return step_s / speculation.tokens_per_step

    def kv_budget_bytes(self) -> float:
        """Bytes for KV cache on each GPU of the worker.

        Raises:
            PlacementInfeasible: the weights leave no memory.
        """
        cost = self.roofline
        left = kv_budget_bytes(
            cost.model, cost.gpu, cost.engine, cost.tp, self._memory_utilisation, pp=cost.pp, dp=cost.dp
        )
        if self.speculation is not None and self.speculation.mtp:
            left -= cost.model.weights.mtp_params * cost.model.precision.weight_bytes / (cost.tp * cost.dp)
        if left <= 0:
            raise PlacementInfeasible(f"{cost.model.name}'s MTP layer leaves no memory for KV cache on {cost.gpu.name}")
        return left

    def kv_layout(self, block_size_tokens: int = 16, prefix_cache: bool = False) -> KvLayout:
        """How the pool of each GPU is cut up."""
        cost, model = self.roofline, self.roofline.model
        if self.speculation is not None and self.speculation.mtp:
            model = replace(model, layers=model.layers + 1, attention_layers=model.attention_layers + 1)
        return kv_layout(
            model,
            cost.tp,
            block_size_tokens=block_size_tokens,
            kv_dtype_bytes=cost.kv_dtype_bytes,
            pp=cost.pp,
            prefix_cache=prefix_cache,
        )

    def kv_capacity_tokens(self, context_tokens: float = 8192.0) -> int:
        """Tokens whose KV the worker can hold.

        Args:
            context_tokens: Length of the requests that fill it; of no effect where every layer keeps every token.
        Raises:
            PlacementInfeasible: the weights leave no memory.
        """
        budget = self.kv_budget_bytes()
        layout = self.kv_layout()
        if layout.plain:
            return self.roofline.dp * int(budget / (layout.block_bytes / layout.block_tokens))
        return self.roofline.dp * layout.capacity_tokens(budget, context_tokens)
