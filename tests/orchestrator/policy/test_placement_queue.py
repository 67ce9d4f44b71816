"""Whose turn it is, alone: a queue over views, and what requests were charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.spec.config import Role
from orchestrator.policy.admission import Discipline
from orchestrator.policy.placement_queue import PlacementQueue, Routing
from orchestrator.policy.preemption import TAKE_BACK_EVERY_S, Running
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView

PREFILL = WorkerView("p0", Role.PREFILL, 100, 100)
NEED = RequestView(100, 60, 32, {})


def decode(worker_id: str, free_blocks: int = 100, **fields: object) -> WorkerView:
    return WorkerView(worker_id, Role.DECODE, 100, free_blocks, **fields)  # type: ignore[arg-type]


@dataclass(eq=False)
class Request:
    waits_for_headroom: bool = False
    avoid: frozenset[str] = frozenset()
    placements: list[Placement] = field(default_factory=list)


class Owner:
    """Workers as the test says; nothing to preempt."""

    def __init__(self, *views: WorkerView) -> None:
        self.views = [PREFILL, *views]
        self.delays_s: list[float] = []
        self.starting = self.growing = False

    def workers(self, item: Request) -> Sequence[WorkerView]:
        return self.views

    def request_view(self, item: Request, workers: Sequence[WorkerView]) -> RequestView:
        return NEED

    def avoided(self, item: Request) -> frozenset[str]:
        return item.avoid

    def placed(self, item: Request, view: RequestView, placement: Placement) -> None:
        assert view is NEED
        item.waits_for_headroom = False
        item.placements.append(placement)

    def try_again_in(self, delay_s: float) -> None:
        self.delays_s.append(delay_s)

    def victim(self, item: Request, need_blocks: int) -> Running | None:
        raise AssertionError("no patience was set")

    preempt = victim  # type: ignore[assignment]


def queue_over(owner: Owner, discipline: Discipline = Discipline.FAIR) -> PlacementQueue[Request]:
    routing = Routing(local_prefill_below_tokens=0, local_prefill_after_s=None)
    return PlacementQueue(owner, owner, routing, 8, discipline=discipline)


def test_a_worker_to_avoid_is_not_the_last_one_because_the_other_takes_none_back_at_present() -> None:
    reads, other = decode("d0", running_requests=1, queued_tokens=50), decode("d1")
    routing = Routing(local_prefill_below_tokens=0, local_prefill_after_s=None)
    avoid = frozenset({"d1"})
    assert isinstance(routing.route_back(NEED, [PREFILL, reads, other], avoid, growing=False, now_s=0.0), Wait)
    alone = routing.route_back(NEED, [PREFILL, other], avoid, growing=False, now_s=0.0)
    assert alone == Placement(None, "d1", 5)


def test_one_that_comes_back_is_prefilled_where_it_decodes_and_its_worker_rests() -> None:
    owner = Owner(decode("d0"))
    queue, request = queue_over(owner), Request(waits_for_headroom=True)
    queue.ask(request, priority=0, now_s=1.0)
    assert request.placements == [Placement(None, "d0", 5)]
    assert owner.delays_s == [TAKE_BACK_EVERY_S]
    owner.views[1] = decode("d0", 50, running_requests=1)
    next_one = Request(waits_for_headroom=True)
    queue.ask(next_one, priority=0, now_s=1.0 + TAKE_BACK_EVERY_S / 2)
    assert not next_one.placements
    queue.place_waiting(1.0 + TAKE_BACK_EVERY_S)
    assert next_one.placements


def test_a_prompt_that_was_read_is_an_occasion_for_those_that_come_back_alone() -> None:
    owner = Owner(decode("d0", 3, running_requests=1))
    queue, fresh = queue_over(owner), Request()
    queue.ask(fresh, priority=0, now_s=0.0)
    owner.views[1] = decode("d0")
    queue.prompt_read(1.0)
    assert not fresh.placements
    assert queue.leave(fresh)
    assert not queue.leave(fresh)
    owner.views[1] = decode("d0", running_requests=1, queued_tokens=9)
    back = Request(waits_for_headroom=True)
    queue.ask(back, priority=0, now_s=2.0)
    owner.views[1] = decode("d0", running_requests=1)
    queue.prompt_read(3.0)
    assert back.placements
    assert not len(queue)


def test_what_was_charged_is_settled_once_and_only_if_it_was_placed() -> None:
    owner = Owner(decode("d0"))
    queue, request = queue_over(owner), Request()
    queue.ask(request, priority=0, tenant="a", cost_tokens=160.0, now_s=0.0)
    settled = [queue.settle(request, tenant="a", priority=0, isl_tokens=100, output_tokens=7) for _ in range(2)]
    assert settled == [107, 7]
    owner.views[1] = decode("d0", 0, running_requests=1)
    waits = Request()
    queue.ask(waits, priority=0, tenant="a", cost_tokens=160.0, now_s=0.0)
    assert list(queue) == [waits]
    assert queue.settle(waits, tenant="a", priority=0, isl_tokens=100, output_tokens=0) == 0
