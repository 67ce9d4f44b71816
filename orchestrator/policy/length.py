"""How long an output may be expected to get, from the lengths seen lately. Pure."""

from __future__ import annotations

from collections import deque


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
