from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from baton.internal.v1 import registry_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import ConfigError, WorkerDied
from orchestrator.controller.worker_drain import serve_drain
from orchestrator.gateway.peaks import Peaks
from tests.fakes.live_cluster import Cluster, Reply, ask, cluster_of, eventually, expected, run
from tests.fakes.tokenizer import END_THINK, THINK

PROMPT = [ord(char) for char in "The baton goes from hand to hand, over forty tokens."]
WORKERS = ("prefill-0", "decode-0", "decode-1")


@pytest.fixture
async def three() -> AsyncIterator[Cluster]:
    async with cluster_of(*WORKERS) as cluster:
        yield cluster


async def held_on(cluster: Cluster, request: pb.GenerateRequest, worker: str, point: int = 40) -> asyncio.Task[Reply]:
    """A request that has made ``point`` tokens on the worker and waits there."""
    hold = cluster.engine(worker).hold(point)
    task = asyncio.create_task(run(cluster, request))
    await asyncio.wait_for(hold.reached.wait(), 20)
    return task


async def first_decode(cluster: Cluster) -> str:
    """Where the router puts the next request; found by asking for two tokens."""
    return (await run(cluster, ask(PROMPT, 2))).summary.workers.decode


def takes_work_again(cluster: Cluster, worker: str) -> None:
    service = cluster.workers[worker].service
    service.draining, service._refuses_from_s = False, float("inf")


# --- moves ----------------------------------------------------------------------------------------------------------


async def test_a_running_request_goes_on_elsewhere_with_its_kv(three: Cluster) -> None:
    source = await first_decode(three)
    target = next(worker for worker in WORKERS[1:] if worker != source)
    prefilled = len(three.engine("prefill-0").started)
    task = await held_on(three, ask(PROMPT, 100, logprobs=1), source)
    three.workers[source].service.drain()
    reply = await task
    assert reply.token_ids[0] == expected(PROMPT, 100)
    rows = [row.chosen.token_id for delta in reply.deltas for row in delta.logprobs]
    assert rows == expected(PROMPT, 100)
    assert (reply.summary.moves, reply.summary.retries) == (1, 0)
    # Its own worker exported it; the prefill worker saw it once, and decode computed less than a block again.
    assert len(three.engine("prefill-0").started) == prefilled + 1
    assert 0 < reply.summary.moved_recomputed_tokens <= 33
    assert three.engine(target).started[-1].token_ids[: len(PROMPT)] == PROMPT
    await three.idle()
    assert not three.engine(source).leases


async def test_the_controllers_word_is_as_good_as_the_workers_own(three: Cluster) -> None:
    source = await first_decode(three)
    task = await held_on(three, ask(PROMPT, 60), source)
    three.workers[source].member.state = "draining"
    three.publish()
    reply = await task
    assert reply.token_ids[0] == expected(PROMPT, 60)
    assert reply.summary.moves == 1
    await three.idle()


async def test_many_requests_move_and_none_is_prefilled_again(three: Cluster) -> None:
    source = await first_decode(three)
    prompts = [[65 + index, *PROMPT] for index in range(10)]
    hold = three.engine(source).hold(30)
    tasks = [asyncio.create_task(run(three, ask(prompt, 80))) for prompt in prompts]
    await asyncio.wait_for(hold.reached.wait(), 20)
    three.workers[source].service.drain()
    replies = await asyncio.gather(*tasks)
    assert [reply.token_ids[0] for reply in replies] == [expected(prompt, 80) for prompt in prompts]
    assert all(not reply.summary.retries for reply in replies)
    assert sum(reply.summary.moves for reply in replies) >= 1
    assert not three.engine(source).load().running_requests
    await three.idle()


async def test_a_move_back_and_forth(three: Cluster) -> None:
    source = await first_decode(three)
    target = next(worker for worker in WORKERS[1:] if worker != source)
    task = await held_on(three, ask(PROMPT, 200), source)
    back = three.engine(target).hold(50)
    three.workers[source].service.drain()
    await asyncio.wait_for(back.reached.wait(), 20)
    takes_work_again(three, source)
    fleet = three.gateway.model.fleet
    await eventually(lambda: not fleet.workers[source].load.draining, "the source takes work again")
    three.engine(source).holds.clear()
    three.workers[target].service.drain()
    reply = await task
    assert reply.token_ids[0] == expected(PROMPT, 200)
    assert reply.summary.moves == 2
    await three.idle()


@pytest.mark.parametrize(
    "settings", [{"presence_penalty": 0.5}, {"temperature": 0.7, "seed": 3}, {"bad_words": ["x"]}], ids=str
)
async def test_what_would_change_its_meaning_finishes_where_it_is(three: Cluster, settings: dict[str, object]) -> None:
    source = await first_decode(three)
    fields = dict(settings)
    request = ask(PROMPT, 60, **fields)
    task = await held_on(three, request, source)
    three.workers[source].service.drain()
    fleet = three.gateway.model.fleet
    await eventually(lambda: fleet.workers[source].draining, "the gateway learns of it")
    for _ in range(3):
        await asyncio.sleep(0.06)  # ticks of the moves
    three.engine(source).hold(40).open()
    reply = await task
    assert reply.token_ids[0] == expected(PROMPT, 60)
    assert (reply.summary.moves, reply.summary.retries) == (0, 0)
    assert reply.summary.workers.decode == source
    await three.idle()


async def test_a_thinking_budget_goes_along(three: Cluster) -> None:
    source = await first_decode(three)
    target = next(worker for worker in WORKERS[1:] if worker != source)
    request = ask([*PROMPT, THINK], 90, reasoning=pb.Reasoning(budget_tokens=60), ignore_eos=True)
    task = await held_on(three, request, source)
    three.workers[source].service.drain()
    reply = await task
    trace = expected([*PROMPT, THINK], 60)
    assert reply.token_ids[0] == [*trace, END_THINK, *expected([*PROMPT, THINK, *trace, END_THINK], 29)]
    assert reply.summary.moves == 1
    assert reply.summary.reasoning_closed
    assert three.engine(target).started[-1].token_ids[-1] == END_THINK


async def test_a_request_still_prefilling_decodes_elsewhere_and_is_not_retried(three: Cluster) -> None:
    source = await first_decode(three)
    hold = three.engine("prefill-0").hold("prefill")
    task = asyncio.create_task(run(three, ask(PROMPT, 20)))
    await asyncio.wait_for(hold.reached.wait(), 20)
    three.workers[source].service.drain(grace_s=0)
    fleet = three.gateway.model.fleet
    await eventually(lambda: not fleet.workers[source].reserved, "its reservation is moved")
    hold.open()
    reply = await task
    assert reply.token_ids[0] == expected(PROMPT, 20)
    assert (reply.summary.moves, reply.summary.retries) == (0, 0)
    await three.idle()


async def test_without_headroom_elsewhere_it_runs_on_and_moves_when_there_is() -> None:
    async with cluster_of("prefill-0", "decode-0", "decode-1", total_blocks=8) as cluster:
        source = await first_decode(cluster)
        other = next(worker for worker in WORKERS[1:] if worker != source)
        task = await held_on(cluster, ask(PROMPT, 100), source)
        blocker = await held_on(cluster, ask([66, *PROMPT], 120), other, 39)
        cluster.workers[source].service.drain()
        fleet = cluster.gateway.model.fleet
        await eventually(lambda: fleet.workers[source].draining, "the gateway learns of it")
        for _ in range(3):
            await asyncio.sleep(0.06)
        assert len(cluster.engine(source).started) == 2  # the probe's and its own: no export
        cluster.engine(other).hold(39).open()
        assert (await blocker).token_ids[0] == expected([66, *PROMPT], 120)
        reply = await task
        assert reply.token_ids[0] == expected(PROMPT, 100)
        assert reply.summary.moves == 1
        await cluster.idle()


async def test_a_target_that_dies_during_the_move_costs_a_prefill() -> None:
    async with cluster_of("prefill-0", "decode-0", "decode-1") as cluster:
        source = await first_decode(cluster)
        target = next(worker for worker in WORKERS[1:] if worker != source)
        task = await held_on(cluster, ask(PROMPT, 60), source)
        reading = cluster.engine(target).hold("import")
        cluster.workers[source].service.drain()
        await asyncio.wait_for(reading.reached.wait(), 20)
        takes_work_again(cluster, source)
        cluster.engine(source).holds.clear()
        await cluster.kill(target)
        reply = await task
        assert reply.token_ids[0] == expected(PROMPT, 60)
        assert reply.summary.moves == 1
        assert reply.summary.retries >= 1
        cluster.engine(source).leases.clear()  # what the dead one was to read stays until its lease ends
        await cluster.idle()


async def test_a_cancel_during_the_move_frees_both_ends(three: Cluster) -> None:
    source = await first_decode(three)
    target = next(worker for worker in WORKERS[1:] if worker != source)
    task = await held_on(three, ask(PROMPT, 60), source)
    reading = three.engine(target).hold("import")
    three.workers[source].service.drain()
    await asyncio.wait_for(reading.reached.wait(), 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await three.idle()
    assert not three.engine(source).leases


# --- health ---------------------------------------------------------------------------------------------------------


async def test_an_engine_that_makes_no_step_is_left_for_another(three: Cluster) -> None:
    source = await first_decode(three)
    task = await held_on(three, ask(PROMPT, 60), source)
    three.workers[source].service.health.watch.stall_timeout_s = 0.1  # it holds still, as a hung engine does
    reply = await task
    assert reply.token_ids[0] == expected(PROMPT, 60)
    assert reply.summary.retries == 1
    assert reply.summary.workers.decode != source


async def test_a_silent_worker_is_given_up(three: Cluster) -> None:
    source = await first_decode(three)
    task = await held_on(three, ask(PROMPT, 60), source)
    now = time.monotonic()
    three.gateway.model.fleet.workers[source].link.last_event_s = now - 60
    three.gateway.model.fleet.drop_silent(now)
    three.engine(source).holds.clear()
    reply = await task
    assert reply.token_ids[0] == expected(PROMPT, 60)
    assert reply.summary.retries == 1


async def test_a_gateway_that_hears_nobody_gives_nobody_up_and_each_has_its_time_anew(three: Cluster) -> None:
    source = await first_decode(three)
    task = await held_on(three, ask(PROMPT, 60), source)
    fleet, began = three.gateway.model.fleet, time.monotonic()

    def silent_for(seconds: float, *workers: str) -> None:
        for worker_id in workers or fleet.workers:
            fleet.workers[worker_id].link.last_event_s = began - seconds
        fleet.drop_silent(began)

    known = set(fleet.workers)
    silent_for(16)
    silent_for(40)
    assert set(fleet.workers) == known
    silent_for(0, next(iter(known - {source})))  # one is heard again: the others may be, too
    assert set(fleet.workers) == known
    assert fleet.workers[source].link.last_event_s == began
    silent_for(16, source)
    assert source not in fleet.workers
    three.engine(source).holds.clear()
    assert (await task).token_ids[0] == expected(PROMPT, 60)


async def test_a_gateway_that_was_stopped_does_not_blame_its_workers(three: Cluster) -> None:
    source = await first_decode(three)
    hold = three.engine(source).hold(40)
    task = asyncio.create_task(run(three, ask(PROMPT, 60)))
    await asyncio.wait_for(hold.reached.wait(), 20)
    now = time.monotonic() + 60  # as it finds on waking up: nothing was read for a minute
    three.gateway.model.fleet.drop_silent(now)
    assert three.gateway.model.fleet.workers[source].connected
    hold.open()
    assert (await task).summary.retries == 0


async def test_a_worker_whose_engine_died_is_not_tried_again(three: Cluster) -> None:
    source = await first_decode(three)
    task = await held_on(three, ask(PROMPT, 60), source)
    three.engine(source).die()  # its process and its port live on, as when only the engine core is killed
    reply = await task
    assert reply.token_ids[0] == expected(PROMPT, 60)
    assert reply.summary.retries == 1
    started = len(three.engine(source).started)
    for index in range(4):
        assert (await run(three, ask([70 + index, *PROMPT], 8))).summary.workers.decode != source
    assert len(three.engine(source).started) == started


# --- the controller's side ------------------------------------------------------------------------------------------


class Answers:
    """A controller whose worker answers with these loads, the last one again and again."""

    def __init__(self, *loads: dict[str, int] | Exception) -> None:
        self.loads = list(loads)
        self.calls: list[str] = []

    async def call(self, worker: object, method: str) -> object:
        self.calls.append(method)
        if method == "drain":
            return None
        load = self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]
        if isinstance(load, Exception):
            raise load
        return {"legs": 0, "running_requests": 0, "waiting_requests": 0, "used_blocks": 0, **load}


async def drained(answers: Answers, timeout_s: float = 30.0) -> registry_pb2.WorkerDrain:
    from types import SimpleNamespace

    from orchestrator.controller.worker_drain import WorkerDrain

    worker = SimpleNamespace(plan=SimpleNamespace(worker_id="prefill-0"))
    drain = WorkerDrain(answers, worker, timeout_s)  # type: ignore[arg-type]
    await drain.run()
    return drain.progress


async def test_a_worker_is_empty_when_its_leases_are_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.controller.worker_drain.POLL_S", 0.0)
    answers = Answers({"legs": 2, "used_blocks": 9}, {"used_blocks": 4}, {}, {"used_blocks": 2}, {})
    progress = await drained(answers)
    assert progress.stage == registry_pb2.DRAIN_STAGE_DRAINED
    assert (progress.requests_at_start, progress.requests, progress.used_blocks) == (2, 0, 0)
    assert answers.calls == ["drain", *["check_health"] * 6]


async def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.controller.worker_drain.POLL_S", 0.0)
    progress = await drained(Answers({"legs": 1, "used_blocks": 3}), timeout_s=0.05)
    assert progress.stage == registry_pb2.DRAIN_STAGE_TIMED_OUT
    assert progress.requests == 1


@pytest.mark.parametrize("error", [WorkerDied("gone"), TimeoutError()])
async def test_a_worker_that_dies_while_it_drains_is_reported(error: Exception) -> None:
    assert (await drained(Answers(error))).stage == registry_pb2.DRAIN_STAGE_LOST


async def test_a_drain_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="name at least one worker"):
        await anext(serve_drain(registry_pb2.DrainRequest(), Answers({}), 60.0))  # type: ignore[arg-type]


# --- rebalancing ----------------------------------------------------------------------------------------------------


async def test_a_request_leaves_a_worker_that_will_run_out_of_kv() -> None:
    more = "autoscaling: {enabled: true}\n"
    async with cluster_of(*WORKERS, more=more, total_blocks=16) as cluster:
        source = await first_decode(cluster)
        target = next(worker for worker in WORKERS[1:] if worker != source)
        fleet = cluster.gateway.model.fleet
        fleet.workers[target].reserved["full"] = 16
        hold = cluster.engine(source).hold(20)
        prompts = [[65 + index, *PROMPT] for index in range(2)]
        # Taken for short when they were placed: both fit.
        for _ in range(20):
            cluster.gateway.model.forecast.record(40)
        tasks = [asyncio.create_task(run(cluster, ask(prompt, 300))) for prompt in prompts]
        await eventually(lambda: len(cluster.engine(source)._legs) == 2, "both decode on one worker")
        await asyncio.wait_for(hold.reached.wait(), 20)
        # Traces have become long: together they will want 2 x 350 tokens of the 512.
        for _ in range(600):
            cluster.gateway.model.forecast.record(300)
        del fleet.workers[target].reserved["full"]
        await eventually(lambda: len(cluster.engine(target)._legs) == 1, "one moves")
        hold.open()
        replies = await asyncio.gather(*tasks)
        for prompt, reply in zip(prompts, replies, strict=True):
            assert reply.token_ids[0] == expected(prompt, 300)
        assert sorted(reply.summary.moves for reply in replies) == [0, 1]
        assert cluster.gateway.model.metrics.rebalanced._value.get() == 1
        await cluster.idle()


async def test_placement_goes_by_the_peak_of_what_runs() -> None:
    async with cluster_of(*WORKERS, more="autoscaling: {enabled: true}\n", total_blocks=64) as cluster:
        task = await held_on(cluster, ask([70, *PROMPT], 900), "decode-0", 5)
        model = cluster.gateway.model
        peaks = Peaks(model.fleet, model.runs, model.forecast)
        found = dict(peaks.blocks())
        assert found["decode-1"] == 0
        # The prompt, five tokens, and the 512 that an output is taken for at first, in blocks of 32.
        assert 17 <= found["decode-0"] <= 18
        assert peaks.blocks() == found
        cluster.engine("decode-0").holds.pop(5).open()
        await task
