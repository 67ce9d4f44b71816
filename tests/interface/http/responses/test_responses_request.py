"""Bodies of `/v1/responses` as clients send them, and what the gateway makes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest
from interface.http.responses.request import ResponsesCall, read_responses_call

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def read(**body: Any) -> ResponsesCall:
    return read_responses_call({"model": "m", "input": "Hi", **body}, request_id="r", lookup=lambda _: None)


def turns(call: ResponsesCall) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in call.requests[0].chat.messages]


OPENAI_AGENTS: dict[str, Any] = {
    "model": "m",
    "instructions": "You help.",
    "include": ["reasoning.encrypted_content"],
    "input": [
        {"content": "Weather?", "role": "user"},
        {
            "id": "rs_1",
            "summary": [],
            "type": "reasoning",
            "content": [{"text": "Look it up", "type": "reasoning_text"}],
        },
        {
            "id": "fc_1",
            "call_id": "call_1",
            "name": "weather",
            "arguments": '{"city":"Ulm"}',
            "type": "function_call",
            "status": "completed",
        },
        {
            "id": "fc_2",
            "call_id": "call_2",
            "name": "weather",
            "arguments": '{"city":"Bonn"}',
            "type": "function_call",
            "status": "completed",
        },
        {"call_id": "call_1", "output": "12 C", "type": "function_call_output"},
        {"call_id": "call_2", "output": "9 C", "type": "function_call_output"},
    ],
    "parallel_tool_calls": True,
    "stream": True,
    "tool_choice": "auto",
    "tools": [
        {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            "strict": True,
            "type": "function",
            "description": "",
        }
    ],
    "store": False,
}

AI_SDK: dict[str, Any] = {
    "model": "m",
    "input": [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "One"}, {"type": "input_text", "text": "two"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Yes"}], "id": "msg_1"},
        {"role": "user", "content": [{"type": "input_text", "text": "Go on"}]},
    ],
    "temperature": 0,
    "max_output_tokens": 99,
    "text": {
        "format": {
            "type": "json_schema",
            "strict": True,
            "name": "response",
            "description": "d",
            "schema": {"type": "object"},
        }
    },
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}],
    "tool_choice": {"type": "function", "name": "f"},
    "stream": True,
}

LANGCHAIN: dict[str, Any] = {
    "model": "m",
    "input": [
        {"content": "Be brief", "role": "system", "type": "message"},
        {"content": "Hi", "role": "user", "type": "message"},
        {
            "type": "message",
            "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
            "role": "assistant",
        },
        {"content": "3 + 4", "role": "user", "type": "message"},
    ],
    "reasoning": {"effort": "medium", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "stream": False,
    "user": None,
}


def test_what_openai_agents_sends() -> None:
    call = read_responses_call(OPENAI_AGENTS, lookup=lambda _: None)
    assert turns(call) == [
        ("system", "You help."),
        ("user", "Weather?"),
        ("assistant", ""),
        ("tool", "12 C"),
        ("tool", "9 C"),
    ]
    chat = call.requests[0].chat
    assert chat.messages[2].reasoning == "Look it up"
    assert [(each.id, each.arguments) for each in chat.messages[2].tool_calls] == [
        ("call_1", '{"city":"Ulm"}'),
        ("call_2", '{"city":"Bonn"}'),
    ]
    assert chat.tool_choice.mode == pb.ToolChoice.MODE_AUTO
    assert (chat.tools[0].name, chat.tools[0].strict, chat.parallel_tool_calls) == ("weather", True, True)
    assert (call.stream, call.store) == (True, False)
    assert call.opaque_reasoning
    assert call.ignored == {"input.id", "input.status"}


def test_what_ai_sdk_sends() -> None:
    call = read_responses_call(AI_SDK, lookup=lambda _: None)
    assert turns(call) == [
        ("developer", "Be brief"),
        ("user", "One\ntwo"),
        ("assistant", "Yes"),
        ("user", "Go on"),
    ]
    [request] = call.requests
    assert request.chat.tool_choice.name == "f"
    assert (request.sampling.max_tokens, request.sampling.temperature) == (99, 0)
    assert json.loads(request.sampling.structured_output.json_schema) == {"type": "object"}
    assert call.shown["text"]["format"]["name"] == "response"


def test_what_langchain_sends() -> None:
    call = read_responses_call(LANGCHAIN, lookup=lambda _: None)
    assert turns(call) == [("system", "Be brief"), ("user", "Hi"), ("assistant", "Hello"), ("user", "3 + 4")]
    assert call.requests[0].reasoning == pb.Reasoning(effort=pb.EFFORT_MEDIUM)
    assert call.shown["reasoning"] == {"effort": "medium", "summary": None}


def item(kind: str, text: str) -> dict[str, Any]:
    return {
        "reasoning": {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": text}]},
        "text": {"role": "assistant", "content": text},
        "call": {"type": "function_call", "call_id": text, "name": "f", "arguments": ""},
        "user": {"role": "user", "content": text},
    }[kind]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["reasoning", "text", "call", "call"], [("1", "0", ["2", "3"])]),
        (["text", "reasoning", "text"], [("0", "", []), ("2", "1", [])]),
        (["call", "text"], [("", "", ["0"]), ("1", "", [])]),
        (["reasoning", "reasoning"], [("", "0", []), ("", "1", [])]),
        (["text", "user", "call"], [("0", "", []), ("", "", ["2"])]),
    ],
)
def test_items_become_the_turns_that_the_model_wrote(kinds: list[str], expected: list[Any]) -> None:
    call = read(input=[item(kind, str(index)) for index, kind in enumerate(kinds)], tools=[TOOL])
    found = [
        (message.content, message.reasoning, [each.id for each in message.tool_calls])
        for message in call.requests[0].chat.messages
        if message.role == "assistant"
    ]
    assert found == expected


def test_only_the_allowed_tools_reach_the_model() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    call = read(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    chat = call.requests[0].chat
    assert [tool.name for tool in chat.tools] == ["g"]
    assert chat.tool_choice.mode == pb.ToolChoice.MODE_REQUIRED
    assert call.shown["tool_choice"] == choice
    assert len(call.shown["tools"]) == 2


def test_harmless_fields_pass_and_are_counted() -> None:
    call = read(
        truncation="auto",
        max_tool_calls=3,
        service_tier="auto",
        safety_identifier="s",
        prompt_cache_retention="24h",
        prompt_cache_options={"ttl": "30m"},
        stream=True,
        stream_options={"include_obfuscation": False},
        prompt_cache_key="mine",
        x_mine=1,
    )
    assert call.ignored == {
        "max_tool_calls",
        "service_tier",
        "safety_identifier",
        "prompt_cache_retention",
        "prompt_cache_options",
        "stream_options.include_obfuscation",
        "x-*",
    }
    assert call.requests[0].session == "mine"
    assert call.shown["truncation"] == "disabled"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ["Hi"]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": None}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": "a", "colour": 1}]}, "input[0].colour"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
            "input[0].encrypted_content",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": []}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"include": ["wat"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"truncation": "middle"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True, "store": False}, "background"),
        ({"stream_options": {}}, "stream_options"),
        ({"n": 2}, "n"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"wat": 1}, "wat"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(**body)
    assert refused.value.field == field
