from __future__ import annotations

import asyncio
import contextlib

import pytest
from prometheus_client import generate_latest

from baton.v1 import inference_pb2 as pb
from cluster.errors import DeadlineExceeded, EngineFailed, InvalidRequest, NoReadyWorker, RequestRejected
from tests.fakes.engine import next_token
from tests.fakes.live_cluster import Cluster, Reply, ask, cluster_of, eventually, expected, run
from tests.fakes.tokenizer import THINK

PROMPT = [ord(char) for char in "The baton goes from hand to hand, over forty tokens."]


# --- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 500])
async def test_tokens_through_the_handoff_are_those_of_one_engine(length: int) -> None:
    prompt = [65 + index % 26 for index in range(length)]
    async with cluster_of("prefill-0", "decode-0") as apart, cluster_of("colocated-0") as together:
        split, whole = await run(apart, ask(prompt, 20)), await run(together, ask(prompt, 20))
        assert split.token_ids[0] == whole.token_ids[0] == expected(prompt, 20)
        assert (split.summary.workers.prefill, split.summary.workers.decode) == ("prefill-0", "decode-0")
        assert (whole.summary.workers.prefill, whole.summary.workers.decode) == ("", "colocated-0")
        assert split.summary.handoff.tokens == length
        assert split.summary.handoff.bytes > 0
        assert not whole.summary.handoff.bytes
        await apart.idle()
        await together.idle()


async def test_the_stream_reports_its_story_in_order(pair: Cluster) -> None:
    kinds = [event.WhichOneof("event") async for event in pair.gateway.generate(ask(PROMPT, 3))]
    assert kinds[:3] == ["admitted", "first_token", "delta"]
    assert kinds[-1] == "finished"
    assert kinds.count("admitted") == kinds.count("first_token") == kinds.count("finished") == 1


async def test_the_first_token_is_with_the_caller_before_decode_hears_of_the_request(pair: Cluster) -> None:
    stream = pair.gateway.generate(ask(PROMPT, 3))
    async for event in stream:
        if event.HasField("delta"):
            break
    assert not pair.engine("decode-0").started
    await stream.aclose()
    await pair.idle()


async def test_many_requests_at_once_keep_apart(pair: Cluster) -> None:
    prompts = [[65 + index, *PROMPT] for index in range(12)]
    replies = await asyncio.gather(*(run(pair, ask(prompt, 10)) for prompt in prompts))
    assert [reply.token_ids[0] for reply in replies] == [expected(prompt, 10) for prompt in prompts]
    await pair.idle()


async def test_a_plain_handoff_lets_decode_make_the_first_token(pair: Cluster) -> None:
    reply = await run(pair, ask(PROMPT, 6, presence_penalty=0.5))
    assert reply.token_ids[0] == expected(PROMPT, 6)
    assert reply.summary.handoff.plain
    decode_leg = pair.engine("decode-0").started[0]
    assert decode_leg.token_ids == PROMPT
    assert decode_leg.max_tokens == 6
    await pair.idle()


async def test_choices_share_one_prefill_and_each_is_whole(pair: Cluster) -> None:
    reply = await run(pair, ask(PROMPT, 6, n=3, seed=(1 << 63) - 1))
    assert reply.token_ids == dict.fromkeys(range(3), expected(PROMPT, 6))
    assert reply.finished is not None
    assert [choice.choice for choice in reply.finished.choices] == [0, 1, 2]
    assert reply.finished.usage.answer_tokens == 18
    # The first leg brought the prompt to decode; the others found its one full block there.
    assert pair.engine("prefill-0").load().prompt_tokens == len(PROMPT)
    assert pair.engine("decode-0").load().prompt_tokens == 1 + 2 * (len(PROMPT) - 32)
    await pair.idle()


async def test_one_token_leaves_decode_alone(pair: Cluster) -> None:
    reply = await run(pair, ask(PROMPT, 1))
    assert reply.token_ids[0] == expected(PROMPT, 1)
    assert reply.summary.finish_reason == pb.FINISH_REASON_LENGTH
    assert not pair.engine("decode-0").started
    await pair.idle()


async def test_a_stop_string_may_span_the_handoff(pair: Cluster) -> None:
    text = bytes(expected(PROMPT, 8)).decode()
    reply = await run(pair, ask(PROMPT, 8, stop=[text[:2]]))
    assert reply.text[0] == ""
    assert reply.summary.finish_reason == pb.FINISH_REASON_STOP
    assert reply.deltas[-1].stop_matched == text[:2]
    reply = await run(pair, ask(PROMPT, 8, stop=[text[2:4]], include_stop_in_output=True))
    assert reply.text[0] == text[:4]
    await pair.idle()


async def test_a_stop_token_at_the_first_token_needs_no_decode(pair: Cluster) -> None:
    first = expected(PROMPT, 1)[0]
    reply = await run(pair, ask(PROMPT, 8, stop_token_ids=[first]))
    assert reply.token_ids[0] == [first]
    assert reply.deltas[-1].stop_matched == str(first)
    assert not pair.engine("decode-0").started
    await pair.idle()


async def test_min_tokens_counts_over_both_legs(pair: Cluster) -> None:
    second = expected(PROMPT, 2)[1]
    reply = await run(pair, ask(PROMPT, 8, stop_token_ids=[second], min_tokens=2))
    assert reply.token_ids[0] == expected(PROMPT, 2)
    assert pair.engine("prefill-0").started[0].min_tokens == 1
    assert pair.engine("decode-0").started[0].min_tokens == 1


async def test_logprobs_go_with_their_tokens_across_the_handoff(pair: Cluster) -> None:
    reply = await run(pair, ask(PROMPT, 6, logprobs=2))
    rows = [row for delta in reply.deltas for row in delta.logprobs]
    assert [row.chosen.token_id for row in rows] == expected(PROMPT, 6)
    for row in rows:
        assert row.chosen.logprob == pytest.approx(-row.chosen.token_id / 1000)
        assert row.chosen.text == chr(row.chosen.token_id)
        assert [top.rank for top in row.top] == [1, 2]


# --- the thinking budget --------------------------------------------------------------------------------------------


async def test_a_budget_of_zero_closes_the_reasoning_in_the_prompt(pair: Cluster) -> None:
    reply = await run(pair, ask([*PROMPT, THINK], 4, reasoning=pb.Reasoning(budget_tokens=0)))
    assert reply.summary.usage.reasoning_tokens == 0
    assert reply.summary.usage.answer_tokens == 4


# --- cancel ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "point"), [("prefill-0", "prefill"), ("decode-0", "import"), ("decode-0", 0), ("decode-0", 3)]
)
async def test_a_cancel_in_any_phase_frees_every_block(pair: Cluster, worker: str, point: str | int) -> None:
    hold = pair.engine(worker).hold(point)
    task = asyncio.create_task(run(pair, ask(PROMPT, 8)))
    await asyncio.wait_for(hold.reached.wait(), 20)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await pair.idle()


async def test_a_cancel_that_prefill_does_not_hear_releases_the_late_ticket(pair: Cluster) -> None:
    prefill = pair.engine("prefill-0")
    hold, prefill.deaf = prefill.hold("prefill"), True
    task = asyncio.create_task(run(pair, ask(PROMPT, 8)))
    await asyncio.wait_for(hold.reached.wait(), 20)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    hold.open()
    await pair.idle()
    assert not prefill.leases


@pytest.mark.parametrize("seen", [1, 2, 3])
async def test_a_caller_that_goes_at_any_message_takes_nothing_along(pair: Cluster, seen: int) -> None:
    stream = pair.gateway.generate(ask(PROMPT, 8))
    for _ in range(seen):
        await anext(stream)
    await stream.aclose()
    await pair.idle()
    assert not pair.engine("prefill-0").leases


async def test_a_cancel_in_the_queue_frees_the_place() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=3) as cluster:
        hold = cluster.engine("decode-0").hold(1)
        first = asyncio.create_task(run(cluster, ask(PROMPT, 8)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        second = asyncio.create_task(run(cluster, ask(PROMPT, 8)))
        await eventually(lambda: cluster.gateway.status().requests.queued == 1)
        second.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await second
        assert cluster.gateway.status().requests.queued == 0
        hold.open()
        assert (await first).token_ids[0] == expected(PROMPT, 8)
        await cluster.idle()


# --- admission ------------------------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_with_a_hint_and_serves_the_rest() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=3, queue=1) as cluster:
        hold = cluster.engine("decode-0").hold(1)
        first = asyncio.create_task(run(cluster, ask(PROMPT, 8)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        second = asyncio.create_task(run(cluster, ask(PROMPT, 8)))
        await eventually(lambda: cluster.gateway.status().requests.queued == 1)
        with pytest.raises(RequestRejected) as refused:
            await run(cluster, ask(PROMPT, 8))
        assert refused.value.retry_after_s >= 1
        hold.open()
        for task in (first, second):
            assert (await task).token_ids[0] == expected(PROMPT, 8)
        await cluster.idle()
        assert cluster.gateway.status().requests.rejected == 1


async def test_a_burst_on_an_idle_worker_does_not_promise_its_blocks_twice() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=3) as cluster:
        hold = cluster.engine("prefill-0").hold("prefill")
        tasks = [asyncio.create_task(run(cluster, ask(PROMPT, 8))) for _ in range(3)]
        await asyncio.wait_for(hold.reached.wait(), 20)
        assert cluster.gateway.status().requests.queued == 2
        hold.open()
        for task in tasks:
            assert (await task).token_ids[0] == expected(PROMPT, 8)
        await cluster.idle()


async def test_a_further_choice_is_not_refused_by_a_full_queue() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=3, queue=0) as cluster:
        reply = await run(cluster, ask(PROMPT, 8, n=3))
        assert reply.token_ids == dict.fromkeys(range(3), expected(PROMPT, 8))
        await cluster.idle()


async def test_without_workers_the_caller_is_reported() -> None:
    async with cluster_of() as cluster:
        with pytest.raises(NoReadyWorker):
            await run(cluster, ask(PROMPT, 8))


@pytest.mark.parametrize(("worker", "point"), [("prefill-0", "prefill"), ("decode-0", "import"), ("decode-0", 3)])
async def test_a_deadline_ends_both_legs(pair: Cluster, worker: str, point: str | int) -> None:
    hold = pair.engine(worker).hold(point)
    task = asyncio.create_task(run(pair, ask(PROMPT, 8, deadline_s=1.0)))
    await asyncio.wait_for(hold.reached.wait(), 20)
    with pytest.raises(DeadlineExceeded):
        await task
    await pair.idle()


# --- slow readers ---------------------------------------------------------------------------------------------------


async def test_a_slow_reader_gets_few_large_deltas(pair: Cluster) -> None:
    reply = Reply()
    stream = pair.gateway.generate(ask(PROMPT, 100))
    decode = pair.engine("decode-0")
    hold = decode.hold(50)
    async for event in stream:
        reply.take(event)
        if len(reply.deltas) == 2:  # decode is at work: read no more until it is done
            hold.open()
            await eventually(lambda: not decode.load().running_requests)
            await eventually(lambda: not pair.gateway.model.fleet.workers["decode-0"].legs)
    assert reply.token_ids[0] == expected(PROMPT, 100)
    assert len(reply.deltas) <= 4


# --- failures -------------------------------------------------------------------------------------------------------


async def test_a_dead_decode_worker_costs_time_and_no_token() -> None:
    async with cluster_of("prefill-0", "decode-0", "decode-1") as cluster:
        hold = cluster.engine("decode-0").hold(5)
        task = asyncio.create_task(run(cluster, ask(PROMPT, 12, logprobs=1)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        await cluster.kill("decode-0")
        reply = await task
        assert reply.token_ids[0] == expected(PROMPT, 12)
        rows = [row.chosen.token_id for delta in reply.deltas for row in delta.logprobs]
        assert rows == expected(PROMPT, 12)
        assert reply.summary.retries == 1
        assert reply.summary.workers.decode == "decode-1"
        await cluster.idle()


async def test_a_prefill_worker_that_dies_before_its_kv_is_read_is_replaced() -> None:
    async with cluster_of("prefill-0", "prefill-1", "decode-0") as cluster:
        hold = cluster.engine("decode-0").hold("import")
        task = asyncio.create_task(run(cluster, ask(PROMPT, 12)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        await cluster.kill("prefill-0")
        hold.open()
        reply = await task
        assert reply.token_ids[0] == expected(PROMPT, 12)
        assert reply.summary.retries == 1
        assert reply.summary.workers.prefill == "prefill-1"
        await cluster.idle()


async def test_blocks_that_are_gone_are_prefilled_again(pair: Cluster) -> None:
    hold = pair.engine("decode-0").hold("import")
    task = asyncio.create_task(run(pair, ask(PROMPT, 12)))
    await asyncio.wait_for(hold.reached.wait(), 20)
    pair.engine("prefill-0").leases.clear()  # as when the lease ran out
    hold.open()
    reply = await task
    assert reply.token_ids[0] == expected(PROMPT, 12)
    assert reply.summary.retries == 1
    await pair.idle()


async def test_a_dead_decode_worker_during_prefill_leaves_no_block_behind() -> None:
    async with cluster_of("prefill-0", "decode-0", "decode-1") as cluster:
        prefill = cluster.engine("prefill-0")
        hold, prefill.deaf = prefill.hold("prefill"), True
        task = asyncio.create_task(run(cluster, ask(PROMPT, 6)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        await cluster.kill("decode-0")
        hold.open()
        assert (await task).token_ids[0] == expected(PROMPT, 6)
        await cluster.idle()


async def test_an_abort_nobody_asked_for_is_a_failure(pair: Cluster) -> None:
    decode = pair.engine("decode-0")
    hold = decode.hold(3)
    task = asyncio.create_task(run(pair, ask(PROMPT, 8)))
    await asyncio.wait_for(hold.reached.wait(), 20)
    await decode.abort(decode.started[0].leg_id)
    assert (await task).token_ids[0] == expected(PROMPT, 8)
    await pair.idle()


@pytest.mark.parametrize("error", [EngineFailed("broke"), RuntimeError("a bug")])
async def test_a_broken_leg_is_run_again(pair: Cluster, error: Exception) -> None:
    decode = pair.engine("decode-0")
    decode.fail_next, decode.fail_after = error, 3
    reply = await run(pair, ask(PROMPT, 8))
    assert reply.token_ids[0] == expected(PROMPT, 8)
    assert reply.summary.retries == 1
    await pair.idle()


async def test_what_the_engine_refuses_fails_the_request_alone(pair: Cluster) -> None:
    prefill = pair.engine("prefill-0")
    prefill.fail_next = InvalidRequest("no such grammar")
    with pytest.raises(InvalidRequest, match="no such grammar"):
        await run(pair, ask(PROMPT, 8))
    assert (await run(pair, ask(PROMPT, 8))).token_ids[0] == expected(PROMPT, 8)
    await pair.idle()


async def test_retries_end(pair: Cluster) -> None:
    prefill = pair.engine("prefill-0")
    prefill.fail_next, prefill.fail_times = EngineFailed("broke"), 3
    with pytest.raises(EngineFailed, match="broke"):
        await run(pair, ask(PROMPT, 8))
    assert len(prefill.started) == 3
    assert (await run(pair, ask(PROMPT, 8))).token_ids[0] == expected(PROMPT, 8)
    await pair.idle()


async def test_a_draining_decode_worker_gives_the_ticket_back() -> None:
    async with cluster_of("prefill-0", "decode-0", "decode-1") as cluster:
        # It refuses before the gateway can have learned of the drain.
        cluster.workers["decode-0"].service._refuses_from_s = 0.0
        reply = await run(cluster, ask(PROMPT, 8))
        assert reply.token_ids[0] == expected(PROMPT, 8)
        await cluster.idle()
        assert not cluster.engine("prefill-0").leases


async def test_a_new_incarnation_takes_the_place_of_the_old_one() -> None:
    async with cluster_of("prefill-0", "decode-0") as cluster:
        assert (await run(cluster, ask(PROMPT, 8))).token_ids[0] == expected(PROMPT, 8)
        old = cluster.workers["decode-0"]
        hold = old.engine.hold(4)
        task = asyncio.create_task(run(cluster, ask(PROMPT, 12)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        old.engine.die()
        await cluster.add("decode-0")
        cluster.publish()  # the same name, at once, under another incarnation
        await old.server.stop(0)
        reply = await task
        assert reply.token_ids[0] == expected(PROMPT, 12)
        assert "decode-0" in cluster.gateway.model.fleet.workers
        await cluster.idle()


# --- figures --------------------------------------------------------------------------------------------------------


async def test_status_and_metrics_agree(pair: Cluster) -> None:
    for _ in range(2):
        await run(pair, ask(PROMPT, 5))
    with pytest.raises(InvalidRequest):
        await run(pair, ask([], 5))
    status = pair.gateway.status()
    assert (status.requests.finished, status.requests.failed, status.requests.rejected) == (2, 1, 0)
    assert [worker.worker_id for worker in status.workers] == ["decode-0", "prefill-0"]
    assert status.cluster == "local"
    pair.gateway.refresh_gauges()
    page = generate_latest(pair.gateway.metrics.registry).decode()
    for line in (
        'baton_requests_finished_total{model="fake",reason="FINISH_REASON_LENGTH"} 2.0',
        'baton_requests_failed_total{error="InvalidRequest",model="fake"} 1.0',
        'baton_tokens_total{model="fake",phase="answer"} 10.0',
        f'baton_tokens_total{{model="fake",phase="prompt"}} {2 * len(PROMPT)}.0',
        'baton_ttft_seconds_count{model="fake"} 2.0',
        'baton_handoff_seconds_count{model="fake"} 2.0',
        'baton_in_flight_requests{model="fake",state="decoding"} 0.0',
        'baton_workers{model="fake",pool="decode",state="ready"} 1.0',
    ):
        assert line in page.splitlines()


async def test_timings_grow_from_queue_to_last_token(pair: Cluster) -> None:
    timings = (await run(pair, ask(PROMPT, 6))).summary.timings
    order = [
        timings.queue_s,
        timings.prefill_start_s,
        timings.first_token_s,
        timings.handoff_start_s,
        timings.decode_first_token_s,
        timings.last_token_s,
    ]
    assert order == sorted(order)
    assert timings.transfer_start_s >= timings.first_token_s


def test_the_fake_is_sensitive_to_every_token() -> None:
    assert len({next_token([*PROMPT[:index], 1, *PROMPT[index + 1 :]]) for index in range(len(PROMPT))}) > 8
