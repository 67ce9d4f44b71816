"""Which requests get workers, and when: from the queue to the router, for gateway and simulator. Pure.

A request that nobody waits before is tried at once, whether it need not wait (`AdmissionQueue.goes_first`) or comes to
the head of the queue; others wait. When something was freed, requests are placed from the head of the queue on, until
one finds no KV: a small request does not overtake a large one for ever. For that one a running request may be preempted
(`orchestrator.policy.preemption`), and then it is tried again.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Generic, Protocol, TypeVar

from orchestrator.policy.admission import AdmissionQueue, Discipline
from orchestrator.policy.preemption import TakeBacks
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView, place

Item = TypeVar("Item", bound=Hashable)
_Item = TypeVar("_Item", bound=Hashable, contravariant=True)


class PlacementOwner(Protocol[_Item]):
    """Knows the workers, and carries out what is decided here."""

    def route(self, item: _Item) -> Placement | Wait:
        """What the router says of a request as it stands; nothing is reserved yet."""
        ...

    def placed(self, item: _Item, placement: Placement, charged_tokens: float) -> None:
        """A request has workers; its tenant was charged so much (0 for one that was admitted before)."""
        ...

    def make_headroom(self, item: _Item) -> bool:
        """Preempt for the head of the queue, which found no KV; whether there may be KV now."""
        ...


class Placing(Generic[Item]):
    """Owns whose turn it is. The queue it works on is its own to change.

    Args:
        queue: Requests that wait.
        owner: Is asked for placements, and takes them.
    """

    def __init__(self, queue: AdmissionQueue[Item], owner: PlacementOwner[Item]) -> None:
        self.queue = queue
        self._owner = owner

    def ask(
        self,
        item: Item,
        *,
        priority: int,
        tenant: str = "",
        cost_tokens: float = 1.0,
        deadline_s: float = math.inf,
        now_s: float,
        again: bool = False,
        waits_for_headroom: bool = False,
    ) -> Item | None:
        """Place a request if it is its turn, else let it wait; returns the one that lost its place to it, if any.

        Arguments as of `AdmissionQueue.push`.

        Raises:
            RequestRejected: it can neither be placed nor wait.
        """
        queue, head = self.queue, self.queue.head
        again = again or waits_for_headroom
        direct = queue.goes_first(priority, waits_for_headroom=waits_for_headroom)
        if direct and not isinstance(found := self._owner.route(item), Wait):
            if not again:
                queue.charge(tenant, cost_tokens, priority=priority)
            self._owner.placed(item, found, 0.0 if again else cost_tokens)
            displaced = None
        else:
            displaced = queue.push(
                item,
                priority=priority,
                tenant=tenant,
                cost_tokens=cost_tokens,
                deadline_s=deadline_s,
                now_s=now_s,
                again=again,
                waits_for_headroom=waits_for_headroom,
            )
        fair = queue.discipline is Discipline.FAIR
        # Nothing else may happen that would try it, or what is the head since another lost its place to it.
        if (fair and again) or (queue.head is not head and not direct):
            self.place_waiting(now_s)
        if not fair and not again:
            queue.check_wait(item)
        return displaced

    def place_waiting(self, now_s: float) -> None:
        """Place from the head on what finds KV, or for which a running request is preempted."""
        queue, owner = self.queue, self._owner
        while (item := queue.head) is not None:
            found = owner.route(item)
            if isinstance(found, Wait):
                if found.reason == "no_blocks" and owner.make_headroom(item):
                    continue
                return
            owner.placed(item, found, queue.take(item, now_s=now_s))


class Routing:
    """Asks the router, with what a cluster sets; owns when preempted requests came back to which worker.

    Args:
        local_prefill_below_tokens: As of `orchestrator.policy.router.place`.
        local_prefill_after_s: The same.
    """

    def __init__(self, *, local_prefill_below_tokens: int, local_prefill_after_s: float | None) -> None:
        self.local_prefill_below_tokens = local_prefill_below_tokens
        self._local_prefill_after_s = local_prefill_after_s
        self.take_backs = TakeBacks()

    def route(
        self,
        request: RequestView,
        workers: Sequence[WorkerView],
        *,
        avoid: frozenset[str],
        comes_back: bool,
        growing: bool,
        now_s: float,
    ) -> Placement | Wait:
        """Choose workers.

        Args:
            request: What is known of it.
            workers: All workers.
            avoid: Workers that failed it before.
            comes_back: It was preempted. It goes where it takes no headroom from new requests, and is prefilled again
                where it decodes, out of the way of others' first tokens.
            growing: A decode worker is on its way.
            now_s: The time.
        """
        below_tokens = self.local_prefill_below_tokens
        if comes_back:
            workers = self.take_backs.open_workers(workers, request.reserve_blocks, growing=growing, now_s=now_s)
            below_tokens = request.isl_tokens
        return place(
            request,
            workers,
            local_prefill_below_tokens=below_tokens,
            local_prefill_after_s=self._local_prefill_after_s,
            avoid=avoid,
        )
