"""A run alone: it gets workers from an owner and legs from a fleet, and reports what it needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from baton.internal.v1 import registry_pb2, worker_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import NoReadyWorker, TicketRefused, WorkerDied
from kv_transfer.ticket import HandoffTicket
from orchestrator.gateway.choice_figures import ChoiceFigures
from orchestrator.gateway.choice_output import ChoiceOutput
from orchestrator.gateway.choice_run import ChoiceRun
from orchestrator.gateway.metrics import ModelMetrics
from orchestrator.gateway.pairs import Pairs
from orchestrator.gateway.siblings import PrefixSharing, SharedPrompt, Sibling
from orchestrator.request.lifecycle import StartLeg
from orchestrator.request.prepare import PreparedRequest
from tests.fakes.gateway_parts import FRONT, SPEC, prepared

Handler = Callable[[worker_pb2.LegOutput], None]


class Fleet:
    """Starts legs on paper."""

    def __init__(self) -> None:
        self.pairs = Pairs()
        self.legs: list[tuple[StartLeg, worker_pb2.SubmitLeg, Handler]] = []
        self.done: list[tuple[str, str]] = []
        self.refuse: Exception | None = None

    def start_leg(
        self, action: StartLeg, message: Any, handler: Handler, hashes: Sequence[int], on_token: Callable[[int], None]
    ) -> None:
        if self.refuse is not None:
            error, self.refuse = self.refuse, None
            raise error
        self.legs.append((action, message, handler))
        self.on_token = on_token

    def abort_leg(self, leg_id: str, worker_id: str) -> None:
        self.done.append(("abort", worker_id))

    def issue_ticket(self, worker_id: str, params_json: str, now_s: float) -> HandoffTicket:
        if not params_json:
            raise TicketRefused("nothing")
        return HandoffTicket(params_json, worker_id, "i", 64, 2, now_s + 20, "{}")

    def release_ticket(self, worker_id: str, ticket: HandoffTicket) -> None:
        self.done.append(("release", ticket.ticket_id))

    def free(self, request_id: str, worker_id: str) -> None:
        self.done.append(("free", worker_id))

    def usd_per_request_s(self, worker_id: str) -> float:
        return 1.0

    def say(self, *token_ids: int, **fields: Any) -> None:
        """The newest leg makes tokens; a single one with nothing else to it comes as in a step."""
        action, _, handler = self.legs[-1]
        if len(token_ids) == 1 and not fields:
            self.on_token(*token_ids)
            return
        handler(worker_pb2.LegOutput(leg_id=action.leg_id, token_ids=token_ids, **fields))


class Owner:
    """Gives the same workers each time, unless there are none."""

    def __init__(self) -> None:
        self.asked: list[frozenset[str]] = []
        self.over_count = 0
        self.empty = False

    def needs_workers(self, run: ChoiceRun, avoid: frozenset[str]) -> None:
        self.asked.append(avoid)
        if self.empty:
            raise NoReadyWorker("none")
        run.placed("prefill-0", "decode-0")

    def over(self, run: ChoiceRun) -> None:
        self.over_count += 1


class Bench:
    """One run, whose events are taken one by one."""

    def __init__(self, request: PreparedRequest | None = None) -> None:
        self.fleet, self.owner = Fleet(), Owner()
        self.metrics = ModelMetrics()
        request = request or prepared(64, 6)
        output = ChoiceOutput(request, 0, FRONT, SPEC.model.reasoning, lambda _: False)
        figures = ChoiceFigures(self.metrics, 0, 0.0, 0.0)
        self.sibling = Sibling(SharedPrompt("", 1, 32, PrefixSharing()))
        self.run = ChoiceRun(request, 0, 7, [], 2, output, self.fleet, self.owner, figures, self.sibling)
        self.stream = self.run.run()

    async def event(self) -> str:
        self.last = await anext(self.stream)
        return str(self.last.WhichOneof("event"))

    async def decoding(self) -> None:
        """As far as the first token of decode."""
        assert await self.event() == "admitted"
        first = await self._after(lambda: self.fleet.say(65, finish_reason="length", transfer_params_json="t1"))
        assert first == ["first_token", "delta"]
        assert await self._after(lambda: self.fleet.say(66)) == ["delta"]

    async def _after(self, act: Callable[[], None]) -> list[str]:
        """Let the run go on until it waits, act, and return the events until it waits again."""
        events: list[str] = []
        task = asyncio.ensure_future(self.event())
        await asyncio.sleep(0)
        act()
        events.append(await task)
        if events == ["first_token"]:
            events.append(await self.event())
        return events


async def test_from_prefill_to_the_last_token() -> None:
    bench = Bench()
    await bench.decoding()
    (prefill, _, _), (decode, message, _) = bench.fleet.legs
    assert (prefill.worker_id, prefill.export) == ("prefill-0", True)
    assert (decode.worker_id, decode.generated_tokens, decode.max_tokens) == ("decode-0", 1, 5)
    assert message.max_tokens == 5
    assert bench.run.sibling.settled.is_set()
    assert await bench._after(lambda: bench.fleet.say(67, 68, 69, 70, finish_reason="length")) == ["delta"]
    assert list(bench.last.delta.token_ids) == [67, 68, 69, 70]
    assert await bench.event() == "delta"  # the end
    assert bench.last.delta.finish_reason == pb.FINISH_REASON_LENGTH
    with pytest.raises(StopAsyncIteration):
        await bench.event()
    assert bench.fleet.done == [("free", "decode-0")]
    assert bench.owner.over_count == 1
    usage = bench.run.summary.usage
    assert (usage.prompt_tokens, usage.answer_tokens) == (64, 6)
    assert bench.run.cost_usd > 0


async def test_a_failed_leg_asks_its_owner_again_and_goes_on_from_the_ledger() -> None:
    bench = Bench()
    await bench.decoding()
    failure = {"finish_reason": "error", "error": "broke", "error_kind": "EngineFailed"}
    assert await bench._after(lambda: bench.fleet.say(67, **failure)) == ["delta"]
    assert await bench.event() == "admitted"
    assert bench.owner.asked == [frozenset(), frozenset({"decode-0"})]
    await bench._after(lambda: bench.fleet.say(68, finish_reason="length", transfer_params_json="t2"))
    again = bench.fleet.legs[2][0]
    assert again.token_ids[-3:] == (65, 66, 67)
    await bench.stream.aclose()
    assert bench.run.summary.retries == 1


@pytest.mark.parametrize("error", [WorkerDied("gone"), TicketRefused("used before")])
async def test_a_leg_that_cannot_start_is_a_failure_of_its_own(error: Exception) -> None:
    bench = Bench()
    bench.fleet.refuse = error
    assert [await bench.event(), await bench.event()] == ["admitted", "admitted"]
    assert len(bench.owner.asked) == 2
    await bench.stream.aclose()


async def test_prefill_without_a_ticket_is_retried_until_the_budget_is_spent() -> None:
    bench = Bench()
    with pytest.raises(TicketRefused):
        for _ in range(20):
            await bench._after(lambda: bench.fleet.say(65, finish_reason="length") if bench.fleet.legs else None)
    assert len(bench.fleet.legs) == 3
    assert bench.owner.over_count == 1


async def test_one_that_is_not_admitted_leaves_nothing() -> None:
    bench = Bench()
    bench.owner.empty = True
    with pytest.raises(NoReadyWorker):
        await bench.event()
    assert bench.fleet.done == []
    assert bench.owner.over_count == 1


async def test_closing_gives_everything_back_and_a_late_ticket_too() -> None:
    bench = Bench()
    assert await bench.event() == "admitted"
    task = asyncio.ensure_future(bench.event())
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert bench.fleet.done == [("abort", "prefill-0"), ("free", "decode-0")]
    bench.fleet.say(65, finish_reason="length", transfer_params_json="late")
    assert bench.fleet.done[2:] == [("release", "late")]


async def test_preempted_it_takes_in_what_it_has_first_and_asks_for_workers() -> None:
    bench = Bench(prepared(64, 50))
    await bench.decoding()
    bench.fleet.say(67)
    bench.fleet.say(68)
    bench.owner.needs_workers = lambda run, avoid: bench.owner.asked.append(avoid)  # type: ignore[method-assign]
    assert bench.run.preempt()
    assert bench.run.life.output_ids == [65, 66, 67, 68]
    assert (bench.run.waits_for_headroom, bench.run.preempted) == (True, True)
    assert bench.fleet.done == [("abort", "decode-0"), ("free", "decode-0")]
    assert not bench.run.preempt()  # it has nothing to give up
    bench.run.placed(None, "decode-1")
    assert not bench.run.waits_for_headroom
    assert await bench.event() == "delta"
    assert list(bench.last.delta.token_ids) == [67, 68]
    await bench.stream.aclose()


async def test_a_handoff_counts_on_its_pair() -> None:
    bench = Bench()
    bench.fleet.pairs.update([registry_pb2.Pair(prefill="prefill-0", decode="decode-0", transport="tcp")])
    await bench.decoding()
    (row,) = bench.fleet.pairs.rows()
    assert row.handoffs == 1
    assert bench.run.summary.handoff.transport == "tcp"
    await bench.stream.aclose()
