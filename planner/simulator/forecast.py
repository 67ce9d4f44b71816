"""Output lengths as the router gets them. The forecaster of the cluster goes in here; these are the plain ones."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.policy.length import RecentLengths


class LengthForecast(Protocol):
    """Output length to reserve KV for, before it is known."""

    def osl_tokens(self, tenant: str, isl_tokens: int, generated_tokens: int) -> int:
        """Tokens still to come of a request that has made ``generated_tokens``."""
        ...

    def observe(self, tenant: str, isl_tokens: int, osl_tokens: int) -> None:
        """A request finished with this output length."""
        ...


class FixedForecast:
    """Always the same, as the gateway assumes before any request has finished."""

    def __init__(self, tokens: int = 512) -> None:
        self._tokens = tokens

    def osl_tokens(self, tenant: str, isl_tokens: int, generated_tokens: int) -> int:
        """The stated length, less what is there already, at least 1."""
        return max(1, self._tokens - generated_tokens)

    def observe(self, tenant: str, isl_tokens: int, osl_tokens: int) -> None:
        """Learns nothing."""


class LiveForecast:
    """As a live gateway: one quantile for all tenants, whatever a request has made by now.

    Args:
        start_tokens: Answer until enough have finished.
        max_tokens: Limit that callers set.
        block_size_tokens: Least that is expected of one that runs.
    """

    def __init__(self, start_tokens: int, max_tokens: int, block_size_tokens: int) -> None:
        self._lengths = RecentLengths(start_tokens)
        self._max_tokens, self._block_size_tokens = max_tokens, block_size_tokens

    def osl_tokens(self, tenant: str, isl_tokens: int, generated_tokens: int) -> int:
        """Tokens still to come."""
        if not generated_tokens:
            return self._lengths.expected_tokens(self._max_tokens)
        return self._lengths.remaining_tokens(self._max_tokens, generated_tokens, self._block_size_tokens)

    def observe(self, tenant: str, isl_tokens: int, osl_tokens: int) -> None:
        """Remember a length."""
        self._lengths.record(osl_tokens)


class CappedForecast:
    """Another forecast, up to a limit: KV is reserved for what a request may grow by before pools can change.

    Args:
        inner: The forecast.
        most_tokens: Limit.
    """

    def __init__(self, inner: LengthForecast, most_tokens: int) -> None:
        self._inner, self._most_tokens = inner, most_tokens

    def osl_tokens(self, tenant: str, isl_tokens: int, generated_tokens: int) -> int:
        """The other's answer, at most the limit."""
        return min(self._most_tokens, self._inner.osl_tokens(tenant, isl_tokens, generated_tokens))

    def observe(self, tenant: str, isl_tokens: int, osl_tokens: int) -> None:
        """Pass it on."""
        self._inner.observe(tenant, isl_tokens, osl_tokens)


class RecentForecast:
    """A quantile of what the last requests of the tenant still made after the point a request has reached.

    Args:
        quantile: Share of requests that need no more.
        window: Requests remembered per tenant.
        start_tokens: Answer until ten have finished.

    Example:
        >>> forecast = RecentForecast(quantile=0.5, start_tokens=100)
        >>> for length in range(1, 101):
        ...     forecast.observe("", 10, length)
        >>> forecast.osl_tokens("", 10, 0), forecast.osl_tokens("", 10, 80)
        (51, 11)
    """

    def __init__(self, quantile: float = 0.9, window: int = 1000, start_tokens: int = 512) -> None:
        self._quantile, self._window, self._start_tokens = quantile, window, start_tokens
        self._seen: dict[str, deque[int]] = {}
        self._sorted: dict[str, tuple[int, npt.NDArray[Any]]] = {}
        self._fresh: dict[str, int] = {}

    def osl_tokens(self, tenant: str, isl_tokens: int, generated_tokens: int) -> int:
        """Tokens still to come, at the quantile, among requests that got as far."""
        seen = self._seen.get(tenant)
        if seen is None or len(seen) < 10:
            return max(1, self._start_tokens - generated_tokens)
        lengths = self._lengths(tenant, seen)
        first = int(np.searchsorted(lengths, generated_tokens, side="right"))
        if first >= len(lengths):
            return self._start_tokens
        at = first + int(self._quantile * (len(lengths) - first))
        return max(1, int(lengths[min(at, len(lengths) - 1)]) - generated_tokens)

    def observe(self, tenant: str, isl_tokens: int, osl_tokens: int) -> None:
        """Remember a length."""
        self._seen.setdefault(tenant, deque(maxlen=self._window)).append(osl_tokens)
        self._fresh[tenant] = self._fresh.get(tenant, 0) + 1

    def _lengths(self, tenant: str, seen: deque[int]) -> npt.NDArray[Any]:
        """Sorted lengths, renewed once 2 % of them have changed."""
        count, lengths = self._sorted.get(tenant, (-1, np.zeros(0)))
        fresh = self._fresh.get(tenant, 0)
        if count < 0 or fresh - count > len(seen) // 50:
            lengths = np.sort(np.fromiter(seen, np.int64, len(seen)))
            self._sorted[tenant] = (fresh, lengths)
        return lengths
