"""Strategies over real worker services and fake engines: votes, budgets, accounts, cancels, and dead workers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import generate_latest

from baton.v1 import inference_pb2 as pb
from cluster.errors import DeadlineExceeded, EngineFailed, InvalidRequest, NoReadyWorker, RequestRejected
from tests.fakes.live_cluster import Cluster, Reply, ask, cluster_of, eventually
from tests.fakes.tokenizer import THINK

PROMPT = [65 + index % 26 for index in range(70)]
EVERYBODY = ("prefill-0", "decode-0", "decode-1")


def script(cluster: Cluster, *texts: str, prompt_tokens: int = len(PROMPT)) -> None:
    """Branch n writes the n-th text (the last one from then on)."""

    def next_of(leg: Any, state: Any, made: int) -> tuple[int, bool]:
        index = int(leg.leg_id.rsplit("/", 1)[0].rsplit(".", 2)[1])
        text = texts[min(index, len(texts) - 1)].encode()
        at = len(state.ledger) - prompt_tokens
        return text[min(at, len(text) - 1)], at + 1 >= len(text)

    for worker in cluster.workers.values():
        worker.engine._next = next_of  # type: ignore[method-assign]


def scaled(prompt: list[int] = PROMPT, max_tokens: int = 60, **fields: Any) -> pb.GenerateRequest:
    budget = pb.ScalingBudget(**fields.pop("budget", {}))
    samples = pb.Samples(min=fields.pop("least", 0), max=fields.pop("most", 0))
    known = {name: fields.pop(name) for name in list(fields) if name in pb.InferenceScaling.DESCRIPTOR.fields_by_name}
    scaling = pb.InferenceScaling(samples=samples, budget=budget, **known)
    return ask(prompt, max_tokens, inference_scaling=scaling, **fields)


async def run(cluster: Cluster, request: pb.GenerateRequest) -> tuple[Reply, list[pb.Progress]]:
    reply, progress = Reply(), []
    async with asyncio.timeout(30):
        async for event in cluster.gateway.generate(request):
            if event.HasField("progress"):
                progress.append(event.progress)
            reply.take(event)
    return reply, progress


def report(reply: Reply) -> pb.InferenceScalingReport:
    assert reply.finished is not None
    return reply.finished.inference_scaling


def accounts(reply: Reply, cluster: Cluster) -> None:
    """What was reported is what was made."""
    assert reply.finished is not None
    usage, tokens = reply.finished.usage, report(reply).tokens
    assert usage.reasoning_tokens + usage.answer_tokens == tokens.winner + tokens.losers
    counts = report(reply).branches
    assert counts.started == counts.finished + counts.cancelled + counts.failed


@pytest.fixture
async def three() -> AsyncIterator[Cluster]:
    async with cluster_of(*EVERYBODY, total_blocks=256) as cluster:
        yield cluster


# --- votes ------------------------------------------------------------------------------------------------------------


async def test_a_vote_stops_once_it_is_sure_and_gives_the_answer_of_the_first_that_had_it(three: Cluster) -> None:
    script(three, "so 41", "so 42", "well, 42.", "it is 42.0")
    reply, _ = await run(three, scaled(strategy="vote", most=16, answer=pb.AnswerFormat(last_number=True)))
    assert report(reply).votes == {"41": 1, "42": votes_of(reply, "42")}
    assert reply.text == {0: "so 42"}
    assert report(reply).stop_reason == "agreed"
    assert report(reply).confidence >= 0.95
    assert len(three.engine("prefill-0").started) == 1
    accounts(reply, three)
    await three.idle()


def votes_of(reply: Reply, answer: str) -> int:
    return report(reply).votes[answer]


async def test_four_equal_votes_are_enough_and_cost_four_traces(three: Cluster) -> None:
    script(three, "the answer is 7")
    reply, _ = await run(three, scaled(most=16, answer=pb.AnswerFormat(last_number=True)))
    assert report(reply).votes == {"7": 4}
    assert (report(reply).tokens.winner, report(reply).tokens.losers) == (15, 45)
    assert reply.finished is not None
    assert reply.finished.usage.answer_tokens == 60
    assert [choice.choice for choice in reply.finished.choices] == [0]
    assert reply.summary.usage.answer_tokens == 15
    page = generate_latest(three.gateway.metrics.registry).decode()
    assert 'baton_inference_scaling_requests_total{model="fake",reason="agreed",strategy="vote"} 1.0' in page
    assert 'baton_branch_tokens_total{model="fake",of="losers",strategy="vote"} 45.0' in page
    await three.idle()


async def test_losers_are_cancelled_and_their_blocks_are_free(three: Cluster) -> None:
    script(three, "a", "a", "a", "b" * 500)
    reply, _ = await run(three, scaled(most=4, least=4, agree=0.9, max_tokens=600))
    assert report(reply).branches == pb.BranchCounts(started=4, finished=3, cancelled=1)
    accounts(reply, three)
    await three.idle()


async def test_cut_traces_and_unread_answers_are_no_votes(three: Cluster) -> None:
    script(three, "no number", "5" * 100, "it is 5", "say 5", "so 5")
    reply, _ = await run(three, scaled(most=8, agree=0.9, answer=pb.AnswerFormat(last_number=True)))
    assert report(reply).votes == {"5": 3}
    assert report(reply).branches.no_vote == 2
    await three.idle()


async def test_candidates_and_progress_for_those_that_ask(three: Cluster) -> None:
    script(three, "x 1", "y 2", "z 1")
    request = scaled(most=3, agree=0.99, answer=pb.AnswerFormat(regex="[0-9]"), return_candidates=True, progress=True)
    reply, progress = await run(three, request)
    assert report(reply).stop_reason == "decided" if len(report(reply).votes) == 1 else "samples"
    assert {each.text for each in report(reply).candidates} <= {"x 1", "y 2", "z 1"}
    assert progress[-1].tokens == report(reply).tokens.winner + report(reply).tokens.losers
    assert {branch.state for branch in progress[-1].branches} <= {
        pb.BRANCH_STATE_FINISHED, pb.BRANCH_STATE_RUNNING, pb.BRANCH_STATE_CANCELLED,
    }  # fmt: skip
    quiet, none = await run(three, scaled(most=3))
    assert not none
    assert not report(quiet).candidates
    await three.idle()


async def test_each_branch_has_its_own_seed(three: Cluster) -> None:
    script(three, "1", "2", "3", "4")
    await run(three, scaled(most=4, least=4, seed=7, temperature=1.0))
    legs = three.engine("decode-0").started + three.engine("decode-1").started
    assert sorted({leg.sampling.seed for leg in legs}) == [7, 8, 9, 10]
    await three.idle()


# --- by confidence, and refinement ------------------------------------------------------------------------------------


async def test_best_of_n_scores_by_log_probabilities_that_the_caller_does_not_get(three: Cluster) -> None:
    # The fake's log-probability of a token falls with its id.
    script(three, "zzz", "AAA", "mmm")
    reply, _ = await run(three, scaled(strategy="best_of_n", most=3))
    assert reply.text == {0: "AAA"}
    assert not any(delta.logprobs for delta in reply.deltas)
    reply, _ = await run(three, scaled(strategy="best_of_n", most=3, logprobs=0))
    assert sum(len(delta.logprobs) for delta in reply.deltas) == 3
    await three.idle()


async def test_a_single_trace_streams_as_it_comes(three: Cluster) -> None:
    script(three, "one two three")
    kinds = [event.WhichOneof("event") async for event in three.gateway.generate(scaled(strategy="single"))]
    assert kinds[:3] == ["admitted", "first_token", "delta"]
    assert kinds[-1] == "finished"
    await three.idle()


async def test_refinement_goes_on_from_each_answer_on_the_same_worker(three: Cluster) -> None:
    for worker in three.workers.values():
        worker.engine._next = lambda leg, state, made: (65 + int(leg.leg_id.rsplit(".", 2)[1]), made == 3)  # type: ignore
    reply, _ = await run(three, scaled(strategy="refine"))
    assert report(reply).stop_reason == "revised"
    assert report(reply).branches.started == 3
    assert reply.text[0][:1] == "C"
    decoding = [name for name in ("decode-0", "decode-1") if three.engine(name).started]
    assert len(decoding) == 1
    revision = three.engine(decoding[0]).started[-1].token_ids
    assert revision[: len(PROMPT)] == PROMPT
    assert len(three.engine("prefill-0").started) == 1
    accounts(reply, three)
    await three.idle()


# --- budgets ----------------------------------------------------------------------------------------------------------


async def test_seconds_close_the_trace_and_the_answer_comes_in_time() -> None:
    async with cluster_of(*EVERYBODY, total_blocks=256, step_s=0.01) as cluster:
        cluster.gateway.model.pace.itl_s = 0.01
        prompt = [*PROMPT, THINK]
        request = scaled(prompt, 900, strategy="single", budget={"seconds": 2.5})
        reply, _ = await run(cluster, request)
        assert reply.summary.reasoning_closed
        assert report(reply).stop_reason == "seconds"
        assert report(reply).branches.finished == 1
        assert reply.summary.usage.answer_tokens > 0
        accounts(reply, cluster)
        await cluster.idle()


async def test_tokens_are_never_more_than_the_budget(three: Cluster) -> None:
    reply, _ = await run(three, scaled(most=8, budget={"tokens": 100}, max_tokens=60))
    assert reply.finished is not None
    assert reply.finished.usage.answer_tokens <= 100
    accounts(reply, three)
    await three.idle()


@pytest.mark.parametrize("name", ["tokens", "seconds"])
async def test_what_no_answer_fits_into_is_refused_with_the_least_that_would_do(three: Cluster, name: str) -> None:
    little: dict[str, Any] = {"tokens": 3, "seconds": 0.01}
    with pytest.raises(InvalidRequest, match="expected at least") as refused:
        await run(three, scaled(budget={name: little[name]}))
    assert refused.value.field == f"inference_scaling.budget.{name}"
    assert not three.engine("prefill-0").started


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"strategy": "mcts"}, "inference_scaling.strategy"),
        ({"most": 17}, "inference_scaling.samples.max"),
        ({"least": 5, "most": 4}, "inference_scaling.samples.min"),
        ({"agree": 1.0}, "inference_scaling.agree"),
        ({"budget": {"usd": 0.0}}, "inference_scaling.budget.usd"),
        ({"n": 2}, "sampling.n"),
        ({"options": {"weight": "x"}}, "inference_scaling.options.weight"),
    ],
)
async def test_what_cannot_be_is_refused(three: Cluster, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await run(three, scaled(**fields))
    assert refused.value.field == field
    await three.idle()


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", EVERYBODY)
async def test_a_vote_outlives_a_worker(victim: str) -> None:
    workers = (*EVERYBODY, "prefill-1")
    async with cluster_of(*workers, total_blocks=256, step_s=0.002) as cluster:
        script(cluster, *(["the answer is 12 or 7"] * 3), "the answer is 8 or 9", "so it is 7")
        answer = pb.AnswerFormat(last_number=True)
        votes = [asyncio.create_task(run(cluster, scaled(most=8, answer=answer))) for _ in range(6)]
        await eventually(lambda: len(cluster.engine("decode-0").started) > 2, "votes decode")
        await cluster.kill(victim)
        for task in votes:
            reply, _ = await task
            assert report(reply).votes["7"] > 3
            assert reply.text[0].endswith("7")
            accounts(reply, cluster)
        cluster.engine("prefill-1").leases.clear()  # of readers that died: they end with their lease
        if victim != "prefill-0":
            cluster.engine("prefill-0").leases.clear()
        await cluster.idle()


async def test_a_branch_that_fails_is_no_vote_and_the_others_go_on(three: Cluster) -> None:
    script(three, "fine 3")
    prefill = three.engine("prefill-0")
    prefill.fail_next, prefill.fail_times = EngineFailed("broke"), 3
    reply, _ = await run(three, scaled(most=8, agree=0.9, answer=pb.AnswerFormat(last_number=True)))
    assert report(reply).branches.failed == 1
    assert report(reply).votes == {"3": 3}
    accounts(reply, three)
    await three.idle()


async def test_where_every_branch_fails_the_caller_gets_the_error(three: Cluster) -> None:
    prefill = three.engine("prefill-0")
    prefill.fail_next, prefill.fail_times = EngineFailed("broke"), 1000
    with pytest.raises(EngineFailed, match="broke"):
        await run(three, scaled(most=3))
    await three.idle()


async def test_what_is_refused_is_refused_whole_and_no_branch_jumps_the_queue() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=5, queue=0) as cluster:
        hold = cluster.engine("decode-0").hold(3)
        first = asyncio.create_task(run(cluster, scaled(strategy="single", max_tokens=60)))
        await asyncio.wait_for(hold.reached.wait(), 20)
        with pytest.raises(RequestRejected):
            await run(cluster, scaled(most=4))
        assert cluster.gateway.status().requests.queued == 0
        hold.open()
        await first
        await cluster.idle()


async def test_what_the_engine_refuses_is_not_tried_by_every_branch(three: Cluster) -> None:
    prefill = three.engine("prefill-0")
    prefill.fail_next, prefill.fail_times = InvalidRequest("no such grammar"), 1000
    with pytest.raises(InvalidRequest, match="no such grammar"):
        await run(three, scaled(most=4))
    assert len(prefill.started) == 1
    await three.idle()


async def test_without_workers_the_caller_learns_it_at_once() -> None:
    async with cluster_of() as cluster:
        with pytest.raises(NoReadyWorker):
            await run(cluster, scaled(most=4))


async def test_the_deadline_ends_all(three: Cluster) -> None:
    hold = three.engine("decode-0").hold(3)
    task = asyncio.create_task(run(three, scaled(most=4, deadline_s=1.0)))
    await asyncio.wait_for(hold.reached.wait(), 20)
    with pytest.raises(DeadlineExceeded):
        await task
    await three.idle()


async def test_cancels_at_random_moments_leave_nothing(three: Cluster) -> None:
    draw = random.Random(17)
    names = ("vote", "best_of_n", "confident_vote", "refine", "single")

    async def one(number: int) -> None:
        request = scaled(strategy=draw.choice(names), max_tokens=draw.randrange(4, 60))
        task = asyncio.create_task(run(three, request))
        for _ in range(int(draw.expovariate(1 / 150))):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    for _ in range(12):
        await asyncio.gather(*(one(number) for number in range(8)))
    await three.idle()
    for worker in three.gateway.model.fleet.workers.values():
        assert not worker.sharers
    assert not three.gateway.model.runs
