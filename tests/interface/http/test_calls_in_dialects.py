"""Tool calls as the core parses them, in the two dialects of agents: real clients, a real gateway, scripted engines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai

from interface.http.server import serve_http
from tests.fakes.calling_cluster import OUTPUT, calling_cluster, hermes
from tests.interface.conftest import SETTINGS

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ASKED = "Go on and look at the weather, please."
INPUT = {"city": "Bern STOP"}


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, str]]:
    """The address of a gateway whose model calls a tool, and the model's name."""
    hermes()  # seconds in which the cluster, were it there, would be silent
    async with calling_cluster() as made:
        runner, port = await serve_http(made.gateway, SETTINGS)
        try:
            yield f"http://127.0.0.1:{port}", made.gateway.models()[0].name
        finally:
            await runner.cleanup()
        await made.idle()


async def test_messages() -> None:
    async with (
        serving() as (url, model),
        anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client,
    ):
        turns: list[Any] = [{"role": "user", "content": ASKED}]
        ask: dict[str, Any] = {
            "model": model,
            "max_tokens": 200,
            "tools": [{"name": "weather", "description": "Weather of a city", "input_schema": SCHEMA}],
            "extra_body": {"temperature": 0.0},
        }
        whole = await client.messages.create(**ask, messages=turns)
        async with client.messages.stream(**ask, messages=turns) as stream:
            streamed = await stream.get_final_message()
        for message in (whole, streamed):
            thinking, text, use = message.content
            assert (thinking.thinking, text.text, use.name, use.input) == ("Hm.", "I look.\n", "weather", INPUT)
            assert message.stop_reason == "tool_use"
            assert message.usage.output_tokens == len(OUTPUT)
            assert message.usage.output_tokens_details.thinking_tokens == 5
        counted = await client.messages.count_tokens(model=model, messages=turns, tools=ask["tools"])
        assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "9 C"}
        turns += [{"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
        assert (await client.messages.create(**ask, messages=turns)).stop_reason == "tool_use"


async def test_responses() -> None:
    async with (
        serving() as (url, model),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
        ask: dict[str, Any] = {"model": model, "tools": [tool], "temperature": 0.0, "max_output_tokens": 200}
        whole = await client.responses.create(**ask, input=ASKED)
        async with client.responses.stream(**ask, input=ASKED) as stream:
            streamed = await stream.get_final_response()
        for response in (whole, streamed):
            reasoning, message, call = response.output
            assert (reasoning.content[0].text, message.content[0].text) == ("Hm.", "I look.\n")
            assert (call.name, json.loads(call.arguments), response.status) == ("weather", INPUT, "completed")
            assert response.usage.output_tokens == len(OUTPUT)
            assert response.usage.output_tokens_details.reasoning_tokens == 5
        result: Any = {"type": "function_call_output", "call_id": whole.output[-1].call_id, "output": "9 C"}
        more = await client.responses.create(**ask, input=[result], previous_response_id=whole.id)
        assert more.output[-1].type == "function_call"
        assert more.usage.input_tokens > whole.usage.input_tokens
        forbidden = await client.responses.create(**ask, input=ASKED, tool_choice="none")
        assert all(item.type != "function_call" for item in forbidden.output)
