"""The choices of a request over real workers and fake engines: one prefill, one transfer, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import pytest
from prometheus_client import generate_latest

from orchestrator.gateway.fleet_worker import FleetWorker
from orchestrator.gateway.siblings import PrefixSharing, SharedPrompt, Sibling
from tests.fakes.engine import KV_BYTES_PER_BLOCK
from tests.fakes.live_cluster import Cluster, Reply, ask, cluster_of, eventually, expected, run

CANCELS = int(os.environ.get("BATON_TEST_CANCELS", "300"))
N = 8


def prompt(tokens: int, first: int = 65) -> list[int]:
    return [first, *(65 + index % 26 for index in range(tokens - 1))]


def whole(reply: Reply, ids: list[int], tokens: int, n: int = N) -> None:
    assert reply.token_ids == dict.fromkeys(range(n), expected(ids, tokens))


def handoffs(reply: Reply) -> list[int]:
    """Bytes of the choices that were handed over."""
    assert reply.finished is not None
    return [choice.handoff.bytes for choice in reply.finished.choices if choice.handoff.bytes]


def peak_reserved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows to the most blocks that were reserved on a worker at once."""
    peak, share = [0], FleetWorker.share

    def shared(worker: FleetWorker, request_id: str, name: str, blocks: int) -> None:
        share(worker, request_id, name, blocks)
        peak[0] = max(peak[0], sum(worker.reserved.values()))

    monkeypatch.setattr(FleetWorker, "share", shared)
    return peak


def metric(cluster: Cluster, line: str) -> bool:
    return line in generate_latest(cluster.gateway.metrics.registry).decode().splitlines()


# --- one prefill, one transfer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("isl", [1, 31, 32, 33, 64, 500])
async def test_one_prefill_leg_and_one_transfer_serve_all(isl: int) -> None:
    ids = prompt(isl)
    async with cluster_of("prefill-0", "decode-0", "decode-1", total_blocks=256) as cluster:
        reply = await run(cluster, ask(ids, 12, n=N))
        whole(reply, ids, 12)
        assert len(cluster.engine("prefill-0").started) == 1
        assert handoffs(reply) == [-(-isl // 32) * KV_BYTES_PER_BLOCK]
        legs = cluster.engine("decode-0").started + cluster.engine("decode-1").started
        assert len(legs) == N
        assert sum("do_remote_prefill" in (leg.transfer_params or {}) for leg in legs) == 1
        assert reply.finished is not None
        rest = [choice.usage.cached_tokens for choice in reply.finished.choices[1:]]
        assert rest == [(isl - 1) // 32 * 32] * (N - 1)
        await cluster.idle()


async def test_the_prompt_is_reserved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompt(500)
    async with cluster_of("prefill-0", "decode-0", total_blocks=256) as cluster:
        peak, decode = peak_reserved(monkeypatch), cluster.engine("decode-0")
        hold = decode.hold(5)
        task = asyncio.create_task(run(cluster, ask(ids, 12, n=N)))
        await eventually(lambda: len(decode.started) == N, "all decode")
        hold.open()
        whole(await task, ids, 12)
        assert peak[0] == 15 + N * (16 - 15)
        await cluster.idle()


async def test_siblings_wait_for_decodes_first_token_and_no_longer(pair: Cluster) -> None:
    decode, ids = pair.engine("decode-0"), prompt(70)
    imports, fifth = decode.hold("import"), decode.hold(5)
    task = asyncio.create_task(run(pair, ask(ids, 12, n=4)))
    await asyncio.wait_for(imports.reached.wait(), 20)
    assert len(decode.started) == 1
    imports.open()
    await eventually(lambda: len(decode.started) == 4, "siblings start while the first one decodes")
    fifth.open()
    whole(await task, ids, 12, 4)


async def test_each_choice_has_its_own_seed_and_first_token(pair: Cluster) -> None:
    ids = prompt(70)
    reply = await run(pair, ask(ids, 6, n=3, seed=7, temperature=0.5))
    decode_legs = pair.engine("decode-0").started
    assert [leg.sampling.seed for leg in decode_legs] == [7, 8, 9]
    assert [len(leg.token_ids) for leg in decode_legs] == [70] * 3
    whole(reply, ids, 6, 3)


@pytest.mark.parametrize("workers", [("prefill-0", "decode-0"), ("colocated-0",)])
async def test_where_no_handoff_is_needed_the_prompt_is_computed_once(workers: tuple[str, ...]) -> None:
    ids = prompt(500)
    async with cluster_of(*workers, total_blocks=256) as cluster:
        if len(workers) > 1:  # decode prefills by itself
            cluster.gateway.model.placer._queue._routing.local_prefill_below_tokens = 600
        reply = await run(cluster, ask(ids, 6, n=N))
        whole(reply, ids, 6)
        engine = cluster.engine(workers[-1])
        assert engine.load().prompt_tokens == 500 + (N - 1) * (500 - 480)
        assert not handoffs(reply)
        await cluster.idle()


async def test_what_one_worker_cannot_hold_is_brought_to_another_once() -> None:
    ids = prompt(320)
    async with cluster_of("prefill-0", "decode-0", "decode-1", total_blocks=26) as cluster:
        cluster.gateway.model.forecast._lengths._prior_tokens = 96
        first = cluster.engine("decode-0").hold(90)
        other = cluster.engine("decode-1").hold(90)
        task = asyncio.create_task(run(cluster, ask(ids, 96, n=N)))
        legs = [cluster.engine(name).started for name in ("decode-0", "decode-1")]
        # 9 shared blocks, and 4 for each: four choices on either worker.
        await eventually(lambda: [len(each) for each in legs] == [4, 4], "four on each")
        first.open()
        other.open()
        reply = await task
        whole(reply, ids, 96)
        assert len(cluster.engine("prefill-0").started) == 2
        assert len(handoffs(reply)) == 2
        await cluster.idle()


async def test_choices_that_find_no_headroom_wait_and_follow_on_the_same_worker() -> None:
    ids = prompt(320)
    async with cluster_of("prefill-0", "decode-0", total_blocks=18, queue=0) as cluster:
        reply = await run(cluster, ask(ids, 64, n=N))
        whole(reply, ids, 64)
        assert len(cluster.engine("prefill-0").started) == 1
        assert len(handoffs(reply)) == 1
        await cluster.idle()


async def test_where_no_choice_decodes_all_go_their_own_way(pair: Cluster) -> None:
    ids = prompt(70)
    whole(await run(pair, ask(ids, 1, n=N)), ids, 1)
    assert len(pair.engine("prefill-0").started) == N
    assert not pair.engine("decode-0").started
    await pair.idle()


# --- engines that do not find the prompt ------------------------------------------------------------------------------


async def test_a_missed_prefix_is_counted_and_the_next_request_tries_with_one_choice() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=256) as cluster:
        prefill, decode = cluster.engine("prefill-0"), cluster.engine("decode-0")
        cluster.gateway.model._sharing.works = False
        decode.shares_prefixes = False
        ids = prompt(100)
        whole(await run(cluster, ask(ids, 6, n=N)), ids, 6)
        assert len(prefill.started) == N - 1  # one tried beside the first and computed the prompt
        assert metric(cluster, 'baton_siblings_total{model="fake",result="missed"} 1.0')
        decode.shares_prefixes = True
        ids = prompt(100, first=90)
        whole(await run(cluster, ask(ids, 6, n=N)), ids, 6)
        assert len(prefill.started) == N
        assert metric(cluster, f'baton_siblings_total{{model="fake",result="shared"}} {N - 1}.0')
        await cluster.idle()


# --- failures and cancels ---------------------------------------------------------------------------------------------


async def test_when_the_worker_dies_each_goes_its_own_way() -> None:
    ids = prompt(100)
    async with cluster_of("prefill-0", "decode-0", "decode-1", total_blocks=256) as cluster:
        decode = cluster.engine("decode-0")
        hold = decode.hold(5)
        task = asyncio.create_task(run(cluster, ask(ids, 12, n=4)))
        await eventually(lambda: len(decode.started) == 4, "all decode")
        await asyncio.wait_for(hold.reached.wait(), 20)
        await cluster.kill("decode-0")
        reply = await task
        whole(reply, ids, 12, 4)
        assert reply.finished is not None
        assert [choice.retries for choice in reply.finished.choices] == [1] * 4
        await cluster.idle()


@pytest.mark.parametrize("point", ["import", 0])
async def test_when_the_worker_dies_before_the_prompt_is_there_the_first_one_brings_it_elsewhere(
    point: str | int,
) -> None:
    ids = prompt(100)
    async with cluster_of("prefill-0", "decode-0", "decode-1", total_blocks=256) as cluster:
        hold = cluster.engine("decode-0").hold(point)
        task = asyncio.create_task(run(cluster, ask(ids, 12, n=4)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        await cluster.kill("decode-0")
        whole(await task, ids, 12, 4)
        assert len(cluster.engine("prefill-0").started) == 2
        assert len(cluster.engine("decode-1").started) == 4
        if point == "import":
            cluster.engine("prefill-0").leases.clear()  # as when the lease runs out: its reader died
        await cluster.idle()


async def test_a_first_choice_that_ends_early_strands_nobody() -> None:
    ends = [Sibling(SharedPrompt("p", 100, 32, PrefixSharing())) for _ in range(2)]
    ends[0].placed("prefill-0", "decode-0")
    assert not ends[0].settled.is_set()
    ends[0].over(finished=False)
    assert ends[0].settled.is_set()
    assert not ends[0].prompt.apart
    ends[1].placed("prefill-0", "decode-0")
    ends[1].decodes("decode-0", 0)
    assert ends[1].settled.is_set()
    assert ends[1].prompt.held_on == {"decode-0"}
    ends[1].failed_on(frozenset({"decode-0"}))
    assert not ends[1].prompt.held_on


async def test_cancels_at_random_moments_leave_nothing() -> None:
    draw = random.Random(16)
    async with cluster_of("prefill-0", "decode-0", "decode-1", total_blocks=96, queue=64) as cluster:

        async def one(number: int) -> bool:
            ids = prompt(draw.randrange(1, 200), first=65 + number % 26)
            seeded = {"seed": number, "temperature": 1.0} if draw.random() < 0.3 else {}
            task = asyncio.create_task(run(cluster, ask(ids, draw.randrange(1, 40), n=draw.randrange(2, 9), **seeded)))
            for _ in range(int(draw.expovariate(1 / 150))):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
                return False
            return True

        left, cancelled = CANCELS, 0
        while left > 0:
            cancelled += sum(await asyncio.gather(*(one(number) for number in range(min(left, 10)))))
            left -= 10
        assert cancelled > CANCELS / 3
        await cluster.idle()
        for worker in cluster.gateway.model.fleet.workers.values():
            assert not worker.sharers
            assert not worker.unsent
        for name in ("prefill-0", "decode-0", "decode-1"):
            assert not cluster.engine(name).leases
        ids = prompt(100)
        whole(await run(cluster, ask(ids, 12, n=N)), ids, 12)


async def test_a_stream_closed_at_any_event_takes_nothing_along(pair: Cluster) -> None:
    for seen in range(1, 12):
        stream = pair.gateway.generate(ask(prompt(70), 40, n=3))
        kinds = [(await anext(stream)).WhichOneof("event") for _ in range(seen)]
        await stream.aclose()
        assert kinds[0] == "admitted"
        await pair.idle()
