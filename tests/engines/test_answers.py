"""What belongs to the answer, with real engines: a grammar behind the trace, and traces that are closed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from baton.v1 import inference_pb2 as pb
from models.problems import Problem, generate_many
from orchestrator.gateway.gateway import Gateway
from tests.fakes.live_cluster import Reply
from tests.support.live_cluster import LiveCluster

pytestmark = pytest.mark.engine

PROBLEMS = [*generate_many(61, 20), *generate_many(62, 4, steps=12)]
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
OBJECT = {"type": "object", "properties": {"answer": NUMBER}, "required": ["answer"], "additionalProperties": False}
END_THINK = 4
SLACK_TOKENS = 16
KINDS = {
    "number": pb.StructuredOutput(json_schema=json.dumps(NUMBER)),
    "json_schema": pb.StructuredOutput(json_schema=json.dumps(OBJECT)),
    "json_object": pb.StructuredOutput(json_object=True),
    "regex": pb.StructuredOutput(regex="=[0-9]{1,2}"),
    "grammar": pb.StructuredOutput(grammar='root ::= "=" [0-9] [0-9]?'),
    "choices": pb.StructuredOutput(choices=pb.StructuredOutput.Choices(values=[f"={n}" for n in range(100)])),
}


def request(problem: Problem, *, budget: int | None = None, **sampling: Any) -> pb.GenerateRequest:
    made = pb.GenerateRequest(
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=problem.prompt)]),
        sampling=pb.Sampling(**{"temperature": 0.0, "max_tokens": 600, **sampling}),
    )
    if budget is not None:
        made.reasoning.budget_tokens = budget
    return made


async def replies(gateway: Gateway, requests: list[pb.GenerateRequest]) -> list[Reply]:
    async def run(message: pb.GenerateRequest) -> Reply:
        reply = Reply()
        async for event in gateway.generate(message):
            reply.take(event)
        return reply

    return await asyncio.gather(*(run(message) for message in requests))


def split(reply: Reply) -> tuple[str, str]:
    """Reasoning and answer."""
    text = {True: "", False: ""}
    for delta in reply.deltas:
        text[delta.phase == pb.PHASE_REASONING] += delta.text
    return text[True], text[False]


@pytest.mark.parametrize("roles", [("colocated",), ("prefill", "decode")], ids=["alone", "handoff"])
async def test_an_answer_keeps_its_schema_and_the_trace_stays_as_it_was(
    cluster: LiveCluster, roles: tuple[str, ...]
) -> None:
    async with cluster.gateway(*roles) as gateway:
        plain = await replies(gateway, [request(problem) for problem in PROBLEMS])
        number, structured = [
            await replies(gateway, [request(problem, structured_output=KINDS[kind]) for problem in PROBLEMS])
            for kind in ("number", "json_schema")
        ]
    for problem, free, *bounds in zip(PROBLEMS, plain, number, structured, strict=True):
        trace, answer = split(free)
        end = free.token_ids[0].index(END_THINK)
        for bound in bounds:
            assert split(bound)[0] == trace, problem.prompt
            assert bound.token_ids[0][: end + 1] == free.token_ids[0][: end + 1]
            assert bound.summary.finish_reason == pb.FINISH_REASON_STOP
            assert not bound.summary.handoff.plain, "the first token is the trace's, and prefill's"
        given = [json.loads(split(bound)[1]) for bound in bounds]
        assert 0 <= given[0] <= 99
        assert list(given[1]) == ["answer"]
        if answer == str(problem.answer):  # of the schema by itself, so the schema changes nothing
            assert given[0] == problem.answer


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("number", "json_schema")])
async def test_every_kind_of_grammar_waits_for_the_answer(cluster: LiveCluster, kind: str) -> None:
    problems = PROBLEMS[:6]
    async with cluster.gateway("prefill", "decode") as gateway:
        plain = await replies(gateway, [request(problem) for problem in problems])
        bound = await replies(
            gateway, [request(problem, structured_output=KINDS[kind], max_tokens=400) for problem in problems]
        )
    for free, held in zip(plain, bound, strict=True):
        assert split(held)[0] == split(free)[0]
        assert split(held)[1].lstrip()[:1] == ("{" if kind == "json_object" else "=")


async def test_a_closed_trace_is_answered_and_the_grammar_holds(cluster: LiveCluster) -> None:
    problems = PROBLEMS[-12:]
    for share in (0.0, 0.05, 0.25, 0.9, 1.0):
        budgets = [round(share * len(problem.trace)) for problem in problems]
        asked = [request(problem, budget=budget) for problem, budget in zip(problems, budgets, strict=True)]
        bound = [pb.GenerateRequest.FromString(message.SerializeToString()) for message in asked]
        for message in bound:
            message.sampling.structured_output.CopyFrom(KINDS["json_schema"])
        async with cluster.gateway("colocated") as colocated, cluster.gateway("prefill", "decode") as gateway:
            alone, handed_over, structured = (
                await replies(colocated, asked),
                await replies(gateway, asked),
                await replies(gateway, bound),
            )
        for budget, here, there, held in zip(budgets, alone, handed_over, structured, strict=True):
            assert here.token_ids[0] == there.token_ids[0]
            assert list(json.loads(split(held)[1])) == ["answer"]
            for reply in (here, held):
                assert reply.summary.usage.reasoning_tokens <= budget + SLACK_TOKENS
                assert split(reply)[1]
                assert "think>" not in split(reply)[1]


async def test_an_answer_fits_into_max_tokens_and_logprobs_go_with_their_tokens(cluster: LiveCluster) -> None:
    [problem] = generate_many(63, 1, steps=12)
    async with cluster.gateway("prefill", "decode") as gateway:
        for most in (1, 8, 60):
            [reply] = await replies(gateway, [request(problem, max_tokens=most, logprobs=1)])
            assert split(reply)[1]
            assert reply.summary.reasoning_closed
            rows = [row.chosen.token_id for delta in reply.deltas for row in delta.logprobs]
            assert rows == reply.token_ids[0]


async def test_stop_strings_and_negative_seeds(cluster: LiveCluster) -> None:
    [problem] = generate_many(64, 1, steps=12)
    stop = problem.trace[30:36]
    async with cluster.gateway("prefill", "decode") as gateway:
        [whole, free, stopped] = await replies(
            gateway,
            [request(problem), request(problem, stop=[stop]), request(problem, stop=[stop], stop_in_reasoning=True)],
        )
        assert free.token_ids == whole.token_ids
        assert stopped.deltas[-1].stop_matched == stop
        assert split(whole)[0].startswith(split(stopped)[0])
        seeded = request(problem, seed=-1, temperature=2.0, n=2, max_tokens=40)
        first, again = [(await replies(gateway, [seeded]))[0] for _ in range(2)]
        assert first.token_ids == again.token_ids
