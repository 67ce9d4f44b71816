"""How long an output is expected to get, from the lengths seen lately. Pure; gateways reserve KV by it."""

from __future__ import annotations

from collections import deque

FORECAST_QUANTILE = 0.9
"""Share of requests that make no more than what is reserved for them."""


class RecentLengths:
    """Empirical quantile of the last output lengths; a prior until there are enough.

    Example:
        >>> lengths = RecentLengths(prior_tokens=512, window=4, enough=2)
        >>> lengths.quantile(0.9)
        512
        >>> for tokens in (10, 20, 30): lengths.record(tokens)
        >>> lengths.quantile(0.9)
        30
    """

    def __init__(self, prior_tokens: int, *, window: int = 512, enough: int = 16) -> None:
        self._prior_tokens = prior_tokens
        self._enough = enough
        self._lengths: deque[int] = deque(maxlen=window)

    def record(self, osl_tokens: int) -> None:
        """A request finished with this many output tokens."""
        self._lengths.append(osl_tokens)

    def quantile(self, q: float) -> int:
        """Output tokens not exceeded by a share ``q`` of requests."""
        if len(self._lengths) < self._enough:
            return self._prior_tokens
        ordered = sorted(self._lengths)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    def expected_tokens(self, max_tokens: int) -> int:
        """Output that a request of this limit is expected to have, before it has any."""
        return min(max_tokens, self.quantile(FORECAST_QUANTILE))

    def remaining_tokens(self, max_tokens: int, made_tokens: int, at_least_tokens: int) -> int:
        """Output still to come of one that has made so much: a block's worth at least, unless its limit is nearer.

        Example:
            >>> lengths = RecentLengths(prior_tokens=512)
            >>> [lengths.remaining_tokens(600, made, 16) for made in (0, 500, 590)]
            [512, 16, 10]
        """
        usual = self.quantile(FORECAST_QUANTILE) - made_tokens
        return min(max_tokens - made_tokens, max(usual, at_least_tokens))
