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
