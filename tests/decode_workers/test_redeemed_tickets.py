from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.internal.v1 import worker_pb2
from cluster.errors import TicketRefused
from decode_workers import redeemed_tickets
from decode_workers.redeemed_tickets import RedeemedTickets


def ticket(name: str, *, expires_in_s: float = 9.0) -> worker_pb2.Ticket:
    return worker_pb2.Ticket(ticket_id=name, expires_in_s=expires_in_s, params_json=json.dumps({"of": name}))


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([-1.0, 0.0, 0.1, 9.0]))))
def test_each_ticket_is_redeemed_once_and_before_its_deadline(offers: list[tuple[str, float]]) -> None:
    tickets, used = RedeemedTickets(), set()
    for name, expires_in_s in offers:
        if expires_in_s <= 0 or name in used:
            with pytest.raises(TicketRefused, match="past its deadline" if expires_in_s <= 0 else "used before"):
                tickets.redeem(ticket(name, expires_in_s=expires_in_s))
        else:
            assert tickets.redeem(ticket(name, expires_in_s=expires_in_s)) == {"of": name}
            used.add(name)


def test_the_oldest_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redeemed_tickets, "REMEMBERED_TICKETS", 2)
    tickets = RedeemedTickets()
    for name in "abc":
        tickets.redeem(ticket(name))
    for name in "bc":
        with pytest.raises(TicketRefused, match="used before"):
            tickets.redeem(ticket(name))
    tickets.redeem(ticket("a"))


def test_a_malformed_ticket_is_used_up_by_the_attempt() -> None:
    tickets = RedeemedTickets()
    broken = worker_pb2.Ticket(ticket_id="x", expires_in_s=9, params_json="{")
    with pytest.raises(json.JSONDecodeError):
        tickets.redeem(broken)
    with pytest.raises(TicketRefused, match="used before"):
        tickets.redeem(broken)
