from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.internal.v1 import worker_pb2
from baton.v1.inference_pb2 import Sampling
from cluster.errors import EngineFailed, InvalidRequest, TicketRefused, WorkerDraining
from decode_workers.decode_legs import IMPORT_GRACE_S, DecodeLegs
from prefill_workers.prefill_legs import PrefillLegs
from tests.fakes.engine import FakeEngine, Network, continuation
from tests.fakes.legs import Bench

PROMPT = list(range(65, 140))


class Pair:
    """A prefill and two decode engines on one network."""

    def __init__(self) -> None:
        network = Network()
        engines = [FakeEngine(network) for _ in range(3)]
        self.prefill = Bench(engines[0], PrefillLegs())
        self.decode, self.other = (Bench(engine, DecodeLegs(engine)) for engine in engines[1:])

    async def start(self) -> Pair:
        for bench in (self.prefill, self.decode, self.other):
            await bench.engine.start()
        return self

    async def exported(self) -> tuple[list[int], worker_pb2.Ticket]:
        """The ledger after prefill, and the ticket for its KV."""
        first = await self.prefill.run(PROMPT, max_tokens=1, export=True)
        return [*PROMPT, *first], self.prefill.ticket()

    @property
    def leases(self) -> int:
        return sum(len(bench.engine.leases) for bench in (self.prefill, self.decode, self.other))


@pytest.fixture
async def pair() -> Pair:
    return await Pair().start()


async def test_a_ticket_is_redeemed_and_decode_goes_on_after_prefills_token(pair: Pair) -> None:
    ledger, ticket = await pair.exported()
    assert await pair.decode.run(ledger, ticket=ticket, max_tokens=9) == continuation(PROMPT, 10)[1:]
    assert pair.leases == 0
    assert pair.decode.outputs[0].transfer.bytes > 0


async def test_what_is_read_is_the_tickets_kv_not_the_prompt(pair: Pair) -> None:
    """So the test above cannot pass by prefilling again."""
    ledger, ticket = await pair.exported()
    wrong = [66] * len(PROMPT) + ledger[-1:]
    assert await pair.decode.run(wrong, ticket=ticket, max_tokens=9) == continuation(PROMPT, 10)[1:]


async def test_a_ticket_used_before_reads_nothing(pair: Pair) -> None:
    ledger, ticket = await pair.exported()
    await pair.decode.run(ledger, ticket=ticket)
    with pytest.raises(TicketRefused):
        await pair.decode.run(ledger, ticket=ticket)
    assert len(pair.decode.engine.started) == 1


async def test_without_a_ticket_the_ledger_is_prefilled_here(pair: Pair) -> None:
    assert await pair.decode.run(PROMPT, max_tokens=9) == continuation(PROMPT, 9)


@given(moved_after=st.integers(1, 40), tokens=st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_a_request_moves_between_decode_workers_with_its_tokens(moved_after: int, tokens: int) -> None:
    async def moved() -> tuple[list[int], int]:
        pair = await Pair().start()
        ledger, ticket = await pair.exported()
        ledger += await pair.decode.run(ledger, ticket=ticket, max_tokens=moved_after)
        pair.decode.draining = True  # a leg that moves a request away is taken all the same
        ledger += await pair.decode.run(ledger, max_tokens=1, export=True, moves_away=True)
        ledger += await pair.other.run(ledger, ticket=pair.decode.ticket(), max_tokens=tokens)
        return ledger, pair.leases

    ledger, leases = asyncio.run(moved())
    assert ledger == PROMPT + continuation(PROMPT, 1 + moved_after + 1 + tokens)
    assert leases == 0


async def test_a_leg_may_read_and_export(pair: Pair) -> None:
    ledger, ticket = await pair.exported()
    ledger += await pair.decode.run(ledger, ticket=ticket, max_tokens=3, export=True)
    assert pair.prefill.engine.leases == {}
    assert await pair.other.run(ledger, ticket=pair.decode.ticket()) == continuation(PROMPT, 8)[4:]


@pytest.mark.parametrize("why", ["draining", "sampling"])
async def test_a_leg_refused_before_the_read_gives_the_blocks_back(pair: Pair, why: str) -> None:
    ledger, ticket = await pair.exported()
    pair.decode.draining = why == "draining"
    sampling = Sampling(temperature=-1.0 if why == "sampling" else 0.0)
    with pytest.raises(WorkerDraining if why == "draining" else InvalidRequest):
        await pair.decode.run(ledger, ticket=ticket, sampling=sampling)
    assert pair.leases == 0
    with pytest.raises(TicketRefused):  # used up all the same
        await pair.decode.run(ledger, ticket=ticket)


async def test_a_leg_aborted_before_the_engine_heard_of_it_gives_the_blocks_back(pair: Pair) -> None:
    ledger, ticket = await pair.exported()
    leg = pair.decode.leg(ledger, ticket=ticket)
    await leg.abort()
    await pair.decode.kind.run(leg)
    assert [output.finish_reason for output in pair.decode.outputs] == ["abort"]
    assert not pair.decode.engine.started
    assert pair.leases == 0


async def test_an_abort_that_the_engine_missed_is_repeated(pair: Pair) -> None:
    """It came while the engine took the leg in; after the first output the engine knows the leg."""
    leg = pair.decode.leg(PROMPT, max_tokens=400)
    pair.decode.engine.hold(1)
    task = asyncio.create_task(pair.decode.kind.run(leg))
    await pair.decode.engine.holds[1].reached.wait()  # one token is out; the next waits
    leg.aborted = True
    pair.decode.engine.holds.pop(1).open()
    await asyncio.wait_for(task, 20)
    assert pair.decode.outputs[-1].finish_reason == "abort"
    assert len([token for output in pair.decode.outputs for token in output.token_ids]) < 400
    assert pair.decode.engine.used_blocks == 0


async def test_a_failure_after_the_read_gives_nothing_back_twice(pair: Pair) -> None:
    ledger, ticket = await pair.exported()
    released: list[object] = []
    pair.decode.engine.release = lambda params: released.append(params)  # type: ignore[assignment, return-value]
    pair.decode.engine.fail_next, pair.decode.engine.fail_after = EngineFailed("out of order"), 2
    with pytest.raises(EngineFailed):
        await pair.decode.run(ledger, ticket=ticket)
    assert len(pair.decode.outputs) == 1
    assert not released


async def test_blocks_that_cannot_be_given_back_do_not_hide_why_the_leg_was_refused(pair: Pair) -> None:
    async def unreachable(_: object) -> None:
        raise ConnectionError("the source is gone")

    ledger, ticket = await pair.exported()
    pair.decode.engine.release = unreachable  # type: ignore[method-assign]
    pair.decode.draining = True
    with pytest.raises(WorkerDraining):
        await pair.decode.run(ledger, ticket=ticket)


async def test_a_released_ticket_frees_its_blocks_and_is_used_up(pair: Pair) -> None:
    ledger, ticket = await pair.exported()
    await pair.decode.kind.release(ticket)
    assert pair.leases == 0
    with pytest.raises(TicketRefused):
        await pair.decode.run(ledger, ticket=ticket)


async def test_an_engine_that_waits_for_kv_is_not_hung_before_the_grace_is_over(pair: Pair) -> None:
    marks: list[tuple[str, float]] = []

    class Watched(type(pair.decode.health)):  # type: ignore[misc]
        def must_step(self, leg_id: str, from_s: float) -> None:
            marks.append((leg_id, from_s))

    pair.decode.health = Watched(30.0)
    ledger, ticket = await pair.exported()
    await pair.decode.run(ledger, ticket=ticket, max_tokens=1)
    await pair.decode.run(PROMPT, max_tokens=1)
    imports, first, plain, last = (from_s for _, from_s in marks)
    assert imports - first == pytest.approx(IMPORT_GRACE_S)  # from its first output on it counts as work at once
    assert plain == last
