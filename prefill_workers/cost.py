"""Time of a prefill worker: seconds to read a prompt, whole or in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.hardware.catalogue import GpuSpec
from cluster.hardware.engine_constants import EngineConstants
from cluster.hardware.roofline import StepCost
from cluster.model.model_spec import ModelSpec


class PrefillCost:
    """Cost model of one prefill worker.

    Args:
        model: Geometry.
        gpu: Kind of GPU.
        engine: Fitted constants.
        tp: GPUs over which matrices are split.
        kv_dtype_bytes: 2 for bf16, 1 for fp8.
        expert_parallel: Experts placed whole.
        pp: Pipeline stages.
        dp: Ranks with attention of their own that share the experts.
        chunk_tokens: Most tokens of one step; longer prompts take several.

    Example:
        >>> from cluster.hardware.engine_constants import engine_constants
        >>> from cluster.hardware.catalogue import gpu
        >>> from cluster.model.known_models import known_model
        >>> cost = PrefillCost(known_model("Llama-3.1-8B"), gpu("H100-SXM"), engine_constants("vllm"))
        >>> cost.prefill_s(4096, cached_tokens=2048) < cost.prefill_s(6144)
        True
    """

    __slots__ = ("chunk_tokens", "roofline")

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
        chunk_tokens: int = 8192,
    ) -> None:
        self.roofline = StepCost(
            model, gpu, engine, tp, kv_dtype_bytes=kv_dtype_bytes, expert_parallel=expert_parallel, pp=pp, dp=dp
        )
        self.chunk_tokens = chunk_tokens

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds of engine steps to prefill ``new_tokens`` after ``cached_tokens`` found in the prefix cache."""
        total, done, chunk = 0.0, cached_tokens, self.chunk_tokens
        left = new_tokens
        while left > 0:
            piece = chunk if left > chunk else left
            total += self.roofline.mixed_s(0, 0, ((piece, done),))
            done += piece
            left -= piece
        return total

    def chunk_s(self, chunks: Sequence[tuple[int, int]]) -> float:
        """Seconds of one step over prefill pieces ``(new_tokens, context_before)``."""
        return self.roofline.mixed_s(0, 0, chunks)

    def first_token_overhead_s(self) -> float:
        """Seconds between client and engine around the first token, outside any step."""
        return self.roofline.engine.first_token_s
