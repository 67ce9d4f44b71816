"""Legs that a controller runs on workers itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.errors import EngineFailed, TicketRefused, TransferTimeout
from tests.fakes.engine import continuation
from tests.fakes.live_cluster import Cluster, cluster_of, eventually
from workers import legs as legs_module
from workers.legs import Legs

PROMPT = list(range(65, 105))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with cluster_of("prefill-0", "decode-0") as made:
        yield made


@pytest.fixture
async def legs(cluster: Cluster) -> AsyncIterator[Legs]:
    made = Legs({worker_id: worker.member for worker_id, worker in cluster.workers.items()})
    yield made
    await made.close()


async def test_a_leg_returns_all_its_tokens_as_one(legs: Legs) -> None:
    output = await legs.run("decode-0", PROMPT, max_tokens=9, logprobs=2)
    assert list(output.token_ids) == continuation(PROMPT, 9)
    assert len(output.logprobs) == 9
    assert output.finish_reason == "length"


async def test_a_pair_hands_over_what_prefill_kept(cluster: Cluster, legs: Legs) -> None:
    first = await legs.run("prefill-0", PROMPT, export=True)
    ticket = legs.ticket("prefill-0", first)
    rest = await legs.run("decode-0", [*PROMPT, *first.token_ids], max_tokens=5, ticket=ticket)
    assert [*first.token_ids, *rest.token_ids] == continuation(PROMPT, 6)
    await eventually(lambda: not cluster.engine("prefill-0").leases)


async def test_a_leg_that_exported_nothing_makes_no_ticket(legs: Legs) -> None:
    output = await legs.run("prefill-0", PROMPT)
    with pytest.raises(TicketRefused, match="no transfer parameters"):
        legs.ticket("prefill-0", output)


async def test_a_failed_leg_says_where_and_why(cluster: Cluster, legs: Legs) -> None:
    cluster.engine("decode-0").fail_next = EngineFailed("out of order")
    with pytest.raises(EngineFailed, match="out of order") as raised:
        await legs.run("decode-0", PROMPT)
    assert "decode-0" in str(raised.value)


async def test_legs_of_two_callers_and_one_after_the_other_have_names_of_their_own(
    cluster: Cluster, legs: Legs
) -> None:
    other = Legs(legs.members)
    try:
        await asyncio.gather(*(each.run("decode-0", PROMPT) for each in (legs, legs, other)))
    finally:
        await other.close()
    names = [leg.leg_id for leg in cluster.engine("decode-0").started]
    assert len(set(names)) == 3


async def test_a_leg_without_an_answer_is_aborted(
    cluster: Cluster, legs: Legs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legs_module, "LEG_TIMEOUT_S", 0.05)
    cluster.engine("decode-0").hold(2)  # its deadline passes while it waits
    with pytest.raises(TransferTimeout, match="no answer"):
        await legs.run("decode-0", PROMPT, max_tokens=4)
    await eventually(lambda: cluster.engine("decode-0").used_blocks == 0, "the leg is ended")
