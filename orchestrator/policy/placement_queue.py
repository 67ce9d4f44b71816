"""Which requests get workers, and when: from the queue to the router, for gateway and simulator. Pure.

A request that nobody waits before is tried at once, whether it need not wait (`AdmissionQueue.goes_first`) or comes to
the head of the queue; others wait. When something was freed, requests are placed from the head of the queue on, until
one finds no KV: a small request does not overtake a large one for ever. For that one a running request may be preempted
(`orchestrator.policy.preemption_guard`), and then it is tried again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from cluster.errors import RequestRejected
from orchestrator.policy.admission import AdmissionQueue, Discipline
from orchestrator.policy.preemption import TAKE_BACK_EVERY_S, TakeBacks
from orchestrator.policy.preemption_guard import PreemptionGuard, PreemptionOwner
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView, place, without_avoided
from orchestrator.policy.siblings import place_beside


class WaitingRequest(Protocol):
    """What is asked of a request itself."""

    def __hash__(self) -> int: ...

    @property
    def waits_for_headroom(self) -> bool:
        """Whether it was preempted and is yet to come back."""
        ...


Item = TypeVar("Item", bound=WaitingRequest)
_Item = TypeVar("_Item", bound=WaitingRequest, contravariant=True)


class PlacementOwner(Protocol[_Item]):
    """Knows the workers, and carries out what is decided here."""

    def workers(self, item: _Item) -> Sequence[WorkerView]:
        """All workers as a request is to see them."""
        ...

    def request_view(self, item: _Item, workers: Sequence[WorkerView]) -> RequestView:
        """A request as the router is to see it."""
        ...

    def avoided(self, item: _Item) -> frozenset[str]:
        """Workers that failed a request before."""
        ...

    def placed(self, item: _Item, view: RequestView, placement: Placement) -> None:
        """A request, as it was seen, has workers: reserve its KV, and let it go on."""
        ...

    def try_again_in(self, delay_s: float) -> None:
        """Call `PlacementQueue.place_waiting` after so many seconds."""
        ...


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

    def route(self, request: RequestView, workers: Sequence[WorkerView], avoid: frozenset[str]) -> Placement | Wait:
        """Choose workers for a request, not those to ``avoid`` unless no other is left."""
        if (beside := place_beside(request, workers, avoid=avoid)) is not None:
            return beside
        return place(
            request,
            workers,
            local_prefill_below_tokens=self.local_prefill_below_tokens,
            local_prefill_after_s=self._local_prefill_after_s,
            avoid=avoid,
        )

    def route_back(
        self,
        request: RequestView,
        workers: Sequence[WorkerView],
        avoid: frozenset[str],
        *,
        growing: bool,
        now_s: float,
    ) -> Placement | Wait:
        """Choose a worker for a request that was preempted.

        It goes where it takes no headroom from new requests, and is prefilled again where it decodes, out of the way
        of others' first tokens. One to avoid is not the last one left because another takes none back at present.
        """
        below_tokens = request.isl_tokens
        workers = without_avoided(workers, avoid, below_tokens)
        workers = self.take_backs.open_workers(workers, request.reserve_blocks, growing=growing, now_s=now_s)
        return place(
            request,
            workers,
            local_prefill_below_tokens=below_tokens,
            local_prefill_after_s=self._local_prefill_after_s,
            avoid=avoid,
        )


class PlacementQueue(Generic[Item]):
    """Owns who waits, whose turn it is, and what each request was charged to its tenant.

    Args:
        owner: Is asked for workers, and takes placements.
        preemption: The last resort where no KV is left.
        routing: Asks the router.
        max_queued: As of `AdmissionQueue`.
        weight_of: The same.
        discipline: The same.
        patience_s: As of `PreemptionGuard`.
    """

    def __init__(
        self,
        owner: PlacementOwner[Item],
        preemption: PreemptionOwner[Item],
        routing: Routing,
        max_queued: int,
        *,
        weight_of: Callable[[str], float] = lambda _: 1.0,
        discipline: Discipline = Discipline.FAIR,
        patience_s: float | None = None,
    ) -> None:
        self._owner = owner
        self._preemption = preemption
        self._routing = routing
        self._waiting: AdmissionQueue[Item] = AdmissionQueue(max_queued, weight_of, discipline)
        self._guard: PreemptionGuard[Item] = PreemptionGuard(preemption, patience_s, discipline, owner.try_again_in)
        self._fair = discipline is Discipline.FAIR
        self._charged_tokens: dict[Item, float] = {}
        """Of requests that were placed and are not settled."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._waiting)

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
    ) -> Item | None:
        """Place a request if it is its turn, else let it wait; returns the one that lost its place to it, if any.

        Arguments as of `AdmissionQueue.push`.

        Raises:
            RequestRejected: it can neither be placed nor wait.
        """
        queue, head = self._waiting, self._waiting.head
        comes_back = item.waits_for_headroom
        again = again or comes_back
        direct = queue.goes_first(priority, waits_for_headroom=comes_back)
        view, found = self._route(item, now_s) if direct else (None, None)
        if view is not None and isinstance(found, Placement):
            if not again:
                queue.charge(tenant, cost_tokens, priority=priority)
            self._place(item, view, found, 0.0 if again else cost_tokens, now_s)
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
                waits_for_headroom=comes_back,
            )
        # Nothing else may happen that would try it, or what is the head since another lost its place to it.
        if (self._fair and again) or (queue.head is not head and not direct):
            self.place_waiting(now_s)
        if not again:
            if not self._fair:
                queue.check_wait(item)
            self._guard.arrived(item, now_s)
        return displaced

    def place_waiting(self, now_s: float) -> None:
        """Place from the head on what finds KV, or for which a running request is preempted."""
        while (item := self._waiting.head) is not None:
            view, found = self._route(item, now_s)
            if isinstance(found, Placement):
                self._place(item, view, found, self._waiting.take(item, now_s=now_s), now_s)
                continue
            if found.reason != "no_blocks" or item.waits_for_headroom:
                return
            if not self._guard.make_headroom(item, view.reserve_blocks, now_s):
                return

    def prompt_read(self, now_s: float) -> None:
        """A worker has read a prompt: where none is read, a request that was preempted may come back."""
        head = self._waiting.head
        if self._fair and head is not None and head.waits_for_headroom:
            self.place_waiting(now_s)

    def leave(self, item: Item) -> bool:
        """A request has ended, wherever it was; whether it waited, so that another may be the head."""
        waited = item in self._waiting
        self._waiting.remove(item)
        self._guard.over(item)
        return waited

    def settle(self, item: Item, *, tenant: str, priority: int, isl_tokens: int, output_tokens: int) -> int:
        """Charge a tenant what a request took instead of the forecast.

        Returns:
            Prompt and output tokens; the prompt counts only if the request was placed.
        """
        charged = self._charged_tokens.pop(item, 0.0)
        if not charged:
            return output_tokens
        used = isl_tokens + output_tokens
        self._waiting.settle(tenant, used - charged, priority=priority)
        return used

    def displaced_error(self) -> RequestRejected:
        """What ends a request whose place another one took (`ask`)."""
        return self._waiting.displaced_error()

    # --- pieces ---------------------------------------------------------------------------------------------

    def _route(self, item: Item, now_s: float) -> tuple[RequestView, Placement | Wait]:
        owner = self._owner
        workers = owner.workers(item)
        view, avoid = owner.request_view(item, workers), owner.avoided(item)
        if item.waits_for_headroom:
            growing = self._preemption.growing
            return view, self._routing.route_back(view, workers, avoid, growing=growing, now_s=now_s)
        found = self._routing.route(view, workers, avoid)
        if isinstance(found, Wait) and found.reason == "no_blocks":
            self._guard.found_no_kv(item, now_s)
        return view, found

    def _place(self, item: Item, view: RequestView, found: Placement, charged_tokens: float, now_s: float) -> None:
        if charged_tokens:
            self._charged_tokens.setdefault(item, charged_tokens)
        self._guard.placed(item)
        if item.waits_for_headroom:
            self._routing.take_backs.came_back(found.decode_id, now_s)
            self._owner.try_again_in(TAKE_BACK_EVERY_S)
        self._owner.placed(item, view, found)
