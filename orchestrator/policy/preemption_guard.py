"""When a running request is preempted for the head of the queue, which finds no KV. Pure.

The head has to be patient first; a worker on which requests decode must be on its way; one request at a time is
preempted, since what it frees is given out before the next one is chosen. Which request it is, `preemption` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from orchestrator.policy.admission import Discipline
from orchestrator.policy.preemption import RESAMPLE_S, Running, patience_is_over

Item = TypeVar("Item", bound=Hashable)
_Item = TypeVar("_Item", bound=Hashable, contravariant=True)


class PreemptionOwner(Protocol[_Item]):
    """Knows what runs, and carries a preemption out."""

    @property
    def starting(self) -> bool:
        """Whether a worker on which requests decode is being started (`orchestrator.policy.readiness.on_its_way`)."""
        ...

    @property
    def growing(self) -> bool:
        """Whether a preempted request had better wait for a worker that is on its way."""
        ...

    def victim(self, item: _Item, need_blocks: int) -> Running | None:
        """The running request to preempt so that a waiting one comes nearer to so many blocks."""
        ...

    def preempt(self, victim: Running) -> bool:
        """Preempt it; False if it was at its end, which frees KV by itself."""
        ...


class PreemptionGuard(Generic[Item]):
    """Owns since when each request finds no KV, and whether one may be preempted for it.

    Args:
        owner: See `PreemptionOwner`.
        patience_s: Seconds for which the head of the queue may find no KV; None: nothing is ever preempted.
        discipline: By `Discipline.PLAIN`, requests are patient from their arrival on, and samples need no pause.
        try_again_in: Called with seconds after which the head of the queue is to be tried again.
    """

    def __init__(
        self,
        owner: PreemptionOwner[Item],
        patience_s: float | None,
        discipline: Discipline,
        try_again_in: Callable[[float], None],
    ) -> None:
        self._owner = owner
        self._patience_s = patience_s
        self._from_arrival = discipline is Discipline.PLAIN
        self._try_again_in = try_again_in
        self._since_s: dict[Item, float] = {}
        self._sample_from_s = 0.0
        self._preempting = False

    def arrived(self, item: Item, now_s: float) -> None:
        """A new request came and was not refused."""
        if self._from_arrival:
            self._begin(item, now_s)

    def found_no_kv(self, item: Item, now_s: float) -> None:
        """No worker has KV for a request that was never preempted."""
        if not self._from_arrival and item not in self._since_s:
            self._begin(item, now_s)

    def placed(self, item: Item) -> None:
        """A request has its KV."""
        if not self._from_arrival:
            self._since_s.pop(item, None)

    def over(self, item: Item) -> None:
        """A request has ended."""
        self._since_s.pop(item, None)

    def make_headroom(self, item: Item, need_blocks: int, now_s: float) -> bool:
        """Preempt for the head of the queue, which found no KV, if that may be; whether a request was preempted."""
        if self._preempting or now_s < self._sample_from_s or not self._owner.starting:
            return False
        if not patience_is_over(now_s, self._since_s.get(item), self._patience_s):
            return False
        victim = self._owner.victim(item, need_blocks)
        if victim is None:
            if not self._from_arrival:
                self._sample_from_s = now_s + RESAMPLE_S
                self._try_again_in(RESAMPLE_S)
            return False
        self._preempting = True
        try:
            return self._owner.preempt(victim)
        finally:
            self._preempting = False

    def _begin(self, item: Item, now_s: float) -> None:
        if self._patience_s is not None:
            self._since_s[item] = now_s
            self._try_again_in(self._patience_s)
