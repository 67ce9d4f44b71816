from __future__ import annotations

import pytest

from baton.internal.v1 import worker_pb2
from cluster.errors import EngineFailed, WorkerDraining
from prefill_workers.prefill_legs import PrefillLegs
from tests.fakes.engine import FakeEngine, continuation
from tests.fakes.legs import Bench

PROMPT = list(range(65, 140))


@pytest.fixture
async def bench() -> Bench:
    engine = FakeEngine()
    await engine.start()
    return Bench(engine, PrefillLegs())


async def test_a_prompt_is_read_and_its_kv_kept_until_it_is_read(bench: Bench) -> None:
    assert await bench.run(PROMPT, max_tokens=1, export=True) == continuation(PROMPT, 1)
    (lease,) = bench.engine.leases.values()
    assert list(lease.tokens) == PROMPT
    assert bench.ticket().num_tokens == len(PROMPT)


async def test_a_draining_worker_reads_no_new_prompt(bench: Bench) -> None:
    bench.draining = True
    with pytest.raises(WorkerDraining):
        await bench.run(PROMPT, max_tokens=1, export=True)
    assert not bench.engine.started


async def test_a_leg_aborted_before_the_engine_heard_of_it_never_gets_there(bench: Bench) -> None:
    leg = bench.leg(PROMPT, max_tokens=1, export=True)
    await leg.abort()
    await bench.kind.run(leg)
    assert [output.finish_reason for output in bench.outputs] == ["abort"]
    assert not bench.engine.started
    assert not bench.engine.leases


async def test_a_failure_of_the_engine_is_the_legs(bench: Bench) -> None:
    bench.engine.fail_next = EngineFailed("out of order")
    with pytest.raises(EngineFailed, match="out of order"):
        await bench.run(PROMPT, max_tokens=1, export=True)
    assert not bench.outputs


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({"export": True}, True),
        ({}, False),
        ({"export": True, "moves_away": True}, False),
        ({"export": True, "ticket": worker_pb2.Ticket(ticket_id="t")}, False),
        ({"ticket": worker_pb2.Ticket(ticket_id="t")}, False),
    ],
)
def test_only_a_leg_that_exports_what_it_computes_here_is_a_prefill_leg(fields: dict[str, object], takes: bool) -> None:
    assert PrefillLegs().takes(worker_pb2.SubmitLeg(**fields)) is takes
