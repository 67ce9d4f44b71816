"""How long outputs are expected to get, by the lengths seen lately."""

from __future__ import annotations

from orchestrator.gateway.run_view import RunView
from orchestrator.policy.length import RecentLengths
from orchestrator.request.prepare import PreparedRequest


class OutputForecast:
    """Owns the recent output lengths of one model.

    Args:
        prior_tokens: Taken for an output until enough have been seen.
        block_size_tokens: Tokens per KV block.
    """

    def __init__(self, prior_tokens: int, block_size_tokens: int) -> None:
        self.block_size_tokens = block_size_tokens
        self._lengths = RecentLengths(prior_tokens)

    def record(self, output_tokens: int) -> None:
        """A choice ended with so many tokens."""
        self._lengths.record(output_tokens)

    def output_tokens(self, request: PreparedRequest) -> int:
        """Output tokens that a choice of the request is expected to have."""
        return self._lengths.expected_tokens(request.max_tokens)

    def remaining_tokens(self, run: RunView) -> int:
        """Output tokens still to come, at least a block's worth unless the limit is nearer."""
        made_tokens = len(run.life.output_ids)
        return self._lengths.remaining_tokens(run.request.max_tokens, made_tokens, self.block_size_tokens)

    def held_blocks(self, run: RunView) -> int:
        """Blocks that hold what the run has."""
        return -(-run.life.context_tokens // self.block_size_tokens)
