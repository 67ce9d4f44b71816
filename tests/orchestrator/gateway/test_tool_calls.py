"""Tool calls through prefill and decode: parsed, counted, cut, moved, resumed, and forced by grammar."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from baton.v1 import inference_pb2 as pb
from tests.fakes.calling_cluster import CALL, OUTPUT, calling_cluster
from tests.fakes.live_cluster import Reply, eventually, run
from tests.fakes.tokenizer import END_THINK, THINK

WEATHER = pb.Tool(
    name="weather",
    description="Weather of a city",
    parameters_json='{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
)


def ask(
    *, sampling: dict[str, Any] | None = None, more: dict[str, Any] | None = None, **chat: Any
) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        chat=pb.Chat(
            messages=[pb.ChatMessage(role="user", content="Go on and look at the weather, please.")],
            **{"tools": [WEATHER], **chat},
        ),
        sampling=pb.Sampling(**{"temperature": 0.0, "max_tokens": 200, **(sampling or {})}),
        **(more or {}),
    )


def calls_of(deltas: Sequence[pb.Delta]) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        if piece.index == len(calls):
            assert piece.id
            calls.append((piece.name, ""))
        calls[piece.index] = (calls[piece.index][0], calls[piece.index][1] + piece.arguments)
    return calls


def text_of(deltas: Sequence[pb.Delta], phase: pb.Phase) -> str:
    return "".join(delta.text for delta in deltas if delta.phase == phase)


def check_whole(reply: Reply) -> None:
    assert reply.token_ids[0] == OUTPUT
    assert text_of(reply.deltas, pb.PHASE_REASONING) == "Hm."
    assert text_of(reply.deltas, pb.PHASE_ANSWER) == "I look.\n"
    assert text_of(reply.deltas, pb.PHASE_TOOL_CALL) == ""
    assert calls_of(reply.deltas) == [("weather", '{"city": "Bern STOP"}')]
    assert reply.deltas[-1].finish_reason == reply.summary.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    usage = reply.summary.usage
    in_calls = len(CALL) + 1
    assert (usage.reasoning_tokens, usage.answer_tokens) == (5, len(OUTPUT) - 5)
    assert usage.tool_call_tokens == in_calls
    assert sum(len(delta.token_ids) for delta in reply.deltas if delta.phase == pb.PHASE_TOOL_CALL) == in_calls


async def test_a_call_is_parsed_and_counted() -> None:
    async with calling_cluster() as made:
        reply = await run(made, ask())
        check_whole(reply)
        assert not reply.summary.handoff.plain
        assert reply.finished is not None and reply.finished.usage.tool_call_tokens == len(CALL) + 1
        assert made.gateway.models()[0].tools
        await made.idle()


@pytest.mark.parametrize("made_tokens", [6, 40])
async def test_a_lost_worker_is_not_seen(made_tokens: int) -> None:
    async with calling_cluster("prefill-0", "decode-0", "decode-1") as made:
        engines = {each: made.engine(each) for each in ("decode-0", "decode-1")}
        for engine in engines.values():
            engine.hold(made_tokens)
        task = asyncio.create_task(run(made, ask()))
        await eventually(lambda: any(engine.holds[made_tokens].reached.is_set() for engine in engines.values()))
        [lost] = [each for each, engine in engines.items() if engine.holds[made_tokens].reached.is_set()]
        for each, engine in engines.items():
            if each != lost:
                engine.holds.clear()
        await made.kill(lost)
        reply = await task
        check_whole(reply)
        assert reply.summary.retries == 1


async def test_a_move_is_not_seen() -> None:
    async with calling_cluster("prefill-0", "decode-0", "decode-1") as made:
        engines = {each: made.engine(each) for each in ("decode-0", "decode-1")}
        holds = {each: engine.hold(40) for each, engine in engines.items()}
        task = asyncio.create_task(run(made, ask()))
        await eventually(lambda: any(hold.reached.is_set() for hold in holds.values()))
        [source] = [each for each, hold in holds.items() if hold.reached.is_set()]
        made.workers[source].service.drain()
        await eventually(lambda: made.gateway.model.fleet.workers[source].load.draining)
        for each, engine in engines.items():
            engine.holds.clear()
            holds[each].open()
        reply = await task
        check_whole(reply)
        assert (reply.summary.moves, reply.summary.retries) == (1, 0)


async def test_a_resumed_stream_goes_on_in_a_call() -> None:
    async with calling_cluster() as made:
        whole = await run(made, ask())
        for count in range(1, len(whole.deltas)):
            had = whole.deltas[:count]
            resume = pb.Resume(
                token_ids=[token for delta in had for token in delta.token_ids],
                prompt_fingerprint=whole.admitted[0].prompt_fingerprint,
            )
            rest = await run(made, ask(more={"resume": resume}))
            joined = [*had, *rest.deltas]
            assert [token for delta in joined for token in delta.token_ids] == OUTPUT
            assert calls_of(joined) == calls_of(whole.deltas)
            assert text_of(joined, pb.PHASE_ANSWER) == "I look.\n"
            assert rest.summary.finish_reason == pb.FINISH_REASON_TOOL_CALLS
            assert rest.summary.usage.tool_call_tokens == len(CALL) + 1
        resume.token_ids[:] = OUTPUT
        resume.finish_reason = pb.FINISH_REASON_TOOL_CALLS
        ended = await run(made, ask(more={"resume": resume}))
        assert (ended.deltas, ended.summary.finish_reason) == ([], pb.FINISH_REASON_TOOL_CALLS)


async def test_a_call_that_is_cut_off_is_text_as_with_vllm() -> None:
    async with calling_cluster() as made:
        # With an end of sequence ignored, no tokens are kept for the answer.
        reply = await run(made, ask(sampling={"max_tokens": 60, "ignore_eos": True}))
        assert reply.summary.finish_reason == pb.FINISH_REASON_LENGTH
        assert calls_of(reply.deltas) == []
        assert text_of(reply.deltas, pb.PHASE_ANSWER) == bytes(OUTPUT[5:60]).decode()
        assert reply.summary.usage.tool_call_tokens == 0


async def test_stop_strings_count_in_the_answer_alone() -> None:
    async with calling_cluster() as made:
        check_whole(await run(made, ask(sampling={"stop": ["STOP", "Hm", "name"]})))
        reply = await run(made, ask(sampling={"stop": ["ook"]}))
        assert text_of(reply.deltas, pb.PHASE_ANSWER) == "I l"
        assert reply.deltas[-1].finish_reason == pb.FINISH_REASON_STOP
        assert (reply.deltas[-1].stop_matched, calls_of(reply.deltas)) == ("ook", [])


async def test_log_probabilities_stay_in_step() -> None:
    async with calling_cluster() as made:
        reply = await run(made, ask(sampling={"logprobs": 1}))
        rows = [(row.chosen.token_id, delta.phase) for delta in reply.deltas for row in delta.logprobs]
        assert rows == [(token, delta.phase) for delta in reply.deltas for token in delta.token_ids]


async def test_the_models_marker_never_lands_in_a_call_that_ends_the_reasoning() -> None:
    """The budget would be used up in the midst of the call (vLLM issue 44676)."""
    output = [THINK, *b"Hm.", *CALL.encode(), 0]
    async with calling_cluster(output=output) as made:
        reply = await run(made, ask(more={"reasoning": pb.Reasoning(budget_tokens=30)}))
        assert END_THINK not in reply.token_ids[0]
        assert calls_of(reply.deltas) == [("weather", '{"city": "Bern STOP"}')]
        assert (reply.summary.usage.reasoning_tokens, reply.summary.reasoning_closed) == (4, False)


# --- choice ---------------------------------------------------------------------------------------------------------


async def test_no_choice_leaves_calls_as_text() -> None:
    async with calling_cluster() as made:
        reply = await run(made, ask(tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)))
        assert text_of(reply.deltas, pb.PHASE_ANSWER) == f"I look.\n{CALL}\0"
        assert (calls_of(reply.deltas), reply.summary.finish_reason) == ([], pb.FINISH_REASON_STOP)


REQUIRED = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)


@pytest.mark.parametrize("choice", [REQUIRED, pb.ToolChoice(name="weather")])
async def test_a_forced_call_is_held_to_a_grammar_behind_the_reasoning(choice: pb.ToolChoice) -> None:
    async with calling_cluster() as made:
        reply = await run(made, ask(tool_choice=choice))
        assert calls_of(reply.deltas) == [("weather", '{"city": "Bern STOP"}')]
        assert len([piece for delta in reply.deltas for piece in delta.tool_calls]) > 5
        assert reply.summary.finish_reason == pb.FINISH_REASON_TOOL_CALLS
        [leg] = [leg for leg in made.engine("decode-0").started if leg.transfer_params][:1]
        tag = json.loads(leg.sampling.structured_output.structural_tag)
        assert "weather" in json.dumps(tag) and '"at_least_one": true' in json.dumps(tag)
        assert '"max_whitespace_cnt": 1' in json.dumps(tag)
        assert '"city"' in json.dumps(tag)  # vLLM itself would want `strict` for that
        assert (leg.reasoning_ended, leg.reasoning_end_ids) == (False, [END_THINK])


async def test_strict_tools_and_single_calls_are_held_to_a_grammar_by_choice_of_the_model() -> None:
    strict = pb.Tool()
    strict.CopyFrom(WEATHER)
    strict.strict = True
    async with calling_cluster() as made:
        for fields in ({"tools": [strict]}, {"parallel_tool_calls": False}):
            await run(made, ask(**fields))
            tag = made.engine("decode-0").started[-1].sampling.structured_output.structural_tag
            assert '"triggers": ["<tool_call>"]' in tag
            assert ('"stop_after_first": true' in tag) is ("parallel_tool_calls" in fields)
            assert ('"city"' in tag) is ("tools" in fields)


async def test_calls_beyond_the_first_are_left_out_where_they_are_not_parallel() -> None:
    output = [*CALL.encode(), 10, *CALL.encode(), 0]
    async with calling_cluster(output=output) as made:
        assert len(calls_of((await run(made, ask())).deltas)) == 2
        reply = await run(made, ask(parallel_tool_calls=False))
        assert len(calls_of(reply.deltas)) == 1
