"""What an engine is: its costs and limits."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError
from planner.simulator.cost import DecodeCost, MixedCost, PrefillCost


@dataclass(frozen=True)
class EngineProfile:
    """What one kind of worker is: its costs and limits.

    Args:
        decode: Cost of decode steps.
        prefill: Cost of prefill steps.
        total_blocks: KV blocks of the engine.
        block_size_tokens: Tokens per block.
        mixed: Cost of steps that do both; left out, the sum of both.
        max_num_seqs: Most requests in a step.
        max_num_batched_tokens: Most tokens in a step.
        ranks: Ranks and stages that a step has places for; a prompt is read on one, which has its part of the step.
        kv_bytes_per_token: For transfers.
        overhead_s: Seconds outside any step that each prefill adds before its first token is out.
        gpus: For GPU-hours.
        name: Kind, for reports.
        prefill_first: Prompts have steps of their own and decode waits, as in SGLang; else a step does both, as in
            vLLM and TensorRT-LLM.
    """

    decode: DecodeCost
    prefill: PrefillCost
    total_blocks: int
    block_size_tokens: int = 16
    mixed: MixedCost | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    kv_bytes_per_token: float = 131072.0
    overhead_s: float = 0.0
    gpus: int = 1
    name: str = "worker"
    prefill_first: bool = False
    ranks: int = 1

    def __post_init__(self) -> None:
        for key in ("total_blocks", "block_size_tokens", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{self.name}.{key}={getattr(self, key)}: expected >= 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            # Decode alone could use up the step, and no prompt would ever be read.
            raise ConfigError(f"{self.name}.max_num_batched_tokens: expected at least max_num_seqs")

    @property
    def piece_tokens(self) -> int:
        """Most tokens of one prompt in a step."""
        return max(1, self.max_num_batched_tokens // self.ranks)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens a second in full steps, for the router's estimate of a queue."""
        seconds = self.prefill.chunk_s([(self.piece_tokens, 0)] * self.ranks)
        return self.max_num_batched_tokens / seconds if seconds > 0 else 1e12
