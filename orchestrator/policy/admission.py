"""The queue before the workers, live and simulated: nothing queues between prefill and decode. Pure.

Higher priority first, strictly. Within a priority, tenants share by weight (`fair_share`). Within a tenant, the
earliest deadline first, then the earliest arrival. A request that was preempted waits behind all others of its
priority. The queue is bounded: when it is full, a new request takes the place of the last one of a lower priority, or
of a tenant of its own priority that holds more than its share of places; else it is refused. It is refused, too, when
at the rate at which the queue moves it would not be placed by its deadline.

That is `Discipline.FAIR`, which gateways run. `Discipline.PLAIN` leaves tenants, displacement and the forecast of the
wait out; simulations run it unless their scenario says otherwise.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from cluster.errors import RequestRejected
from orchestrator.policy.fair_share import FairShare

Item = TypeVar("Item", bound=Hashable)
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
ENOUGH_GAPS = 8
"""Departures that must have been seen before a deadline is held against the queue's rate."""


class Discipline(StrEnum):
    """How a queue is ordered and bounded.

    FAIR: as the module says. One that was admitted before (`AdmissionQueue.push`, ``again``) goes before all of its
    priority, first come first served, and does not count against the bound.
    PLAIN: one line a priority, whatever the tenant. One that was admitted before keeps the place of its deadline, the
    last one back first among equals, and counts. A full queue refuses every incoming.
    """

    FAIR = "fair"
    PLAIN = "plain"


@dataclass(order=True, slots=True)
class _Entry(Generic[Item]):
    deadline_s: float
    arrival: int
    item: Item = field(compare=False)
    tenant: str = field(compare=False)
    priority: int = field(compare=False)
    cost_tokens: float = field(compare=False)
    again: bool = field(compare=False, default=False)
    waits_for_headroom: bool = field(compare=False, default=False)


class _Level(Generic[Item]):
    """Requests of one priority; ``again_first``: those admitted before go before all others."""

    def __init__(self, share: FairShare, again_first: bool) -> None:
        self.share = share
        self.again_first = again_first
        self.size = 0
        self.again: list[_Entry[Item]] = []
        self.waiting: dict[str, list[_Entry[Item]]] = {}
        self.preempted: list[_Entry[Item]] = []

    def __iter__(self) -> Iterator[_Entry[Item]]:
        yield from self.again
        for entries in self.waiting.values():
            yield from entries
        yield from self.preempted

    def head(self) -> _Entry[Item]:
        if self.again:
            return self.again[0]
        if not self.waiting:
            return self.preempted[0]
        heads = (entries[0] for entries in self.waiting.values())
        if len(self.waiting) == 1:
            return next(heads)
        return min(heads, key=lambda entry: (self.share.start_tag(entry.tenant), entry))

    def add(self, entry: _Entry[Item]) -> None:
        self.size += 1
        if entry.waits_for_headroom:
            self.preempted.append(entry)
        elif entry.again and self.again_first:
            self.again.append(entry)
        else:
            bisect.insort(self.waiting.setdefault(entry.tenant, []), entry)

    def discard(self, entry: _Entry[Item]) -> None:
        self.size -= 1
        if entry.waits_for_headroom or (entry.again and self.again_first):
            (self.preempted if entry.waits_for_headroom else self.again).remove(entry)
            return
        entries = self.waiting[entry.tenant]
        del entries[bisect.bisect_left(entries, entry)]
        if not entries:
            del self.waiting[entry.tenant]

    def ahead_of(self, entry: _Entry[Item]) -> int:
        """Requests that go before ``entry``: tags grow along each tenant's line, so their order is that of the tags."""
        tags = {
            tenant: self.share.tags(tenant, (waiting.cost_tokens for waiting in entries))
            for tenant, entries in self.waiting.items()
        }
        place = bisect.bisect_left(self.waiting[entry.tenant], entry)
        mine = tags[entry.tenant][place]
        others = sum(bisect.bisect_left(line, mine) for tenant, line in tags.items() if tenant != entry.tenant)
        return len(self.again) + place + others


class AdmissionQueue(Generic[Item]):
    """Requests that wait for workers. An item is hashable and in it once at most.

    Args:
        max_queued: Most requests that wait; those that were admitted before (``again``) do not count against it.
        weight_of: Weight of a tenant, above 0.
        discipline: Its order and bound.

    Example:
        >>> queue = AdmissionQueue[str](max_queued=2)
        >>> queue.push("batch", priority=-1), queue.push("chat", priority=1)
        (None, None)
        >>> queue.head
        'chat'
        >>> queue.push("more", priority=0)
        'batch'
    """

    def __init__(
        self,
        max_queued: int,
        weight_of: Callable[[str], float] = lambda _: 1.0,
        discipline: Discipline = Discipline.FAIR,
    ) -> None:
        self.discipline = discipline
        self._fair = discipline is Discipline.FAIR
        self._max_queued = max_queued
        self._weight_of = weight_of
        self._levels: dict[int, _Level[Item]] = {}  # of those priorities at which somebody waits
        self._shares: dict[int, FairShare] = {}
        self._entries: dict[Item, _Entry[Item]] = {}
        self._preempted = 0
        self._fresh = 0  # never admitted before
        self._arrivals = 0
        self._gaps_s: deque[float] = deque(maxlen=64)
        self._since_s = -math.inf

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: Item) -> bool:
        return item in self._entries

    def __iter__(self) -> Iterator[Item]:
        return iter(self._entries)

    @property
    def head(self) -> Item | None:
        """The request to be placed next; None if nobody waits."""
        return self._levels[max(self._levels)].head().item if self._levels else None

    def goes_first(self, priority: int, *, waits_for_headroom: bool = False) -> bool:
        """Whether a new request of this priority need not wait for anybody: at most preempted ones wait behind it.

        Args:
            priority: Its priority.
            waits_for_headroom: It was preempted itself. It needs an empty queue.
        """
        if not self._fair:
            return False  # all go through the queue
        if waits_for_headroom:
            return not self._entries
        if len(self._entries) > self._preempted:
            return False
        return not self._levels or max(self._levels) <= priority

    def check_wait(self, item: Item) -> None:
        """PLAIN: take a new request that was not placed at once out again where none may wait.

        Raises:
            RequestRejected: so it was.
        """
        if not self._max_queued and item in self._entries:
            self.remove(item)
            raise self._full()

    def push(
        self,
        item: Item,
        *,
        priority: int,
        tenant: str = "",
        cost_tokens: float = 1.0,
        deadline_s: float = math.inf,
        now_s: float = 0.0,
        again: bool = False,
        waits_for_headroom: bool = False,
    ) -> Item | None:
        """Add a request; returns the one that had to give up its place, if any.

        Args:
            item: The request.
            priority: Higher goes first.
            tenant: Whose it is.
            cost_tokens: Prompt and expected output tokens, for the fairness between tenants.
            deadline_s: When its last token is due.
            now_s: The time, on the deadline's clock.
            again: It was admitted before and lost its worker, so it goes first and is never refused.
            waits_for_headroom: It was admitted before and was preempted, so it goes last and is never refused.

        Raises:
            RequestRejected: the queue is full, or would not place it by its deadline.
        """
        again = again or waits_for_headroom
        self._arrivals += 1
        first = again and not self._fair  # before its equals
        order = -self._arrivals if first else self._arrivals
        line = tenant if self._fair else ""
        entry = _Entry(deadline_s, order, item, line, priority, cost_tokens, again, waits_for_headroom)
        if again:
            self._insert(entry, now_s)
            return None
        displaced = None
        if not self._fair:
            if len(self._entries) >= max(1, self._max_queued):
                raise self._full()
        elif self._fresh >= self._max_queued:
            displaced = self._to_displace(priority, tenant)
            if displaced is None:
                raise self._full()
        self._insert(entry, now_s)
        wait_s = self._expected_wait_s(entry) if self._fair else 0.0
        if wait_s > 0 and now_s + wait_s > deadline_s:
            self.remove(item)
            raise RequestRejected(
                f"the queue would place it in about {wait_s:.1f} s, which is after its deadline; retry later",
                retry_after_s=_bounded(now_s + wait_s - deadline_s),
                reason="deadline",
            )
        if displaced is None:
            return None
        self.remove(displaced.item)
        return displaced.item

    def take(self, item: Item, *, now_s: float = 0.0) -> float:
        """A request was placed: remove it, and charge its tenant for it; returns the tokens charged."""
        entry = self._entries[item]
        self.remove(item)
        if entry.waits_for_headroom:
            return 0.0  # it waited by choice, which says nothing of how fast the queue moves
        self._gaps_s.append(max(0.0, now_s - self._since_s))
        self._since_s = now_s
        if entry.again:
            return 0.0
        self.charge(entry.tenant, entry.cost_tokens, priority=entry.priority)
        return entry.cost_tokens

    def remove(self, item: Item) -> None:
        """Take a request out, wherever it is; harmless if it is not in."""
        entry = self._entries.pop(item, None)
        if entry is not None:
            self._preempted -= entry.waits_for_headroom
            self._fresh -= not entry.again
            level = self._levels[entry.priority]
            level.discard(entry)
            if not level.size:
                del self._levels[entry.priority]

    def charge(self, tenant: str, cost_tokens: float, *, priority: int) -> None:
        """Charge a tenant for a request that did not have to wait."""
        if self._fair:
            self._share(priority).charge(tenant, cost_tokens)

    def settle(self, tenant: str, more_tokens: float, *, priority: int) -> None:
        """A request took this many tokens more (below 0: fewer) than it was charged."""
        if self._fair:
            self._share(priority).settle(tenant, more_tokens)

    def retry_after_s(self) -> float:
        """Seconds until the queue has likely moved on by its own length."""
        return _bounded((len(self._entries) - self._preempted + 1) * self._gap_s())

    def displaced_error(self) -> RequestRejected:
        """What ends a request whose place another one took (`push`)."""
        return RequestRejected(
            "the queue is full, and a request of a higher priority or of a tenant with fewer places took this one's; "
            "retry later",
            retry_after_s=self.retry_after_s(),
            reason="displaced",
        )

    # --- pieces ---------------------------------------------------------------------------------------------

    def _full(self) -> RequestRejected:
        return RequestRejected(
            f"the queue is full ({self._max_queued} requests wait); retry later", retry_after_s=self.retry_after_s()
        )

    def _share(self, priority: int) -> FairShare:
        return self._shares.setdefault(priority, FairShare(self._weight_of))

    def _insert(self, entry: _Entry[Item], now_s: float) -> None:
        if len(self._entries) == self._preempted:
            self._since_s = now_s  # an idle queue says nothing of how fast a busy one moves
        self._entries[entry.item] = entry
        self._preempted += entry.waits_for_headroom
        self._fresh += not entry.again
        if entry.priority not in self._levels:
            self._levels[entry.priority] = _Level(self._share(entry.priority), again_first=self._fair)
        self._levels[entry.priority].add(entry)

    def _to_displace(self, priority: int, tenant: str) -> _Entry[Item] | None:
        """The last request of the tenant that holds most, if of a lower priority or of more than its share."""
        lowest = min((at for at, level in self._levels.items() if level.waiting), default=priority)
        if lowest > priority:
            return None
        waiting = self._levels[lowest].waiting if lowest in self._levels else {}
        if not waiting:  # nobody but those admitted before, or no place at all
            return None
        held = {name: len(entries) / self._weight_of(name) for name, entries in waiting.items()}
        most = max(held, key=lambda name: (held[name], name))
        mine = (len(waiting.get(tenant, ())) + 1) / self._weight_of(tenant)
        return waiting[most][-1] if lowest < priority or held[most] > mine else None

    def _expected_wait_s(self, entry: _Entry[Item]) -> float:
        """Seconds until ``entry`` is placed, by what was seen lately; 0 while that is not enough to tell."""
        if len(self._gaps_s) < ENOUGH_GAPS:
            return 0.0
        above = sum(level.size for priority, level in self._levels.items() if priority > entry.priority)
        return (above + self._levels[entry.priority].ahead_of(entry) + 1) * self._gap_s()

    def _gap_s(self) -> float:
        """Mean time between two departures while somebody waited."""
        return sum(self._gaps_s) / len(self._gaps_s) if self._gaps_s else 0.0


def _bounded(wait_s: float) -> float:
    return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, wait_s))
