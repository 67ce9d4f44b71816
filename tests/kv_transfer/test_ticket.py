from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import TicketRefused
from kv_transfer.ticket import HandoffTicket, TicketGuard, issue


def params(**changes: Any) -> dict[str, Any]:
    """As vLLM's NIXL connector writes them."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [[0, 1]],
        "remote_engine_id": "inc-1",
        "remote_request_id": "r/1-abc",
        "remote_host": "127.0.0.1",
        "remote_port": 5600,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": 40,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "read",
        **changes,
    }


def make(given: Any, deadline_s: float = 10.0) -> HandoffTicket:
    return issue(given, source_id="p0", incarnation="inc-1", block_size_tokens=32, deadline_s=deadline_s)


def test_good_parameters_go_through_unchanged() -> None:
    ticket = make(params(remote_block_ids=([3, 4], [5, 6])))
    assert ticket.params == params(remote_block_ids=[[3, 4], [5, 6]])
    assert (ticket.num_tokens, ticket.num_blocks, ticket.ticket_id) == (40, 2, "inc-1/r/1-abc")


@pytest.mark.parametrize(
    "changes",
    [
        {"remote_engine_id": "inc-0"},
        {"do_remote_prefill": False},
        {"remote_block_ids": []},
        {"remote_block_ids": [1, 2]},
        {"remote_block_ids": ["ab"]},
        {"remote_block_ids": [[1]]},
        {"remote_block_ids": [[1, -1]]},
        {"remote_block_ids": [[1, True]]},
        {"remote_num_tokens": 0},
        {"remote_num_tokens": True},
        {"remote_num_tokens": 65},
        {"remote_port": 0},
        {"remote_port": 65536},
        {"tp_size": 0},
        {"remote_request_id": ""},
        {"remote_request_id": "\ud800"},
        {"remote_host": ""},
        {"surprise": 1},
        {"dcp_size": "1"},
    ],
)
def test_what_could_harm_decode_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TicketRefused):
        make(params(**changes))


@pytest.mark.parametrize("given", [None, {}, [], [1], "text", 7])
def test_no_parameters_make_no_ticket(given: Any) -> None:
    with pytest.raises(TicketRefused):
        make(given)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from([*params(), "other"]), values, max_size=4), st.sets(st.sampled_from([*params()]))
)
def test_mutated_parameters_are_refused_or_harmless(changes: dict[str, Any], dropped: set[str]) -> None:
    mutated = {key: value for key, value in params(**changes).items() if key not in dropped or key in changes}
    try:
        ticket = make(mutated)
    except TicketRefused:
        return
    assert ticket.incarnation == mutated["remote_engine_id"]
    assert ticket.num_tokens <= 32 * ticket.num_blocks
    ticket.params_json.encode()
    ticket.ticket_id.encode()
    assert json.loads(ticket.params_json).keys() == mutated.keys()


def guard() -> TicketGuard:
    made = TicketGuard()
    made.worker_up("p0", "inc-1")
    return made


def test_a_ticket_is_good_once() -> None:
    held = guard()
    assert held.redeem(make(params()), now_s=1.0) == params()
    with pytest.raises(TicketRefused, match="used before"):
        held.redeem(make(params()), now_s=1.0)


@pytest.mark.parametrize("now_s", [10.0, 11.0, float("nan")])
def test_past_its_deadline_it_is_refused(now_s: float) -> None:
    with pytest.raises(TicketRefused, match="deadline"):
        guard().redeem(make(params()), now_s=now_s)


def test_another_incarnation_or_a_lost_worker_refuses_it() -> None:
    held = guard()
    held.worker_up("p0", "inc-2")
    with pytest.raises(TicketRefused, match="gone"):
        held.redeem(make(params()), now_s=1.0)
    held.worker_down("p0")
    with pytest.raises(TicketRefused, match="gone"):
        held.redeem(make(params()), now_s=1.0)


steps = st.one_of(
    st.tuples(st.just("redeem"), st.integers(0, 4)),
    st.tuples(st.just("up"), st.integers(0, 2)),
    st.tuples(st.just("down"), st.just(0)),
    st.tuples(st.just("later"), st.integers(1, 4)),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(steps, max_size=40))
def test_in_any_interleaving_a_ticket_is_redeemed_at_most_once(plan: list[tuple[str, int]]) -> None:
    held, now_s, alive, uses = TicketGuard(), 0.0, "", [0] * 5
    issued = [
        issue(
            params(remote_request_id=str(index), remote_engine_id=f"inc-{index % 3}"),
            source_id="p0",
            incarnation=f"inc-{index % 3}",
            block_size_tokens=32,
            deadline_s=4.0 + index,
        )
        for index in range(5)
    ]
    for step, value in plan:
        match step:
            case "up":
                alive = f"inc-{value}"
                held.worker_up("p0", alive)
            case "down":
                alive = ""
                held.worker_down("p0")
            case "later":
                now_s += value
            case "redeem":
                good = uses[value] == 0 and alive == issued[value].incarnation and now_s < issued[value].deadline_s
                try:
                    held.redeem(issued[value], now_s=now_s)
                    uses[value] += 1
                    assert good
                except TicketRefused:
                    assert not good
    assert max(uses) <= 1
