"""Bodies of `/v1/messages` as clients send them, and what the gateway makes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest
from interface.http.messages.request import MessagesCall, read_count_call, read_messages_call

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "f", "input_schema": {"type": "object"}}
CACHED = {"type": "ephemeral", "ttl": "1h"}

CLAUDE_CODE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 32000,
    "stream": True,
    "temperature": 1,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.7; cch=0a1b2;"},
        {"type": "text", "text": "You are Claude Code.", "cache_control": CACHED},
        {"type": "text", "text": "Rules", "cache_control": CACHED},
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>dates</system-reminder>"},
                {"type": "text", "text": "Fix it", "cache_control": CACHED},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Read first", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "AAAA"},
                {"type": "text", "text": "Reading"},
                {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"file_path": "/a"}},
                {"type": "tool_use", "id": "toolu_2", "name": "Bash", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "text of a"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such file", "is_error": True},
                {"type": "text", "text": "Go on", "cache_control": CACHED},
            ],
        },
        {"role": "system", "content": "Todo list is empty"},
    ],
    "tools": [
        {
            "name": "Read",
            "description": "Reads a file",
            "input_schema": {"$schema": "x", "type": "object", "properties": {"file_path": {"type": "string"}}},
            "eager_input_streaming": True,
        },
        {"name": "Bash", "description": "Runs", "input_schema": {"properties": {}}, "cache_control": CACHED},
    ],
    "metadata": {"user_id": "user_0a_account__session_7f"},
    "thinking": {"type": "adaptive", "display": "summarized"},
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
}


def read(**body: Any) -> MessagesCall:
    return read_messages_call({"model": "m", "max_tokens": 9, "messages": HELLO, **body}, request_id="r")


def turns(chat: pb.Chat) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in chat.messages]


def test_what_claude_code_sends() -> None:
    call = read_messages_call(CLAUDE_CODE)
    [request] = call.requests
    chat = request.chat
    assert turns(chat) == [
        ("system", "You are Claude Code.\nRules"),
        ("user", "<system-reminder>dates</system-reminder>\nFix it"),
        ("assistant", "Reading"),
        ("tool", "text of a"),
        ("tool", "Error: no such file"),
        ("user", "Go on"),
        ("developer", "Todo list is empty"),
    ]
    assistant = chat.messages[2]
    assert assistant.reasoning == "Read first"
    assert [(each.id, each.name, each.arguments) for each in assistant.tool_calls] == [
        ("toolu_1", "Read", '{"file_path": "/a"}'),
        ("toolu_2", "Bash", "{}"),
    ]
    assert [message.tool_call_id for message in chat.messages[3:5]] == ["toolu_1", "toolu_2"]
    assert [tool.name for tool in chat.tools] == ["Read", "Bash"]
    assert json.loads(chat.tools[1].parameters_json) == {"type": "object", "properties": {}}
    assert (request.session, request.tenant) == ("user_0a_account__session_7f", "")
    assert request.reasoning.effort == pb.EFFORT_HIGH
    assert not chat.continue_final_message
    assert call.stream
    assert call.ignored == {
        "system.x-anthropic-billing-header",
        "messages.content.cache_control",
        "messages.content.redacted_thinking",
        "tools.cache_control",
        "tools.eager_input_streaming",
        "thinking.display",
        "context_management.clear_thinking",
    }


def test_a_prompt_of_the_next_turn_begins_with_this_one() -> None:
    """The header that differs in each request is not in it."""
    body = {**CLAUDE_CODE, "system": [{"type": "text", "text": "x-anthropic-billing-header: cch=other;"}, *_system()]}
    assert read_messages_call(body).requests[0].chat == read_messages_call(CLAUDE_CODE).requests[0].chat


def _system() -> list[Any]:
    system: list[Any] = CLAUDE_CODE["system"]
    return system[1:]


@pytest.mark.parametrize(
    ("body", "reasoning"),
    [
        ({}, pb.Reasoning()),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, pb.Reasoning(budget_tokens=1024, enabled=True)),
        ({"thinking": {"type": "disabled"}}, pb.Reasoning(effort=pb.EFFORT_NONE)),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, pb.Reasoning(exclude=True)),
        ({"output_config": {"effort": "max"}}, pb.Reasoning(effort=pb.EFFORT_MAX)),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2048}, "output_config": {"effort": "low"}},
            pb.Reasoning(budget_tokens=2048, enabled=True),
        ),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, pb.Reasoning(effort=pb.EFFORT_NONE)),
    ],
)
def test_thinking_and_effort(body: dict[str, Any], reasoning: pb.Reasoning) -> None:
    assert read(**body).requests[0].reasoning == reasoning


def test_an_effort_that_a_budget_outdoes_is_counted() -> None:
    both = {"thinking": {"type": "enabled", "budget_tokens": 2048}, "output_config": {"effort": "low"}}
    assert read(**both).ignored == {"output_config.effort"}


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_a_json_schema(name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "schema": schema}
    call = read(**{name: {"format": form} if name == "output_config" else form})
    assert json.loads(call.requests[0].sampling.structured_output.json_schema) == schema


def test_stop_sequences_and_the_final_turn() -> None:
    call = read(
        stop_sequences=["\n\nHuman:"],
        messages=[*HELLO, {"role": "assistant", "content": "The answer is ("}],
        chat_template_kwargs={"enable_thinking": False},
    )
    request = call.requests[0]
    assert list(request.sampling.stop) == ["\n\nHuman:"]
    assert request.chat.continue_final_message
    assert json.loads(request.chat.template_variables_json) == {"enable_thinking": False}


def test_turns_of_one_role_are_one() -> None:
    call = read(
        messages=[
            *HELLO,
            {"role": "user", "content": [{"type": "text", "text": "again"}]},
            {"role": "assistant", "content": "A"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]},
        ],
        tools=[TOOL],
    )
    assert turns(call.requests[0].chat) == [("user", "Hi\nagain"), ("assistant", "A"), ("tool", "")]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "a", "colour": 1}]}, "messages[0].colour"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]},
            "messages[0].content[0].id",
        ),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"system": 7}, "system"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "auto", "name": "f"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.type"),
        ({"thinking": {"type": "adaptive", "display": "all"}}, "thinking.display"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type"),
        ({"output_config": {"wat": 1}}, "output_config.wat"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0].type"),
        ({"metadata": {"user_id": 7}}, "metadata.user_id"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"n": 2}, "n"),
        ({"stop_sequences": "a"}, "stop_sequences"),
        ({"wat": 1}, "wat"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(**body)
    assert refused.value.field == field


def test_counting_needs_no_limit_of_tokens() -> None:
    request = read_count_call({"model": "m", "messages": HELLO, "thinking": {"type": "adaptive"}, "tools": [TOOL]})
    assert turns(request.chat) == [("user", "Hi")]
    assert len(request.chat.tools) == 1
