"""The real `anthropic` client against the HTTP server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from baton.v1 import inference_pb2 as pb
from cluster.errors import DeadlineExceeded, ModelNotFound, RequestRejected, WorkerDied
from tests.fakes.backend import MODEL, Stall, admitted, delta, reply, script
from tests.fakes.turns import call, conversation, text, thought, turn
from tests.interface.conftest import Edge

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
ADD = {
    "name": "add",
    "description": "Adds two numbers",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
}
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 64, "messages": HELLO}


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key="any", max_retries=0) as client:
        yield client


async def test_models(client: anthropic.AsyncAnthropic) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_a_message(edge: Edge, client: anthropic.AsyncAnthropic) -> None:
    edge.backend.script = reply(answer=("Hel", "lo"), reasoning=("Let me", " think"))
    message = await client.messages.create(**ASK, system="Be brief", extra_body={"temperature": 0.5, "top_k": 3})
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.content[0].thinking, message.content[1].text) == ("Let me think", "Hello")
    assert (message.role, message.stop_reason, message.model) == ("assistant", "end_turn", MODEL)
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens, message.usage.output_tokens) == (3, 2, 4)
    request = edge.backend.requests[0]
    assert [(turn.role, turn.content) for turn in request.chat.messages] == [("system", "Be brief"), ("user", "Hi")]
    assert (request.sampling.max_tokens, request.sampling.top_k, request.sampling.temperature) == (64, 3, 0.5)
    assert message.id == f"msg_{request.request_id}"


async def test_a_stream(edge: Edge, client: anthropic.AsyncAnthropic) -> None:
    edge.backend.script = reply(answer=("Hel", "lo"), reasoning=("Hm",))
    kinds = []
    async with client.messages.stream(**ASK) as stream:
        async for event in stream:
            kinds.append(event.type)
        final = await stream.get_final_message()
    whole = await client.messages.create(**ASK)
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content]
    assert (final.content[0].thinking, final.content[1].text) == ("Hm", "Hello")
    assert final.content[0].signature
    assert (final.usage.output_tokens, final.stop_reason) == (whole.usage.output_tokens, whole.stop_reason)
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert {"thinking", "signature", "text"} <= set(kinds)


async def test_five_calls_of_a_tool_and_the_answer(edge: Edge, client: anthropic.AsyncAnthropic) -> None:
    """Streamed and whole by turns; what the model is sent grows by one call and its result each time."""
    edge.backend.script = conversation(
        *(turn(thought("Add"), text("Now"), call("add", a=number, b=1)) for number in range(5)), turn(text("5"))
    )
    messages = [*HELLO]
    for number in range(5):
        if number % 2:
            async with client.messages.stream(**{**ASK, "messages": messages}, tools=[ADD]) as stream:
                answer = await stream.get_final_message()
        else:
            answer = await client.messages.create(**{**ASK, "messages": messages}, tools=[ADD])
        assert answer.stop_reason == "tool_use"
        use = answer.content[-1]
        assert (use.type, use.name, use.input) == ("tool_use", "add", {"a": number, "b": 1})
        result = {"type": "tool_result", "tool_use_id": use.id, "content": str(use.input["a"] + use.input["b"])}
        messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    answer = await client.messages.create(**{**ASK, "messages": messages}, tools=[ADD])
    assert (answer.content[0].text, answer.stop_reason) == ("5", "end_turn")
    sent = edge.backend.requests[-1].chat
    assert [message.role for message in sent.messages] == ["user", *["assistant", "tool"] * 5]
    assert [message.content for message in sent.messages if message.role == "tool"] == ["1", "2", "3", "4", "5"]
    turns = [message for message in sent.messages if message.role == "assistant"]
    assert {(message.content, message.reasoning) for message in turns} == {("Now", "Add")}
    assert [json.loads(message.tool_calls[0].arguments)["a"] for message in turns] == [0, 1, 2, 3, 4]
    assert [message.tool_calls[0].id for message in turns] == [
        message.tool_call_id for message in sent.messages if message.role == "tool"
    ]
    assert json.loads(sent.tools[0].parameters_json) == ADD["input_schema"]


async def test_parallel_calls(edge: Edge, client: anthropic.AsyncAnthropic) -> None:
    edge.backend.script = conversation(turn(call("add", a=1, b=2), call("add", a=3, b=4)))
    async with client.messages.stream(**ASK, tools=[ADD]) as stream:
        final = await stream.get_final_message()
    assert [block.input for block in final.content] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    assert len({block.id for block in final.content}) == 2


@pytest.mark.parametrize(
    ("choice", "mode", "name", "parallel"),
    [
        ({"type": "auto"}, pb.ToolChoice.MODE_AUTO, "", None),
        ({"type": "any", "disable_parallel_tool_use": True}, pb.ToolChoice.MODE_REQUIRED, "", False),
        ({"type": "none"}, pb.ToolChoice.MODE_NONE, "", None),
        ({"type": "tool", "name": "add", "disable_parallel_tool_use": False}, 0, "add", True),
    ],
)
async def test_tool_choice(
    edge: Edge, client: anthropic.AsyncAnthropic, choice: Any, mode: int, name: str, parallel: bool | None
) -> None:
    await client.messages.create(**ASK, tools=[ADD], tool_choice=choice)
    chat = edge.backend.requests[0].chat
    assert (chat.tool_choice.mode, chat.tool_choice.name) == (mode, name)
    assert (chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else None) is parallel


async def test_count_tokens(edge: Edge, client: anthropic.AsyncAnthropic) -> None:
    counted = await client.messages.count_tokens(model=MODEL, messages=HELLO, system="Be brief", tools=[ADD])
    # The fake counts a bos, and a token for each byte of the messages.
    assert counted.input_tokens == 1 + len("Be briefHi")
    assert edge.backend.requests == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModelNotFound("no such model"), anthropic.NotFoundError),
        (RequestRejected("full", retry_after_s=3), anthropic.RateLimitError),
        (DeadlineExceeded("late"), anthropic.InternalServerError),
        (WorkerDied("gone"), anthropic.InternalServerError),
    ],
)
async def test_errors(edge: Edge, client: anthropic.AsyncAnthropic, error: Exception, kind: type[Exception]) -> None:
    edge.backend.script = script(error)
    with pytest.raises(kind, match=str(error)) as caught:
        await client.messages.create(**ASK)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["message"] == str(error)


async def test_an_error_in_mid_stream_is_raised(edge: Edge, client: anthropic.AsyncAnthropic) -> None:
    edge.backend.script = script(admitted(), delta("Hel"), WorkerDied("no worker is left"))
    stream = await client.messages.create(**ASK, stream=True)
    seen = []
    with pytest.raises(anthropic.APIStatusError, match="no worker is left"):
        async for event in stream:
            seen.append(event.type)
    assert seen == ["message_start", "content_block_start", "content_block_delta"]


async def test_the_client_waits_as_hinted_and_tries_again(edge: Edge) -> None:
    tries = iter([script(RequestRejected("full", retry_after_s=0.02)), reply()])
    edge.backend.script = lambda request: next(tries)(request)
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key="any", max_retries=1) as client:
        assert (await client.messages.create(**ASK)).content[0].text == "Hello"


async def test_closing_the_stream_cancels(edge: Edge, client: anthropic.AsyncAnthropic) -> None:
    edge.backend.script = script(admitted(), delta("Hel"), Stall())
    stream = await client.messages.create(**ASK, stream=True)
    assert (await anext(aiter(stream))).type == "message_start"
    await stream.close()
    await asyncio.wait_for(edge.backend.cancelled.wait(), 2)


async def test_unknown_paths_and_methods_in_anthropics_form(edge: Edge) -> None:
    async with edge.session.get(f"{edge.url}/v1/messages") as answer:
        assert answer.status == 405
        assert (await answer.json())["type"] == "error"
    status, answer_body = await edge.post("/v1/messages/batches", {})
    assert (status, answer_body["type"]) == (404, "error")
    status, answer_body = await edge.post("/v1/messages", [])
    assert (status, answer_body["error"]["type"]) == (400, "invalid_request_error")
