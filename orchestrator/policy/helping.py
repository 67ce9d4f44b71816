"""How often a decode worker may read prompts for a crowded prefill pool: few gaps of its streams may be slow. Pure."""

from __future__ import annotations

STEP_TOKENS = 8192
"""Prompt tokens of one engine step, vLLM's ``max_num_batched_tokens``: a longer prompt makes several steps slow."""
REST_S = 0.9
"""Seconds that a worker does not help after one step of it: reading takes a quarter, and in the rest there are some 28
steps of 23 ms. Objectives allow one slow gap in twenty, and traces that come back need some of them."""
SHORT_TOKENS = 64
"""Prompts up to this length hardly lengthen a step, and need no rest."""


class HelpRests:
    """Which decode workers rest from helping.

    Example:
        >>> rests = HelpRests()
        >>> rests.helped("d0", 5000, now_s=10.0)
        >>> rests.resting(10.5), rests.resting(11.0)
        ({'d0'}, set())
    """

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def helped(self, worker_id: str, tokens: int, now_s: float) -> None:
        """The worker, which has other requests, is given a prompt with so many tokens to read."""
        if tokens > SHORT_TOKENS:
            steps = -(-tokens // STEP_TOKENS)
            self._until_s[worker_id] = max(now_s, self._until_s.get(worker_id, now_s)) + steps * REST_S

    def resting(self, now_s: float) -> set[str]:
        """Those that rest now."""
        self._until_s = {name: until_s for name, until_s in self._until_s.items() if until_s > now_s}
        return set(self._until_s)
