"""A gateway goes on from the tokens that a caller got of another one."""

from __future__ import annotations

import dataclasses

import pytest

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest, WorkerDied
from orchestrator.request.resume import fingerprint
from tests.fakes.live_cluster import Cluster, Reply, ask, cluster_of, expected, run
from tests.fakes.tokenizer import END_THINK, THINK

PROMPT = [ord(char) for char in "What one hand drops another one picks up, exactly."]
COUNT = 12


def resume(request: pb.GenerateRequest, ids: list[int], **fields: int) -> pb.GenerateRequest:
    again = pb.GenerateRequest()
    again.CopyFrom(request)
    again.resume.CopyFrom(pb.Resume(token_ids=ids, **fields))
    return again


async def cut_and_resumed(request: pb.GenerateRequest, cut: int) -> tuple[Reply, Reply, Reply]:
    """The whole generation, what came up to the ``cut``-th delta, and what a second gateway makes of that."""
    async with cluster_of("prefill-0", "decode-0") as cluster:
        whole = await run(cluster, request)
        before = Reply()
        for delta in whole.deltas[:cut]:
            before.take(pb.GenerateResponse(delta=delta))
    async with cluster_of("prefill-0", "decode-0") as cluster:
        ids = before.token_ids.get(0, [])
        print_of = fingerprint(list(request.prompt_token_ids.ids))
        after = await run(cluster, resume(request, ids, prompt_fingerprint=print_of))
        await cluster.idle()
    return whole, before, after


REQUESTS = {
    "plain": ask(PROMPT, COUNT),
    "stop string over the cut": ask(PROMPT, COUNT, stop=[bytes(expected(PROMPT, 6)[3:6]).decode()]),
    "stop string kept": ask(
        PROMPT, COUNT, stop=[bytes(expected(PROMPT, 6)[3:6]).decode()], include_stop_in_output=True
    ),
    "stop string not before min_tokens": ask(
        PROMPT, COUNT, stop=[bytes(expected(PROMPT, 6)[3:6]).decode()], min_tokens=8
    ),
    "stop token": ask(PROMPT, COUNT, stop_token_ids=[expected(PROMPT, 5)[4]]),
    "reasoning within its budget": ask([*PROMPT, THINK], COUNT, reasoning=pb.Reasoning(budget_tokens=50)),
    "closed at its budget": ask([*PROMPT, THINK], COUNT, reasoning=pb.Reasoning(budget_tokens=3)),
    "logprobs": ask(PROMPT, COUNT, logprobs=2),
    "repetition penalty": ask(PROMPT, COUNT, repetition_penalty=1.1),
}


@pytest.mark.parametrize("cut", [0, 1, 2, 4, 5, 7, 12])
@pytest.mark.parametrize("name", sorted(REQUESTS))
async def test_what_comes_after_the_cut_is_what_would_have_come(name: str, cut: int) -> None:
    whole, before, after = await cut_and_resumed(REQUESTS[name], cut)
    assert before.token_ids.get(0, []) + after.token_ids.get(0, []) == whole.token_ids[0]
    assert before.text.get(0, "") + after.text.get(0, "") == whole.text[0]
    assert after.summary.finish_reason == whole.summary.finish_reason
    assert after.summary.usage.reasoning_tokens == whole.summary.usage.reasoning_tokens
    assert after.summary.usage.answer_tokens == whole.summary.usage.answer_tokens
    assert after.deltas[-1].stop_matched == whole.deltas[-1].stop_matched
    assert after.summary.resumed_tokens == len(before.token_ids.get(0, []))
    rows = [row.chosen.token_id for reply in (before, after) for delta in reply.deltas for row in delta.logprobs]
    assert rows == (whole.token_ids[0] if name == "logprobs" else [])


async def test_only_the_summary_is_missing(pair: Cluster) -> None:
    request = ask(PROMPT, COUNT)
    end = pb.FINISH_REASON_LENGTH
    reply = await run(pair, resume(request, expected(PROMPT, COUNT), finish_reason=end))
    assert not reply.deltas
    assert reply.summary.finish_reason == end
    assert reply.summary.usage.answer_tokens == COUNT
    assert not pair.engine("prefill-0").started


async def test_a_ledger_that_ends_in_the_end_of_sequence_is_done(pair: Cluster) -> None:
    eos = expected(PROMPT, 4)[3]
    pair.gateway.model.front = dataclasses.replace(pair.gateway.model.front, eos_ids=frozenset([eos]))
    reply = await run(pair, resume(ask(PROMPT, COUNT), expected(PROMPT, 4)))
    assert reply.summary.finish_reason == pb.FINISH_REASON_STOP
    assert not reply.token_ids.get(0)
    reply = await run(pair, resume(ask(PROMPT, COUNT, ignore_eos=True), expected(PROMPT, 4)))
    assert reply.token_ids[0] == expected(PROMPT, COUNT)[4:]


async def test_a_ledger_at_the_end_of_its_budget_is_closed_and_answered(pair: Cluster) -> None:
    request = ask([*PROMPT, THINK], COUNT, reasoning=pb.Reasoning(budget_tokens=4))
    whole = await run(pair, request)
    reply = await run(pair, resume(request, whole.token_ids[0][:4]))
    assert whole.token_ids[0][4] == END_THINK
    assert reply.token_ids[0] == whole.token_ids[0][4:]
    assert reply.summary.usage.reasoning_tokens == whole.summary.usage.reasoning_tokens == 5
    assert reply.summary.reasoning_closed


async def test_a_worker_may_die_after_a_resume_as_before_it() -> None:
    async with cluster_of("prefill-0", "decode-0", "decode-1") as cluster:
        cluster.engine("decode-0").fail_next = WorkerDied("gone")
        cluster.engine("decode-0").fail_after = 2
        reply = await run(cluster, resume(ask(PROMPT, COUNT), expected(PROMPT, 3)))
        assert reply.token_ids[0] == expected(PROMPT, COUNT)[3:]
        assert reply.summary.retries == 1
        await cluster.idle()


SCHEMA = pb.StructuredOutput(json_schema="{}")


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (ask(PROMPT, COUNT, presence_penalty=0.5), "presence_penalty"),
        (ask(PROMPT, COUNT, frequency_penalty=0.5), "frequency_penalty"),
        (ask(PROMPT, COUNT, bad_words=["x"]), "bad_words"),
        (ask(PROMPT, COUNT, seed=1, temperature=1.0), "seed"),
        (ask(PROMPT, COUNT, n=2), "several choices"),
        (ask(PROMPT, 2), "more than max_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_would_not_be_exact_is_refused_and_says_why(
    pair: Cluster, request_: pb.GenerateRequest, word: str
) -> None:
    with pytest.raises(InvalidRequest, match=word) as refused:
        await run(pair, resume(request_, expected(PROMPT, 3)))
    assert refused.value.field == "resume"
    await pair.idle()


async def test_a_grammar_is_refused(pair: Cluster) -> None:
    request = ask(PROMPT, COUNT)
    request.sampling.structured_output.CopyFrom(SCHEMA)
    with pytest.raises(InvalidRequest, match="structured_output"):
        await run(pair, resume(request, expected(PROMPT, 3)))


async def test_another_prompt_or_no_token_at_all_is_refused(pair: Cluster) -> None:
    with pytest.raises(InvalidRequest, match="other tokens here"):
        await run(pair, resume(ask(PROMPT, COUNT), expected(PROMPT, 3), prompt_fingerprint=1))
    with pytest.raises(InvalidRequest, match="vocabulary"):
        await run(pair, resume(ask(PROMPT, COUNT), [999_999]))
    with pytest.raises(InvalidRequest, match="unknown"):
        await run(pair, resume(ask(PROMPT, COUNT), [65], finish_reason=99))


async def test_the_reasoning_may_begin_with_the_output(pair: Cluster) -> None:
    """The budget is counted from the marker on in both engines: the ledger begins with it."""
    request = ask(PROMPT, COUNT, reasoning=pb.Reasoning(budget_tokens=50))
    reply = await run(pair, resume(request, [THINK, 65, 66, END_THINK, 67]))
    assert reply.summary.usage.reasoning_tokens == 4
    assert reply.summary.usage.answer_tokens == COUNT - 4
