"""Tools as clients send them, recorded, through the HTTP server and the whole gateway; the model's output is scripted.

Rows 7, 8 and 22 of what clients failed at. The openai package reads the replies, whole and streamed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import openai
import pytest

from baton.v1 import inference_pb2 as pb
from interface.http.completions.request import read_chat_call
from interface.http.server import serve_http
from tests.fakes.backend import FakeBackend
from tests.fakes.calling_cluster import CALL, OUTPUT, calling_cluster
from tests.fakes.live_cluster import Cluster
from tests.interface.conftest import SETTINGS

MODEL = "fake"
HELLO: list[Any] = [{"role": "user", "content": "Go on and look at the weather, please."}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather of a city", "parameters": SCHEMA},
}
STRICT: dict[str, Any] = {
    "type": "function",
    "function": {**WEATHER["function"], "strict": True, "parameters": {**SCHEMA, "additionalProperties": False}},
}
NAMED = {"type": "function", "function": {"name": "weather"}}


@contextlib.asynccontextmanager
async def serving(output: Sequence[int] = OUTPUT) -> AsyncIterator[tuple[Cluster, openai.AsyncOpenAI, str]]:
    async with calling_cluster(output=output) as cluster:
        runner, port = await serve_http(cluster.gateway, SETTINGS)
        url = f"http://127.0.0.1:{port}/v1"
        try:
            async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
                yield cluster, client, url
        finally:
            await runner.cleanup()


def check_calls(calls: Any, count: int = 1) -> None:
    assert [(call.type, call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("function", "weather", {"city": "Bern STOP"})
    ] * count
    assert len({call.id for call in calls}) == count and all(call.id for call in calls)


CLIENTS: dict[str, dict[str, Any]] = {
    "plain, auto": {"tools": [WEATHER]},
    "instructor TOOLS": {"tools": [WEATHER], "tool_choice": NAMED},
    "instructor TOOLS_STRICT": {"tools": [STRICT], "tool_choice": NAMED},
    "instructor PARALLEL_TOOLS": {"tools": [WEATHER], "tool_choice": "auto"},
    "LangChain bind_tools any": {"tools": [WEATHER], "tool_choice": "required"},
    "LangChain with_structured_output": {"tools": [WEATHER], "tool_choice": NAMED, "parallel_tool_calls": False},
    "LlamaIndex structured_predict": {"tools": [STRICT], "tool_choice": "required", "parallel_tool_calls": False},
    "AI SDK toolChoice required": {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Weather of a city",
                    "parameters": {"$schema": "http://json-schema.org/draft-07/schema#", **SCHEMA},
                },
            }
        ],
        "tool_choice": "required",
    },
    "OpenRouter's cache_control": {"tools": [{**WEATHER, "cache_control": {"type": "ephemeral"}}]},
}


@pytest.mark.parametrize("body", CLIENTS.values(), ids=CLIENTS)
async def test_a_whole_reply_has_the_call(body: dict[str, Any]) -> None:
    async with serving() as (_, client, _url):
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=200, **body)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert (choice.message.content, choice.message.reasoning) == ("I look.\n", "Hm.")
        check_calls(choice.message.tool_calls)
        assert answer.usage.completion_tokens == len(OUTPUT)


@pytest.mark.parametrize("body", [CLIENTS["plain, auto"], CLIENTS["LangChain bind_tools any"]])
async def test_a_stream_has_the_call(body: dict[str, Any]) -> None:
    async with serving() as (_, client, _url):
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=200, stream=True, stream_options={"include_usage": True}, **body
        )
        chunks = [chunk async for chunk in stream]
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert deltas[0].role == "assistant" and all(delta.role is None for delta in deltas[1:])
        assert "".join(delta.content or "" for delta in deltas) == "I look.\n"
        pieces = [piece for delta in deltas for piece in delta.tool_calls or ()]
        assert (pieces[0].index, pieces[0].type, pieces[0].function.name) == (0, "function", "weather")
        assert pieces[0].id and all(piece.id is None and piece.function.name is None for piece in pieces[1:])
        assert json.loads("".join(piece.function.arguments for piece in pieces)) == {"city": "Bern STOP"}
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert reasons[-1] == "tool_calls" and not any(reasons[:-1])
        assert chunks[-1].usage.completion_tokens == len(OUTPUT)


async def test_the_clients_own_accumulator_reads_calls() -> None:
    output = [*CALL.encode(), 10, *CALL.encode(), 0]
    async with (
        serving(output) as (_, client, _url),
        client.chat.completions.stream(model=MODEL, messages=HELLO, max_tokens=300, tools=[STRICT]) as stream,
    ):
        events = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in events
    assert final.choices[0].message.content is None
    check_calls(final.choices[0].message.tool_calls, 2)


async def test_a_loop_of_five_calls_ends_with_an_answer() -> None:
    """Each turn's call goes back with its result, as agents do it; the model answers in words in the end."""
    messages = list(HELLO)
    for turn in range(6):
        output = [*(CALL if turn < 5 else "Bern is cold.").encode(), 0]
        async with serving(output) as (cluster, client, _url):
            answer = await client.chat.completions.create(
                model=MODEL, messages=messages, max_tokens=200, tools=[WEATHER]
            )
            message = answer.choices[0].message
            seen = cluster.gateway.model.front.tokenizer.decode(cluster.engine("prefill-0").started[-1].token_ids)
            assert seen.count("tool:12 C;") == turn
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            break
        check_calls(message.tool_calls)
        messages.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12 C"})
    assert (turn, message.content, answer.choices[0].finish_reason) == (5, "Bern is cold.", "stop")


async def test_chunks_of_calls_are_as_openai_writes_them() -> None:
    output = [*b"I look.", *CALL.encode(), 0]
    async with serving(output) as (_, _client, url), aiohttp.ClientSession() as session:
        body = {"model": MODEL, "messages": HELLO, "max_tokens": 200, "tools": [WEATHER], "stream": True}
        async with session.post(f"{url}/chat/completions", json={**body, "logprobs": True}) as reply:
            lines = (await reply.text()).split("\n\n")
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
    [call] = [chunk for chunk in chunks if "tool_calls" in chunk["delta"]]
    [piece] = call["delta"]["tool_calls"]
    assert piece.pop("id").startswith("chatcmpl-tool-")
    arguments = '{"city": "Bern STOP"}'
    assert piece == {"index": 0, "type": "function", "function": {"name": "weather", "arguments": arguments}}
    # Log-probabilities are the content's.
    tokens = [row["token"] for chunk in chunks for row in (chunk["logprobs"] or {}).get("content") or ()]
    assert "".join(tokens) == "I look."


async def test_none_leaves_what_looks_like_a_call_as_text() -> None:
    async with serving() as (_, client, _url):
        answer = await client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=200, tools=[WEATHER], tool_choice="none"
        )
        message = answer.choices[0].message
        assert (message.tool_calls, answer.choices[0].finish_reason) == (None, "stop")
        assert CALL in (message.content or "")


# --- reading the request --------------------------------------------------------------------------------------------


def read(**body: Any) -> pb.Chat:
    return read_chat_call({"model": MODEL, "messages": HELLO, **body}).requests[0].chat


def test_tools_are_read() -> None:
    chat = read(tools=[STRICT, {"function": {"name": "f", "parameters": None}}], parallel_tool_calls=False)
    first, second = chat.tools
    assert (first.name, first.description, first.strict) == ("weather", "Weather of a city", True)
    assert json.loads(first.parameters_json) == STRICT["function"]["parameters"]
    assert (second.name, second.parameters_json, second.HasField("strict")) == ("f", "", False)
    assert not chat.HasField("tool_choice") and chat.parallel_tool_calls is False


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("none", pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)),
        ("auto", pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO)),
        ("required", pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)),
        (NAMED, pb.ToolChoice(name="weather")),
    ],
)
def test_a_choice_is_read(choice: Any, wanted: pb.ToolChoice) -> None:
    assert read(tools=[WEATHER], tool_choice=choice).tool_choice == wanted


@pytest.mark.parametrize("body", [{"tool_choice": "auto"}, {"tool_choice": "none", "parallel_tool_calls": True}])
def test_without_tools_a_choice_of_none_says_nothing(body: dict[str, Any]) -> None:
    assert read(**body) == read()


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("tools[0]", {"tools": ["f"]}),
        ("tools[0].type", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
        ("tools[0].function", {"tools": [{"type": "function"}]}),
        ("tools[0].function.name", {"tools": [{"function": {}}]}),
        ("tools[0].function.wat", {"tools": [{"function": {"name": "f", "wat": 1}}]}),
        ("tool_choice", {"tool_choice": "always"}),
        ("tool_choice", {"tool_choice": 3}),
        ("tool_choice.type", {"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}),
        ("tool_choice.function", {"tool_choice": {"type": "function"}}),
        ("tool_choice.function.name", {"tool_choice": {"type": "function", "function": {}}}),
    ],
)
async def test_malformed_tools_are_refused_by_name(field: str, body: dict[str, Any]) -> None:
    runner, port = await serve_http(FakeBackend(), SETTINGS)
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=HELLO, extra_body=body)
    await runner.cleanup()
    assert refused.value.param == field
