"""The fleet alone, over links that keep what they were given."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from baton.internal.v1 import registry_pb2, worker_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import TicketRefused, WorkerDied
from cluster.spec.objective_settings import CostSettings
from orchestrator.gateway import fleet as fleets
from orchestrator.gateway.fleet import Fleet
from orchestrator.policy.router import Placement
from orchestrator.request.lifecycle import StartLeg
from tests.fakes.gateway_parts import BLOCK, FakeLink


class Owner:
    """Keeps the fleet's reports."""

    def __init__(self) -> None:
        self.reports: list[str] = []

    def fleet_changed(self) -> None:
        self.reports.append("changed")

    def kv_freed(self) -> None:
        self.reports.append("freed")

    def prompt_read(self) -> None:
        self.reports.append("read")

    def worker_lost(self, worker_id: str) -> None:
        self.reports.append(f"lost {worker_id}")


class Bench:
    """A fleet of prefill-0 and decode-0 that have both reported."""

    def __init__(self) -> None:
        self.owner = Owner()
        self.fleet = Fleet(self.owner, cost=CostSettings(usd_per_cpu_hour=3600))
        self.publish("prefill-0", "decode-0")
        for worker_id in ("prefill-0", "decode-0"):
            self.load(worker_id)
        self.owner.reports.clear()

    def publish(self, *worker_ids: str, incarnation: str = "i", **fields: Any) -> None:
        members = [
            registry_pb2.Member(
                worker_id=each, role=each.split("-")[0], incarnation=f"{incarnation}-{each}", total_blocks=100,
                block_size_tokens=BLOCK, cpus=2, **{"state": "ready", **fields},
            )
            for each in worker_ids
        ]  # fmt: skip
        self.fleet.update(members, [])

    def link(self, worker_id: str) -> FakeLink:
        return cast(FakeLink, self.fleet.workers[worker_id].link)

    def load(self, worker_id: str, **fields: Any) -> None:
        incarnation = self.fleet.workers[worker_id].member.incarnation
        load = worker_pb2.WorkerLoad(worker_id=worker_id, incarnation=incarnation, total_blocks=100, **fields)
        self.link(worker_id).on_load(load)

    def start(self, leg_id: str, worker_id: str, ticket: Any = None) -> list[worker_pb2.LegOutput]:
        """Start a leg; its outputs will be in the list."""
        outputs: list[worker_pb2.LegOutput] = []
        action = StartLeg(leg_id, worker_id, (1, 2), 0, 8, ticket=ticket)
        self.fleet.start_leg(action, worker_pb2.SubmitLeg(leg_id=leg_id), outputs.append, [1, 2], lambda token_id: None)
        return outputs

    def say(self, worker_id: str, leg_id: str, **fields: Any) -> None:
        self.link(worker_id).started[leg_id][1](worker_pb2.LegOutput(leg_id=leg_id, **fields))

    def ticket(self, worker_id: str = "prefill-0", name: str = "r") -> Any:
        params = {
            "do_remote_prefill": True, "remote_block_ids": [[1]], "remote_engine_id": f"i-{worker_id}",
            "remote_request_id": name, "remote_host": "127.0.0.1", "remote_port": 1, "tp_size": 1,
            "remote_num_tokens": 2,
        }  # fmt: skip
        return self.fleet.issue_ticket(worker_id, json.dumps(params), 1e6)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(fleets, "WorkerLink", FakeLink)
    made = Bench()
    made.fleet.drop_silent = lambda _: None  # type: ignore[method-assign]  # links say nothing by themselves here
    yield made
    await made.fleet.close()


async def test_a_reservation_is_seen_by_the_router_until_it_is_freed(bench: Bench) -> None:
    bench.fleet.reserve_placement("r", Placement("prefill-0", "decode-0", 7), 40)
    prefill, decode = bench.fleet.views()
    assert (decode.headroom_blocks, prefill.queued_tokens) == (93, 40)
    bench.fleet.free("r", "decode-0")
    prefill, decode = bench.fleet.views()
    assert (decode.headroom_blocks, prefill.queued_tokens) == (100, 0)
    assert bench.owner.reports == ["freed"]


async def test_what_is_not_sent_yet_is_seen_beside_blocks_that_a_stale_load_still_counts(bench: Bench) -> None:
    bench.load("decode-0", used_blocks=40)  # of a leg that has ended since
    bench.fleet.reserve_placement("r", Placement("prefill-0", "decode-0", 7), 40)
    decode = bench.fleet.views()[1]
    assert (decode.running_requests, decode.reserved_blocks, decode.headroom_blocks) == (0, 7, 53)
    bench.start("r/2", "decode-0")
    decode = bench.fleet.views()[1]
    assert (decode.running_requests, decode.headroom_blocks) == (1, 60)  # its blocks are in use from here on
    assert bench.fleet.freed_by("decode-0", "r", 3) == 3
    bench.fleet.reserve_placement("s", Placement("prefill-0", "decode-0", 5), 40)
    bench.fleet.free("s", "decode-0")
    assert bench.fleet.views()[1].headroom_blocks == 60


async def test_a_worker_that_is_to_prefill_by_itself_runs_the_request_before_its_leg_is_sent(bench: Bench) -> None:
    bench.fleet.reserve_placement("r", Placement(None, "decode-0", 7), 40)
    bench.fleet.reserve_placement("s", Placement(None, "decode-0", 7), 40)
    assert bench.fleet.views()[1].running_requests == 2
    bench.start("r/1", "decode-0")
    assert bench.fleet.views()[1].running_requests == 2
    bench.fleet.free("s", "decode-0")
    assert bench.fleet.views()[1].running_requests == 1


async def test_a_reservation_that_siblings_share_counts_once_and_stays_for_the_last(bench: Bench) -> None:
    decode = bench.fleet.workers["decode-0"]
    for name, prefill_id in (("r", "prefill-0"), ("s", None), ("t", None)):
        bench.fleet.reserve_placement(name, Placement(prefill_id, "decode-0", 7), 40, shared=("prompt", 4))
    assert bench.fleet.views()[1].headroom_blocks == 100 - 4 - 3 * 3
    for name in "rst":
        bench.start(f"{name}/1", "decode-0")
    bench.load("decode-0", used_blocks=13)
    assert (decode.shared_blocks("r"), bench.fleet.freed_by("decode-0", "r", 7)) == (4, 3)
    bench.fleet.free("r", "decode-0")
    bench.fleet.free("s", "decode-0")
    assert decode.reserved == {"prompt": 4, "t": 3}
    assert (decode.shared_blocks("t"), bench.fleet.freed_by("decode-0", "t", 7)) == (0, 7)
    bench.fleet.free("t", "decode-0")
    assert not decode.reserved and not decode.sharers and not decode.unsent


async def test_those_that_lost_a_worker_hear_of_it_before_others_are_placed(bench: Bench) -> None:
    bench.publish("prefill-0")
    assert bench.owner.reports == ["lost decode-0"]
    await asyncio.sleep(0)
    assert bench.owner.reports == ["lost decode-0", "changed"]


async def test_a_legs_first_token_and_its_end_are_noted_before_its_run_has_them(bench: Bench) -> None:
    bench.fleet.reserve_placement("r", Placement("prefill-0", "decode-0", 7), 40)
    outputs = bench.start("r/1", "prefill-0")
    bench.say("prefill-0", "r/1", token_ids=[5])
    assert bench.owner.reports == ["read"]
    bench.say("prefill-0", "r/1", token_ids=[6])
    assert bench.owner.reports == ["read"]
    assert bench.fleet.workers["prefill-0"].legs == {"r/1"}
    bench.say("prefill-0", "r/1", finish_reason="length")
    assert not bench.fleet.workers["prefill-0"].legs
    assert [list(output.token_ids) for output in outputs] == [[5], [6], []]


async def test_legs_share_the_price_of_their_worker(bench: Bench) -> None:
    assert bench.fleet.usd_per_request_s("decode-0") == 2
    bench.start("a/1", "decode-0")
    bench.start("b/1", "decode-0")
    assert bench.fleet.usd_per_request_s("decode-0") == 1
    bench.fleet.abort_leg("a/1", "decode-0")
    assert bench.link("decode-0").aborted == ["a/1"]
    assert bench.fleet.usd_per_request_s("decode-0") == 2
    assert bench.fleet.usd_per_request_s("nobody") == 0


async def test_a_ticket_is_used_once_and_dies_with_its_engine(bench: Bench) -> None:
    first, second, third = (bench.ticket(name=name) for name in "abc")
    bench.start("r/2", "decode-0", first)
    assert bench.link("decode-0").started["r/2"][0].ticket.ticket_id == first.ticket_id
    with pytest.raises(TicketRefused, match="used before"):
        bench.start("r/3", "decode-0", first)
    bench.fleet.release_ticket("decode-0", second)
    bench.fleet.release_ticket("decode-0", second)
    bench.fleet.release_ticket("decode-0", first)
    assert bench.link("decode-0").released == [second.ticket_id]
    bench.publish("prefill-0", "decode-0", incarnation="new")
    with pytest.raises(TicketRefused, match="gone"):
        bench.start("r/4", "decode-0", third)


@pytest.mark.parametrize(("worker_id", "params"), [("gone-0", "{}"), ("prefill-0", "{"), ("prefill-0", "")])
async def test_what_is_no_ticket_is_refused(bench: Bench, worker_id: str, params: str) -> None:
    with pytest.raises(TicketRefused):
        bench.fleet.issue_ticket(worker_id, params, 0.0)


async def test_a_leg_for_a_worker_that_is_gone_gives_its_ticket_back_through_another(bench: Bench) -> None:
    ticket = bench.ticket()
    with pytest.raises(WorkerDied):
        bench.start("r/2", "decode-9", ticket)
    assert bench.link("decode-0").released == [ticket.ticket_id]


async def test_a_request_holds_blocks_from_its_reservation_until_it_gives_them_back(bench: Bench) -> None:
    assert not bench.fleet.holds("r", "decode-0")
    bench.fleet.reserve("r", "decode-0", 3)
    assert bench.fleet.holds("r", "decode-0")
    assert not bench.fleet.holds("r", "prefill-0")
    assert not bench.fleet.holds("r", "decode-9")
    bench.fleet.free("r", "decode-0")
    assert not bench.fleet.holds("r", "decode-0")


async def test_a_prefill_worker_that_is_yet_to_report_is_no_decode_worker_to_wait_for(bench: Bench) -> None:
    bench.publish("prefill-0", "decode-0", "prefill-1")
    assert bench.fleet.workers["prefill-1"].joins
    assert not bench.fleet.awaits_decode()


async def test_members_come_go_and_return_as_others(bench: Bench) -> None:
    bench.publish("prefill-0", "decode-0", "decode-1")
    assert bench.owner.reports == ["changed"]
    assert [view.accepting for view in bench.fleet.views()] == [True, True, False]  # it has not reported yet
    assert bench.fleet.workers["decode-1"].joins
    assert bench.fleet.awaits_decode()
    bench.load("decode-1")
    assert not bench.fleet.workers["decode-1"].joins
    assert not bench.fleet.awaits_decode()
    assert bench.owner.reports == ["changed", "changed"]
    assert all(view.accepting for view in bench.fleet.views())
    old = bench.link("decode-0")
    bench.publish("prefill-0", "decode-0", incarnation="new")
    await asyncio.sleep(0)
    assert bench.owner.reports[2:] == ["lost prefill-0", "lost decode-0", "lost decode-1", "changed"]
    assert bench.link("decode-0") is not old


async def test_a_load_is_reported_upwards_only_if_somebody_may_act_on_it(bench: Bench) -> None:
    bench.load("decode-0", used_blocks=40)
    assert not bench.owner.reports
    bench.load("decode-0", used_blocks=30)
    assert not bench.owner.reports  # a run that has just ended gives back its reservation first
    await asyncio.sleep(0)
    assert bench.owner.reports == ["changed"]
    bench.load("decode-0", used_blocks=30, draining=True)
    assert bench.owner.reports == ["changed", "changed"]
    assert bench.fleet.to_empty() == ["decode-0"]


async def test_a_hung_engine_loses_its_legs(bench: Bench) -> None:
    bench.load("decode-0", hung=True)
    assert "decode-0" in bench.fleet.workers  # it has none of ours
    bench.start("r/1", "decode-0")
    bench.load("decode-0", hung=True)
    assert bench.owner.reports[-1] == "lost decode-0"
    assert "decode-0" not in bench.fleet.workers


async def test_pairs_keep_their_sums(bench: Bench) -> None:
    pair = registry_pb2.Pair(prefill="prefill-0", decode="decode-0", transport="tcp", refused=True)
    pairs = bench.fleet.pairs
    pairs.count_handoff("prefill-0", "decode-0", pb.HandoffFigures(bytes=10, transfer_s=0.5))
    assert pairs.rows() == []
    pairs.update([pair])
    (row,) = pairs.rows()
    assert (row.handoffs, row.bytes, row.transport, row.refused) == (1, 10, "tcp", True)
    assert pairs.refused() == {"decode-0": frozenset({"prefill-0"})}
    assert (pairs.transport("prefill-0", "decode-0"), pairs.transport("prefill-0", "decode-1")) == ("tcp", "")
    assert [view.refuses for view in bench.fleet.views()] == [frozenset(), frozenset({"prefill-0"})]
