"""While a decode worker starts, the longest trace is preempted for the head of the queue, and loses no token by it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.internal.v1 import registry_pb2, worker_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import DeadlineExceeded
from cluster.spec.config import Role
from interface.cli.status_command import render
from orchestrator.gateway.fleet_worker import LOADS_TO_SHOW, FleetWorker
from orchestrator.policy import placement_queue
from orchestrator.policy import preemption as policy
from tests.fakes.engine import Hold
from tests.fakes.live_cluster import Cluster, Reply, ask, cluster_of, eventually, expected, gateway_of, run
from tests.fakes.runtime import ControlledCluster, controlled

LONG = [ord(char) for char in "A long trace that takes all blocks there."]
SHORT = [ord(char) for char in "A stranger, and it would not wait, it says"]
GROWS = "autoscaling: {enabled: true, interval_s: 1000, preempt_after_s: 0}\n"
BLOCKS = 16
"""Of 32 tokens: the long trace reserves 14, a new request needs 3."""
MADE = 50


async def held(
    cluster: Cluster | ControlledCluster, request: pb.GenerateRequest, made: int = MADE
) -> tuple[asyncio.Task[Reply], Hold]:
    """A request that has made so many tokens on decode-0 and waits there; no other one will."""
    engine = (
        cluster.runtime.engines["decode-0"] if isinstance(cluster, ControlledCluster) else cluster.engine("decode-0")
    )
    hold = engine.hold(made)
    task = asyncio.create_task(run(cast(Cluster, cluster), request))
    await asyncio.wait_for(hold.reached.wait(), 20)
    await eventually(lambda: any(len(each.life.output_ids) == made + 1 for each in cluster.gateway.model.runs.values()))
    return task, engine.holds.pop(made)


def preempted(cluster: Any) -> int:
    count = cluster.gateway.status().requests.preempted
    assert cluster.gateway.metrics.registry.get_sample_value("baton_preempted_total", {"model": "fake"}) == count
    return int(count)


def queued(cluster: Any) -> int:
    return int(cluster.gateway.status().requests.queued)


# --- one trace, one incoming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("comes_first", ["worker", "incoming"])
async def test_the_long_trace_waits_and_no_token_is_lost_or_different(comes_first: str) -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        long, _ = await held(cluster, ask(LONG, 400, logprobs=1))
        if comes_first == "worker":
            cluster.publish(starting=1)
        incoming = asyncio.create_task(run(cluster, ask(SHORT, 40)))
        if comes_first == "incoming":
            await eventually(lambda: queued(cluster) == 1)
            cluster.publish(starting=1)
        reply = await incoming
        assert reply.token_ids[0] == expected(SHORT, 40)
        assert not long.done()
        assert not reply.summary.preempted
        reply = await long
        assert reply.token_ids[0] == expected(LONG, 400)
        rows = [row.chosen.token_id for delta in reply.deltas for row in delta.logprobs]
        assert rows == expected(LONG, 400)
        assert reply.summary.preempted
        assert (reply.summary.retries, reply.summary.moves) == (0, 0)
        # Prefilled again where it decodes, from all that was sent, and no token made twice.
        again = cluster.engine("decode-0").started[-1]
        assert again.token_ids == [*LONG, *expected(LONG, MADE + 1)]
        assert (again.max_tokens, again.transfer_params) == (400 - MADE - 1, None)
        assert len(cluster.engine("prefill-0").started) == 2
        await cluster.idle()
        assert preempted(cluster) == 1
        assert "preempted 1" in str(render(cluster.gateway.status()).renderables[0])


@pytest.mark.parametrize(
    ("more", "starting", "changes"),
    [
        (GROWS, 0, {}),
        ("autoscaling: {preempt_after_s: 0}\n", 1, {}),
        (GROWS.replace("preempt_after_s: 0", "preempt_after_s: null"), 1, {}),
        (GROWS.replace("preempt_after_s: 0", "preempt_after_s: 1000"), 1, {}),
        (GROWS, 1, {"priority": 1}),
        (GROWS, 1, {"presence_penalty": 1.0}),
        (GROWS, 1, {"temperature": 0.7, "seed": 3}),
    ],
    ids=["none starts", "not scaled", "off", "too soon", "priority", "penalty", "seed"],
)
async def test_nobody_makes_way_who_may_not(more: str, starting: int, changes: dict[str, Any]) -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=more) as cluster:
        cluster.publish(starting=starting)
        point = MADE - 1 if set(changes) & {"presence_penalty", "seed"} else MADE  # their first token is decode's
        hold = cluster.engine("decode-0").hold(point + 1)
        long = asyncio.create_task(run(cluster, ask(LONG, 400, **changes)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        incoming = asyncio.create_task(run(cluster, ask(SHORT, 40)))
        await eventually(lambda: queued(cluster) == 1)
        cluster.gateway.model.placer.place_waiting()
        assert (queued(cluster), preempted(cluster)) == (1, 0)
        hold.open()
        assert len((await long).token_ids[0]) == 400
        assert (await incoming).token_ids[0] == expected(SHORT, 40)
        await cluster.idle()
        assert preempted(cluster) == 0


async def test_one_that_is_yet_to_read_its_kv_makes_no_way() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        cluster.publish(starting=1)
        reading = cluster.engine("decode-0").hold("import")
        long = asyncio.create_task(run(cluster, ask(LONG, 400)))
        await asyncio.wait_for(reading.reached.wait(), 20)
        incoming = asyncio.create_task(run(cluster, ask(SHORT, 40)))
        await eventually(lambda: queued(cluster) == 1)
        cluster.gateway.model.placer.place_waiting()
        assert (queued(cluster), preempted(cluster)) == (1, 0)
        decoding = cluster.engine("decode-0").hold(MADE)
        reading.open()
        await asyncio.wait_for(decoding.reached.wait(), 20)
        del cluster.engine("decode-0").holds[MADE]
        assert (await incoming).token_ids[0] == expected(SHORT, 40)
        assert (await long).token_ids[0] == expected(LONG, 400)
        assert preempted(cluster) == 1
        await cluster.idle()


async def test_nobody_makes_way_where_the_newcomer_could_not_go() -> None:
    async with cluster_of("prefill-0", "decode-0", "decode-1", total_blocks=BLOCKS, more=GROWS) as cluster:
        cluster.publish(starting=1)
        stays = cluster.engine("decode-1").hold(20)
        long, hold = await held(cluster, ask(LONG, 400))
        other = asyncio.create_task(run(cluster, ask(LONG, 400, presence_penalty=1.0)))
        await asyncio.wait_for(stays.reached.wait(), 20)
        cluster.workers["decode-0"].service.drain()
        await eventually(lambda: cluster.gateway.model.fleet.workers["decode-0"].draining)
        incoming = asyncio.create_task(run(cluster, ask(SHORT, 40)))
        await eventually(lambda: queued(cluster) == 1)
        cluster.gateway.model.placer.place_waiting()
        assert (queued(cluster), preempted(cluster)) == (1, 0)
        hold.open()
        stays.open()
        assert (await long).token_ids[0] == expected(LONG, 400)
        assert (await incoming).token_ids[0] == expected(SHORT, 40)
        await other
        await cluster.idle()


async def test_nobody_makes_way_twice() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        cluster.publish(starting=1)
        long, _ = await held(cluster, ask(LONG, 400))
        hold = cluster.engine("decode-0").hold(60)
        await run(cluster, ask(SHORT, 40))
        await asyncio.wait_for(hold.reached.wait(), 20)  # it is back, and has made some more
        incoming = asyncio.create_task(run(cluster, ask(SHORT, 40)))
        await eventually(lambda: queued(cluster) == 1)
        cluster.gateway.model.placer.place_waiting()
        assert (queued(cluster), preempted(cluster)) == (1, 1)
        hold.open()
        assert (await long).token_ids[0] == expected(LONG, 400)
        assert (await incoming).token_ids[0] == expected(SHORT, 40)
        await cluster.idle()


async def test_as_many_make_way_as_the_newcomer_needs() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        cluster.publish(starting=1)
        first, _ = await held(cluster, ask(LONG, 180))
        second, _ = await held(cluster, ask(LONG[::-1], 180), made=20)
        incoming = await run(cluster, ask(SHORT, 400))
        assert incoming.token_ids[0] == expected(SHORT, 400)
        assert preempted(cluster) == 2
        for task, prompt in ((first, LONG), (second, LONG[::-1])):
            assert (await task).token_ids[0] == expected(prompt, 180)
        await cluster.idle()


async def test_blocks_given_up_count_as_free_before_the_worker_says_so() -> None:
    """Traces that grew past their reservation: what is used decides, and the load is half a second old."""
    more = "gateway: {forecast_osl_tokens: 32}\n" + GROWS
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=more) as cluster:
        long, _ = await held(cluster, ask(LONG, 400), made=200)
        other, hold = await held(cluster, ask(LONG[::-1], 400), made=100)
        load = cluster.gateway.model.fleet.workers
        await eventually(lambda: load["decode-0"].load.used_blocks == 13)
        incoming = asyncio.create_task(run(cluster, ask(SHORT * 5, 40)))
        await eventually(lambda: queued(cluster) == 1)
        cluster.publish(starting=1)
        assert (await incoming).token_ids[0] == expected(SHORT * 5, 40)
        assert not other.done()
        hold.open()
        assert (await long).token_ids[0] == expected(LONG, 400)
        assert not (await other).summary.preempted
        await cluster.idle()
        await eventually(lambda: not load["decode-0"].leaving and not load["decode-0"].left)


# --- while it waits -------------------------------------------------------------------------------------------------


async def test_it_comes_back_when_new_requests_keep_headroom_and_keeps_none_of_them_waiting() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=18, more=GROWS) as cluster:
        cluster.publish(starting=1)
        long, _ = await held(cluster, ask(LONG, 400))
        other, hold = await held(cluster, ask(LONG[::-1], 60), made=20)
        assert (await run(cluster, ask(SHORT, 40))).token_ids[0] == expected(SHORT, 40)
        # The long one would fit exactly, which leaves nothing to new requests.
        assert queued(cluster) == 1
        await run(cluster, ask(SHORT, 40))
        cluster.gateway.model.placer.place_waiting()
        assert (queued(cluster), preempted(cluster)) == (1, 1)
        cluster.publish(starting=0)
        assert (await long).token_ids[0] == expected(LONG, 400)
        assert not other.done()
        hold.open()
        assert (await other).token_ids[0] == expected(LONG[::-1], 60)
        await cluster.idle()


async def waiting(cluster: Cluster, **changes: Any) -> tuple[asyncio.Task[Reply], asyncio.Task[Reply], Hold]:
    """A long trace that was preempted, and the new request it was preempted for, which waits at its twentieth token."""
    cluster.publish(starting=1)
    long, _ = await held(cluster, ask(LONG, 400, **changes))
    incoming, hold = await held(cluster, ask(SHORT, 40), made=20)
    assert (queued(cluster), preempted(cluster)) == (1, 1)
    return long, incoming, hold


async def test_a_cancel_while_it_waits_leaves_nothing() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        long, incoming, hold = await waiting(cluster)
        long.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await long
        assert queued(cluster) == 0
        hold.open()
        assert (await incoming).token_ids[0] == expected(SHORT, 40)
        await cluster.idle()


async def test_its_deadline_holds_while_it_waits() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        long, incoming, hold = await waiting(cluster, deadline_s=3.0)
        with pytest.raises(DeadlineExceeded):
            await long
        assert queued(cluster) == 0
        hold.open()
        await incoming
        await cluster.idle()


async def test_the_worker_that_comes_takes_it() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        long, incoming, hold = await waiting(cluster)
        await cluster.add("decode-1", total_blocks=BLOCKS)
        cluster.publish(starting=0)
        reply = await long
        assert not incoming.done()
        assert reply.token_ids[0] == expected(LONG, 400)
        assert (reply.summary.workers.prefill, reply.summary.workers.decode) == ("", "decode-1")
        hold.open()
        assert (await incoming).token_ids[0] == expected(SHORT, 40)
        await cluster.idle()


@pytest.mark.parametrize("gone", ["drained", "dead"])
async def test_the_worker_that_it_left_may_go(gone: str) -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        long, incoming, _ = await waiting(cluster)
        await cluster.add("decode-1", total_blocks=32)
        if gone == "drained":
            cluster.workers["decode-0"].service.drain()
            cluster.publish(starting=0)
        else:
            cluster.publish(starting=0)
            await cluster.kill("decode-0")
        assert (await long).token_ids[0] == expected(LONG, 400)
        reply = await incoming
        assert reply.token_ids[0] == expected(SHORT, 40)
        assert (reply.summary.moves, reply.summary.retries) == ((1, 0) if gone == "drained" else (0, 1))
        await cluster.idle()


async def test_it_does_not_come_back_to_what_other_gateways_fill() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        neighbour = Cluster(
            gateway_of(cluster.gateway.spec, cluster.gateway.model.front), cluster.network, cluster.workers
        )
        try:
            neighbour.publish()
            await neighbour.connected()
            others, hold = await held(neighbour, ask(LONG * 4, 60), made=20)
            loads = cluster.gateway.model.fleet.workers
            await eventually(lambda: loads["decode-0"].load.used_blocks >= 6)
            cluster.publish(starting=1)
            long, _ = await held(cluster, ask(LONG, 400))
            await run(cluster, ask(SHORT, 40))
            await eventually(lambda: loads["decode-0"].load.used_blocks == 6)  # its own requests are gone from there
            cluster.gateway.model.placer.place_waiting()
            assert queued(cluster) == 1
            hold.open()
            assert (await others).token_ids[0] == expected(LONG * 4, 60)
            assert (await long).token_ids[0] == expected(LONG, 400)
        finally:
            await neighbour.gateway.close()


# --- slow readers ---------------------------------------------------------------------------------------------------


async def test_one_whose_caller_does_not_read_makes_way_with_all_tokens_it_has() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        hold = cluster.engine("decode-0").hold(MADE)
        reply = Reply()
        stream = cluster.gateway.generate(ask(LONG, 400))
        async for event in stream:
            reply.take(event)
            if len(reply.deltas) == 2:
                await asyncio.wait_for(hold.reached.wait(), 20)
                del cluster.engine("decode-0").holds[MADE]
                (slow,) = cluster.gateway.model.runs.values()
                await eventually(lambda: sum(len(each.token_ids) for each in slow._inbox) + 2 >= MADE)  # type: ignore[union-attr]  # noqa: B023
                cluster.publish(starting=1)
                assert (await run(cluster, ask(SHORT, 40))).token_ids[0] == expected(SHORT, 40)
        assert reply.token_ids[0] == expected(LONG, 400)
        assert cluster.engine("decode-0").started[-1].token_ids == [*LONG, *expected(LONG, MADE + 1)]
        await cluster.idle()
        assert preempted(cluster) == 1


async def test_one_that_has_ended_unread_is_not_run_again() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=BLOCKS, more=GROWS) as cluster:
        reply = Reply()
        stream = cluster.gateway.generate(ask(LONG, 400))
        incoming = None
        async for event in stream:
            reply.take(event)
            if len(reply.deltas) == 2:
                await eventually(lambda: not cluster.engine("decode-0").load().running_requests)
                await eventually(lambda: not cluster.gateway.model.fleet.workers["decode-0"].legs)
                cluster.publish(starting=1)
                incoming = asyncio.create_task(run(cluster, ask(SHORT, 200)))
                await eventually(lambda: queued(cluster) == 1)
                cluster.gateway.model.placer.place_waiting()
        assert reply.token_ids[0] == expected(LONG, 400)
        assert not reply.summary.preempted
        assert incoming is not None
        assert (await incoming).token_ids[0] == expected(SHORT, 200)
        assert len(cluster.engine("decode-0").started) == 2
        assert not cluster.gateway.model.fleet.workers["decode-0"].leaving
        await cluster.idle()
        assert preempted(cluster) == 0


# --- many -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_a_full_cluster_that_grows_keeps_every_token(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_queue, "TAKE_BACK_EVERY_S", 0.05)
    monkeypatch.setattr(policy, "TAKE_BACK_EVERY_S", 0.05)
    draw = random.Random(f"preempted {seed}")
    settings: dict[str, Any] = {"total_blocks": 24, "step_s": 0.001}
    async with cluster_of("prefill-0", "decode-0", "decode-1", queue=99, more=GROWS, **settings) as cluster:
        cluster.publish(starting=1)
        prompts = [[65 + index, *draw.choices(range(65, 90), k=draw.randrange(10, 100))] for index in range(24)]
        lengths = [draw.choice([20, 60, 300]) for _ in prompts]
        priorities = [draw.choice([-1, 0, 0, 1]) for _ in prompts]
        tasks = []
        for prompt, length, priority in zip(prompts, lengths, priorities, strict=True):
            tasks.append(asyncio.create_task(run(cluster, ask(prompt, length, priority=priority, logprobs=1))))
            await asyncio.sleep(0.02)
        await eventually(lambda: sum(task.done() for task in tasks) >= 8)
        await cluster.add("decode-2", **settings)
        cluster.publish(starting=0)
        replies = await asyncio.gather(*tasks)
        for prompt, length, reply in zip(prompts, lengths, replies, strict=True):
            assert reply.token_ids[0] == expected(prompt, length)
            assert [row.chosen.token_id for delta in reply.deltas for row in delta.logprobs] == expected(prompt, length)
            assert reply.summary.retries == 0
        await cluster.idle()
        assert preempted(cluster) == sum(reply.summary.preempted for reply in replies) > 0


# --- what a worker's blocks are taken to be ----------------------------------------------------------------------


def worker(used: int, reserved: dict[str, int]) -> FleetWorker:
    member = registry_pb2.Member(worker_id="d", role="decode", state="ready", total_blocks=100, incarnation="i")
    return FleetWorker(member, cast(Any, None), worker_pb2.WorkerLoad(used_blocks=used), reserved)


@given(st.integers(0, 100), st.integers(0, 60), st.dictionaries(st.sampled_from("abc"), st.integers(0, 60)))
def test_what_one_would_free_is_what_headroom_grows_by(used: int, held_blocks: int, reserved: dict[str, int]) -> None:
    one = worker(used, reserved)
    before, freed = one.view().headroom_blocks, one.freed_by("a", held_blocks)
    one.leaving["a/1"] = held_blocks
    one.reserved.pop("a", None)
    assert one.view().headroom_blocks == before + freed


def test_blocks_being_freed_count_once() -> None:
    one = worker(80, {})
    one.leaving["a/1"] = 30
    one.take_load(worker_pb2.WorkerLoad(used_blocks=82))
    assert one.used_blocks == 52  # the engine has not learned of it yet
    one.has_left("a/1")
    one.has_left("b/1")  # made no way
    one.take_load(worker_pb2.WorkerLoad(used_blocks=52))
    assert one.used_blocks == 52
    one.leaving["c/1"] = 30
    one.has_left("c/1")
    for _ in range(LOADS_TO_SHOW):
        one.take_load(worker_pb2.WorkerLoad(used_blocks=60))  # others took as much: it is over all the same
    assert one.used_blocks == 60


# --- with a controller ----------------------------------------------------------------------------------------------


async def test_a_trace_makes_way_while_the_controller_starts_a_worker_and_goes_on_there(tmp_path: Path) -> None:
    async with controlled(tmp_path, decode=1, places=2, more=GROWS, total_blocks=BLOCKS) as cluster:
        long, _ = await held(cluster, ask(LONG, 400))
        incoming = asyncio.create_task(held(cluster, ask(SHORT, 40), made=20))
        await eventually(lambda: queued(cluster) == 1)
        cluster.model.growth.grow(Role.DECODE)
        short, hold = await incoming
        assert (queued(cluster), preempted(cluster)) == (1, 1)
        cluster.runtime.places.release()
        reply = await long
        assert reply.token_ids[0] == expected(LONG, 400)
        assert (reply.summary.workers.decode, reply.summary.retries) == ("decode-1", 0)
        assert reply.summary.preempted
        hold.open()
        assert (await short).token_ids[0] == expected(SHORT, 40)
