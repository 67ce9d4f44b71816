"""The additions to the shared decisions: moving a decoding request, and workers that the router avoids."""

from __future__ import annotations

from cluster.errors import WorkerDied
from cluster.spec.config import Role
from kv_transfer.ticket import HandoffTicket
from orchestrator.policy.router import Placement, RequestView, WorkerView, place
from orchestrator.request import lifecycle as lc


def decoding() -> lc.Lifecycle:
    life = lc.Lifecycle("r", (1, 2, 3), 10)
    life.handle(lc.Placed("p0", "d0"))
    life.handle(lc.LegOutput("r/1", (4,), "length", ticket("p0")))
    life.handle(lc.LegOutput("r/2", (5, 6)))
    return life


def ticket(source_id: str) -> HandoffTicket:
    return HandoffTicket(f"{source_id}#1/x", source_id, f"{source_id}#1", 3, 1, 20.0, "{}")


def test_a_move_exports_at_the_source_and_goes_on_at_the_target() -> None:
    life = decoding()
    abort, free, start = life.handle(lc.Moved("d1"))
    assert (abort, free) == (lc.AbortLeg("r/2", "d0"), lc.FreeReservation("d0"))
    assert isinstance(start, lc.StartLeg)
    assert (start.worker_id, start.max_tokens, start.export) == ("d0", 1, True)
    assert start.token_ids == (1, 2, 3, 4, 5, 6)
    life.validate()
    assert life.handle(lc.LegOutput("r/2", (7,))) == []  # said by the leg that was given up
    sent, going_on = life.handle(lc.LegOutput("r/3", (7,), "length", ticket("d0")))
    assert sent == lc.SendTokens((7,))
    assert isinstance(going_on, lc.StartLeg)
    assert (going_on.worker_id, going_on.generated_tokens, going_on.max_tokens) == ("d1", 4, 6)
    life.validate()


def test_a_move_that_comes_too_late_gives_its_reservation_back() -> None:
    life = lc.Lifecycle("r", (1,), 10)
    assert life.handle(lc.Moved("d1")) == [lc.FreeReservation("d1")]
    assert decoding().handle(lc.Moved("d0")) == []


def test_a_source_that_dies_in_a_move_leads_to_a_new_prefill() -> None:
    life = decoding()
    life.handle(lc.Moved("d1"))
    assert life.handle(lc.WorkerLost("d0")) == [lc.FreeReservation("d1"), lc.AskPlacement(frozenset({"d0"}))]
    assert isinstance(life.handle(lc.LegFailed("r/3", WorkerDied("late"))), list)
    life.validate()


def test_the_only_worker_of_a_role_is_used_though_it_failed_before() -> None:
    views = [WorkerView(name, role, 100, 100) for name, role in (("p0", Role.PREFILL), ("d0", Role.DECODE))]
    request = RequestView(16, 16, 16, {})
    assert place(request, views, avoid=frozenset({"p0"})) == Placement("p0", "d0", 2)
    assert place(request, views, avoid=frozenset({"d0"})) == Placement("p0", "d0", 2)
