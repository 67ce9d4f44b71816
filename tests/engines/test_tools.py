"""Tool calls with real engines: forced by grammar, streamed through prefill and decode, in a loop as agents run it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from baton.v1 import inference_pb2 as pb
from tests.fakes.live_cluster import Reply
from tests.support.live_cluster import LiveCluster

pytestmark = pytest.mark.engine

STEPS = (3, 1, 4, 1, 5)
CITY = {"type": "object", "properties": {"city": {"enum": ["Bern", "Ulm"]}}, "required": ["city"]}


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "parameters": {**parameters, "additionalProperties": False}},
    }


def only(name: str, **values: int) -> dict[str, Any]:
    """A tool whose schema has one object."""
    properties = {key: {"type": "integer", "enum": [value]} for key, value in values.items()}
    return tool(name, {"type": "object", "properties": properties, "required": list(values)})


def streamed_call(client: openai.OpenAI, messages: list[Any], **fields: Any) -> tuple[Any, str]:
    """The message of a streamed reply, joined by the client's own accumulator, and why it ended."""
    with client.chat.completions.stream(
        model="reasoner", messages=messages, temperature=0, max_tokens=300, **fields
    ) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    return choice.message, choice.finish_reason


def test_a_loop_of_five_required_calls_ends_with_the_right_answer(cluster: LiveCluster) -> None:
    """The schemas leave one way, so the answer is right if they hold at every turn, whatever the model knows."""
    messages: list[Any] = [{"role": "user", "content": "3 + 4"}]
    total = 0
    with openai.OpenAI(base_url=f"{cluster.http}/v1", api_key="none", max_retries=0) as client:
        for step in STEPS:
            tools = [only("add", number=step), only("add_as_well", number=step)]
            message, reason = streamed_call(client, messages, tools=tools, tool_choice="required")
            assert reason == "tool_calls"
            call = message.tool_calls[0]
            assert call.function.name in ("add", "add_as_well")
            total += json.loads(call.function.arguments)["number"]
            messages += [
                {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude={"parsed_arguments"})]},
                {"role": "tool", "tool_call_id": call.id, "content": str(total)},
            ]
        named = {"type": "function", "function": {"name": "answer"}}
        tools = [only("answer", total=total), tool("other", CITY)]
        message, reason = streamed_call(client, messages, tools=tools, tool_choice=named)
        assert reason == "tool_calls"
        [call] = message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("answer", {"total": sum(STEPS)})


async def test_a_required_call_behind_the_reasoning_is_the_same_with_and_without_a_handoff(
    cluster: LiveCluster,
) -> None:
    schema = json.dumps({**CITY, "additionalProperties": False})
    request = pb.GenerateRequest(
        chat=pb.Chat(
            messages=[pb.ChatMessage(role="user", content="3 + 4")],
            tools=[pb.Tool(name="weather", parameters_json=schema)],
            tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED),
            parallel_tool_calls=False,
        ),
        sampling=pb.Sampling(temperature=0.0, max_tokens=300),
    )
    replies = []
    for roles in (("colocated",), ("prefill", "decode")):
        async with cluster.gateway(*roles) as gateway:
            reply = Reply()
            async for event in gateway.generate(request):
                reply.take(event)
            replies.append(reply)
    alone, handed_over = replies
    assert alone.token_ids == handed_over.token_ids
    for reply in replies:
        pieces = [piece for delta in reply.deltas for piece in delta.tool_calls]
        assert pieces[0].name == "weather"
        assert json.loads("".join(piece.arguments for piece in pieces))["city"] in ("Bern", "Ulm")
        assert reply.summary.finish_reason == pb.FINISH_REASON_TOOL_CALLS
        usage = reply.summary.usage
        assert usage.reasoning_tokens + usage.answer_tokens == len(reply.token_ids[0])
        assert usage.tool_call_tokens == usage.answer_tokens > 0
