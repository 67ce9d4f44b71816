"""The queue before the workers: bounded, by priority, then by arrival. All queueing happens here. Pure."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cluster.errors import RequestRejected

Item = TypeVar("Item")
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0


@dataclass(order=True, slots=True)
class _Entry(Generic[Item]):
    key: tuple[int, int]
    item: Item = field(compare=False)


class AdmissionQueue(Generic[Item]):
    """Requests that wait for workers.

    Example:
        >>> queue = AdmissionQueue[str](max_queued=2)
        >>> queue.push("batch", priority=-1), queue.push("chat", priority=1)
        (None, None)
        >>> queue.items()
        ['chat', 'batch']
    """

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._entries: list[_Entry[Item]] = []
        self._arrivals = 0
        self._finished_s: list[float] = []

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, item: Item, *, priority: int, again: bool = False) -> None:
        """Add a request. ``again``: it was admitted before and lost its worker, so it is never refused.

        Raises:
            RequestRejected: the queue is full.
        """
        if not again and len(self._entries) >= self._max_queued:
            raise RequestRejected(
                f"the queue is full ({self._max_queued} requests wait); retry later",
                retry_after_s=self.retry_after_s(),
            )
        self._arrivals += 1
        arrival = -self._arrivals if again else self._arrivals
        bisect.insort(self._entries, _Entry((-priority, arrival), item))

    def remove(self, item: Item) -> None:
        """Take a request out, wherever it is."""
        self._entries = [entry for entry in self._entries if entry.item is not item]

    def items(self) -> list[Item]:
        """Requests in the order in which they are to be placed."""
        return [entry.item for entry in self._entries]

    def finished(self, now_s: float) -> None:
        """A request finished: the rate tells newcomers when to come back."""
        self._finished_s.append(now_s)
        del self._finished_s[:-64]

    def retry_after_s(self) -> float:
        """Seconds until the queue has likely moved on by its own length."""
        times = self._finished_s
        span_s = times[-1] - times[0] if len(times) > 1 else 0.0
        rate_per_s = (len(times) - 1) / span_s if span_s > 0 else 0.0
        wait_s = (len(self._entries) + 1) / rate_per_s if rate_per_s else MIN_RETRY_AFTER_S
        return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, wait_s))
