"""How fast a model's choices came lately: to their first token, and from token to token."""

from __future__ import annotations

from baton.v1 import inference_pb2 as pb

SHARE = 0.1
"""Of a new measurement in the mean."""


class Pace:
    """Owns the running means of one model; guesses until the first choice has ended."""

    def __init__(self) -> None:
        self.itl_s = 0.02
        self.start_s = 0.2
        self._known = False

    def record(self, summary: pb.ChoiceSummary) -> None:
        """A choice got all its tokens."""
        timings = summary.timings
        tokens = summary.usage.reasoning_tokens + summary.usage.answer_tokens - summary.resumed_tokens
        if tokens < 2 or timings.last_token_s <= timings.first_token_s:
            return
        itl_s = (timings.last_token_s - timings.first_token_s) / (tokens - 1)
        share, self._known = (SHARE if self._known else 1.0), True
        self.itl_s += share * (itl_s - self.itl_s)
        self.start_s += share * (timings.first_token_s - timings.queue_s - self.start_s)
