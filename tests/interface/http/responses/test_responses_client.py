"""The real `openai` client's Responses API against the HTTP server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from baton.v1 import inference_pb2 as pb
from cluster.errors import DeadlineExceeded, ModelNotFound, RequestRejected, WorkerDied
from tests.fakes.backend import MODEL, Stall, admitted, delta, reply, script
from tests.fakes.turns import call, conversation, text, thought, turn
from tests.interface.conftest import Edge

ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Adds two numbers",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    "strict": None,
}


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_a_response(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = reply(answer=("Hel", "lo"), reasoning=("Let me", " think"))
    response = await client.responses.create(
        model=MODEL,
        input="Hi",
        instructions="Be brief",
        temperature=0.5,
        max_output_tokens=64,
        reasoning={"effort": "low", "summary": "auto"},
        metadata={"a": "b"},
        user="me",
        extra_body={"top_k": 3},
    )
    assert response.output_text == "Hello"
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "Let me think"
    assert response.output[0].summary == []
    assert (response.status, response.model, response.instructions) == ("completed", MODEL, "Be brief")
    assert (response.temperature, response.max_output_tokens, response.reasoning.effort) == (0.5, 64, "low")
    assert (response.metadata, response.store, response.background) == ({"a": "b"}, True, False)
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (5, 4, 9)
    request = edge.backend.requests[0]
    assert [(turn.role, turn.content) for turn in request.chat.messages] == [("system", "Be brief"), ("user", "Hi")]
    assert request.reasoning.effort == pb.EFFORT_LOW
    assert (request.sampling.max_tokens, request.sampling.top_k, request.tenant) == (64, 3, "me")


async def test_a_stream(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = reply(answer=("Hel", "lo"), reasoning=("Hm",))
    kinds = []
    async with client.responses.stream(model=MODEL, input="Hi") as stream:
        async for event in stream:
            kinds.append(event.type)
        final = await stream.get_final_response()
    assert final.output_text == "Hello"
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


@pytest.mark.parametrize("by_id", [True, False])
async def test_five_calls_of_a_tool_and_the_answer(edge: Edge, client: openai.AsyncOpenAI, by_id: bool) -> None:
    """Streamed and whole by turns, by `previous_response_id` or by sending everything back."""
    edge.backend.script = conversation(
        *(turn(thought("Add"), text("Now"), call("add", a=number, b=1)) for number in range(5)), turn(text("5"))
    )
    ask: dict[str, Any] = {"model": MODEL, "tools": [ADD], "instructions": "Add"}
    items: list[Any] = [{"role": "user", "content": "Count"}]
    previous: Any = openai.omit
    for number in range(5):
        if number % 2:
            async with client.responses.stream(**ask, input=items, previous_response_id=previous) as stream:
                response = await stream.get_final_response()
        else:
            response = await client.responses.create(**ask, input=items, previous_response_id=previous)
        use = response.output[-1]
        assert (use.type, use.name, json.loads(use.arguments)) == ("function_call", "add", {"a": number, "b": 1})
        result = {"type": "function_call_output", "call_id": use.call_id, "output": str(number + 1)}
        if by_id:
            items, previous = [result], response.id
        else:
            items += [*(item.to_dict() for item in response.output), result]
    response = await client.responses.create(**ask, input=items, previous_response_id=previous)
    assert response.output_text == "5"
    sent = edge.backend.requests[-1].chat
    assert [message.role for message in sent.messages] == ["system", "user", *["assistant", "tool"] * 5]
    assert [message.content for message in sent.messages if message.role == "tool"] == ["1", "2", "3", "4", "5"]
    turns = [message for message in sent.messages if message.role == "assistant"]
    assert {(message.content, message.reasoning) for message in turns} == {("Now", "Add")}
    assert [json.loads(message.tool_calls[0].arguments)["a"] for message in turns] == [0, 1, 2, 3, 4]
    assert [message.tool_calls[0].id for message in turns] == [
        message.tool_call_id for message in sent.messages if message.role == "tool"
    ]
    assert len({request.session for request in edge.backend.requests}) == (1 if by_id else 6)


class Answer(BaseModel):
    """What the client's own parsing makes of a reply."""

    number: int


async def test_structured_output_by_the_clients_own_parsing(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = reply(answer=('{"number"', ":42}"))
    parsed = await client.responses.parse(model=MODEL, input="Hi", text_format=Answer)
    assert parsed.output_parsed == Answer(number=42)
    sampling = edge.backend.requests[0].sampling
    assert json.loads(sampling.structured_output.json_schema)["properties"]["number"]["type"] == "integer"


async def test_log_probabilities(edge: Edge, client: openai.AsyncOpenAI) -> None:
    response = await client.responses.create(
        model=MODEL, input="Hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    rows = response.output[0].content[0].logprobs
    assert [row.token for row in rows] == ["Hel", "lo"]
    assert [len(row.top_logprobs) for row in rows] == [2, 2]


async def test_a_stored_response_is_fetched_listed_and_deleted(edge: Edge, client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model=MODEL, input="Hi")
    assert await client.responses.retrieve(made.id) == made
    more = await client.responses.create(
        model=MODEL,
        previous_response_id=made.id,
        input=[{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}],
    )
    pages = [item async for item in client.responses.input_items.list(more.id, limit=1, order="asc")]
    assert [item.content[0].text for item in pages] == ["One", "Two"]
    assert len({item.id for item in pages}) == 2
    newest = await client.responses.input_items.list(more.id)
    assert [item.content[0].text for item in newest.data] == ["Two", "One"]
    await client.responses.delete(made.id)
    for fetch in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            await fetch(made.id)
    # A later response has what it needs.
    assert (await client.responses.create(model=MODEL, previous_response_id=more.id, input="On")).output_text


async def test_items_are_sent_back_by_reference(edge: Edge, client: openai.AsyncOpenAI) -> None:
    """As AI SDK does where responses are stored."""
    edge.backend.script = conversation(turn(thought("Hm"), call("add", a=1, b=2)), turn(text("3")))
    first = await client.responses.create(model=MODEL, input="1 + 2", tools=[ADD])
    references: list[Any] = [{"type": "item_reference", "id": item.id} for item in first.output]
    result = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "3"}
    await client.responses.create(
        model=MODEL, input=[{"role": "user", "content": "1 + 2"}, *references, result], tools=[ADD]
    )
    messages = edge.backend.requests[-1].chat.messages
    assert [message.role for message in messages] == ["user", "assistant", "tool"]
    assert (messages[1].reasoning, messages[1].tool_calls[0].name) == ("Hm", "add")


async def test_reasoning_comes_back_from_clients_that_store_nothing(edge: Edge, client: openai.AsyncOpenAI) -> None:
    """AI SDK sends a reasoning item's `encrypted_content` alone."""
    edge.backend.script = conversation(*[turn(thought("Hm ☃"), call("add", a=1, b=2)) for _ in range(3)])
    ask: Any = {"model": MODEL, "tools": [ADD], "store": False, "include": ["reasoning.encrypted_content"]}
    whole = await client.responses.create(**ask, input="1 + 2")
    async with client.responses.stream(**ask, input="1 + 2") as stream:
        streamed = await stream.get_final_response()
    for response in (whole, streamed):
        reasoning, use = response.output
        sent = [
            {"role": "user", "content": "1 + 2"},
            {"type": "reasoning", "id": reasoning.id, "summary": [], "encrypted_content": reasoning.encrypted_content},
            use.to_dict(),
            {"type": "function_call_output", "call_id": use.call_id, "output": "3"},
        ]
        edge.backend.script = conversation(turn(text("3")))
        await client.responses.create(**ask, input=sent)
        assert edge.backend.requests[-1].chat.messages[1].reasoning == "Hm ☃"


async def test_what_is_not_stored_is_not_found(edge: Edge, client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model=MODEL, input="Hi", store=False)
    assert made.store is False
    for more in ({"previous_response_id": made.id}, {"previous_response_id": "resp_nobody"}):
        with pytest.raises(openai.BadRequestError, match="Send the items") as refused:
            await client.responses.create(model=MODEL, input="Hi", **more)
        assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError, match="not stored here"):
        await client.responses.create(
            model=MODEL,
            input=[{"type": "item_reference", "id": made.output[0].id}],  # type: ignore[list-item]
        )


async def test_an_id_that_the_caller_chose_names_no_response(edge: Edge) -> None:
    body = {"model": MODEL, "input": "Hi"}
    ids = [(await edge.post("/v1/responses", body, **{"X-Request-Id": "mine"}))[1]["id"] for _ in range(2)]
    ids += [(await edge.post("/v1/responses", {**body, "request_id": "mine"}))[1]["id"]]
    assert len(set(ids)) == 3
    assert all("mine" not in each for each in ids)
    async with edge.session.post(f"{edge.url}/v1/responses", json=body) as answer:
        assert (await answer.json())["id"] == f"resp_{answer.headers['X-Request-Id']}"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModelNotFound("no such model"), openai.NotFoundError),
        (RequestRejected("full", retry_after_s=3), openai.RateLimitError),
        (DeadlineExceeded("late"), openai.InternalServerError),
        (WorkerDied("gone"), openai.InternalServerError),
    ],
)
async def test_errors(edge: Edge, client: openai.AsyncOpenAI, error: Exception, kind: type[Exception]) -> None:
    edge.backend.script = script(error)
    with pytest.raises(kind, match=str(error)):
        await client.responses.create(model=MODEL, input="Hi")
    with pytest.raises(kind, match=str(error)):
        await client.responses.create(model=MODEL, input="Hi", stream=True)


async def test_an_error_in_mid_stream_fails_the_response(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = script(admitted(), delta("Hel"), WorkerDied("no worker is left"))
    events = [event async for event in await client.responses.create(model=MODEL, input="Hi", stream=True)]
    assert events[-1].type == "response.failed"
    failed = events[-1].response
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "server_error", "no worker is left")
    assert failed.output[0].content[0].text == "Hel"


async def test_closing_the_stream_cancels(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = script(admitted(), delta("Hel"), Stall())
    stream = await client.responses.create(model=MODEL, input="Hi", stream=True)
    assert (await anext(aiter(stream))).type == "response.created"
    await stream.close()
    await asyncio.wait_for(edge.backend.cancelled.wait(), 2)
