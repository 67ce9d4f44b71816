"""The small reasoner thinks through prefill, handoff and decode as it does in one engine, and its answers are right."""

from __future__ import annotations

import asyncio

import pytest

from baton.v1 import inference_pb2 as pb
from models.problems import Problem, generate_many
from models.tokenizer import build_tokenizer
from models.verify import verify_answer
from orchestrator.gateway.gateway import Gateway
from tests.support.live_cluster import LiveCluster

pytestmark = pytest.mark.engine

PROBLEMS = [*generate_many(23, 160), *generate_many(24, 40, steps=12)]
AT_ONCE = 24


async def completions(gateway: Gateway, problems: list[Problem]) -> list[tuple[list[int], pb.ChoiceSummary]]:
    """Greedy token ids of each problem, asked as a chat, some at once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(problem: Problem) -> tuple[list[int], pb.ChoiceSummary]:
        request = pb.GenerateRequest(
            chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=problem.prompt)]),
            sampling=pb.Sampling(temperature=0.0, max_tokens=1100),
        )
        ids: list[int] = []
        async with gate:
            async for event in gateway.generate(request):
                if event.HasField("delta"):
                    ids += event.delta.token_ids
                if event.HasField("finished"):
                    return ids, event.finished.choices[0]
        raise AssertionError("the stream ended without `finished`")

    return await asyncio.gather(*(ask(problem) for problem in problems))


async def test_two_hundred_problems_are_answered_alike_through_the_handoff(cluster: LiveCluster) -> None:
    async with cluster.gateway("colocated") as colocated:
        expected = await completions(colocated, PROBLEMS)
    async with cluster.gateway("prefill", "decode") as gateway:
        got = await completions(gateway, PROBLEMS)
    for problem, (ids, summary), (wanted, _) in zip(PROBLEMS, got, expected, strict=True):
        assert ids == wanted, problem.prompt
        assert summary.workers.prefill == "prefill-0"
        assert summary.workers.decode.startswith("decode-")
    decode = build_tokenizer().decode
    right = sum(verify_answer(problem, decode(ids)) for problem, (ids, _) in zip(PROBLEMS, got, strict=True))
    assert right >= 0.9 * len(PROBLEMS)


async def test_votes_account_for_every_trace_and_leave_no_block(cluster: LiveCluster) -> None:
    """Whatever the model answers: one transfer a vote, tokens add up, and what is cancelled is given back."""
    scaling = pb.InferenceScaling(samples=pb.Samples(max=8), agree=0.9, return_candidates=True)

    async def vote(gateway: Gateway, problem: Problem) -> tuple[str, pb.Finished]:
        request = pb.GenerateRequest(
            chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=problem.prompt)]),
            sampling=pb.Sampling(temperature=0.7, max_tokens=1100),
            inference_scaling=scaling,
        )
        text = ""
        async for event in gateway.generate(request):
            if event.HasField("delta") and event.delta.phase == pb.PHASE_ANSWER:
                text += event.delta.text
            if event.HasField("finished"):
                return text, event.finished
        raise AssertionError("the stream ended without `finished`")

    async with cluster.gateway("prefill", "decode") as gateway:
        handoffs = sum(row.handoffs for row in gateway.model.fleet.pairs.rows())
        ended = await asyncio.gather(*(vote(gateway, problem) for problem in generate_many(25, 8, steps=8)))
        for text, finished in ended:
            account, usage = finished.inference_scaling, finished.usage
            counts = account.branches
            assert usage.reasoning_tokens + usage.answer_tokens == account.tokens.winner + account.tokens.losers
            assert counts.started == counts.finished + counts.cancelled + counts.failed
            assert not counts.failed
            assert sum(account.votes.values()) == counts.finished - counts.no_vote
            assert text in {candidate.text for candidate in account.candidates}
            assert account.stop_reason in ("agreed", "decided", "samples", "no_votes")
        assert sum(row.handoffs for row in gateway.model.fleet.pairs.rows()) - handoffs == len(ended)
        for worker in gateway.model.fleet.workers.values():
            assert not worker.reserved
        async with asyncio.timeout(45):  # the lease is 30 s
            while any(worker.load.used_blocks for worker in gateway.model.fleet.workers.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
