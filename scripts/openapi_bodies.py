"""Samples of every body that the HTTP interface reads: a dialect is an entry of `BODIES`, and its samples say it all.

Each field that a reader asks for while it reads the samples is in the document, by name and type. So samples must take
every branch of a reader; what a reader takes as it comes (`Fields.raw`) has its schema in ``overrides``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from interface.http.completions.request import read_chat_call, read_completion_call
from interface.http.messages.request import read_count_call, read_messages_call
from interface.http.responses.request import read_responses_call
from interface.http.tokens import read_detokenize_call, read_tokenize_call
from scripts.openapi_recorder import Schema

TEXT: Schema = {"type": "string"}
TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1}


@dataclass(frozen=True, slots=True)
class Body:
    """How the body of one path is read.

    ``read`` is its reader, ``samples`` bodies that it takes, ``required`` the fields without which it refuses one, and
    ``overrides`` schemas by the path of a field within the body.
    """

    read: Callable[[Any], Any]
    samples: tuple[dict[str, Any], ...]
    required: tuple[str, ...]
    overrides: dict[str, Schema] = field(default_factory=dict)


def either(*schemas: Schema) -> Schema:
    """One of these, or null."""
    return {"anyOf": [*schemas, {"type": "null"}]}


def array(items: Schema, *, at_least: int = 0) -> Schema:
    """An array of these."""
    return {"type": "array", "items": items, **({"minItems": at_least} if at_least else {})}


MODEL = "smollm2-135m-instruct"
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}

GENERATION = (
    {"temperature": 0.7, "top_p": 0.9, "max_tokens": 64, "stop": ["\n"], "seed": 7},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}},
    {"structured_outputs": {"regex": "(yes|no)"}},
    {"reasoning": {"effort": "low", "exclude": True}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"stream": True, "stream_options": {"include_usage": True}},
)
"""Of chats and completions alike, without their input."""
GENERATION_OVERRIDES: dict[str, Schema] = {
    "model": TEXT,
    "stop": either(TEXT, array(TEXT)),
    "structured_outputs.json": either(TEXT, {"type": "object"}),
    "guided_json": either(TEXT, {"type": "object"}),
    "response_format.json_schema": either({"$at": "response_format.json_schema"}),
    "response_format.json_schema.schema": {"anyOf": [TEXT, {"type": "object"}]},
    "response_format.type": {"enum": ["text", "json_object", "json_schema"]},
}

MESSAGE_CONTENT = either(TEXT, array({"anyOf": [TEXT, {"$at": "messages[].content[]"}]}))
CHAT_OVERRIDES: dict[str, Schema] = {
    "messages": array({"$at": "messages[]"}, at_least=1),
    "messages[].content": MESSAGE_CONTENT,
    "messages[].tool_calls": either(array({"type": "object"})),
    "tool_choice": either({"enum": ["none", "auto", "required"]}, {"$at": "tool_choice"}),
    "kv_transfer_params": {"not": {}},
    "inference_scaling.options": either({"type": "object", "additionalProperties": TEXT}),
}
CHAT_TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", **TOOL}]},
    {"role": "tool", "tool_call_id": "c1", "content": "9 degrees"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    {"role": "user", "content": "Thanks."},
]
QUESTION = {"messages": [{"role": "user", "content": "Why is the sky blue?"}]}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
VOTE = {
    "strategy": "vote",
    "samples": {"min": 2, "max": 8},
    "budget": {"tokens": 4000},
    "answer": {"last_number": True},
    "options": {},
}
CHAT = (
    QUESTION,
    {"messages": CHAT_TURNS, "tools": [TOOL]},
    {**QUESTION, "tools": [TOOL], "tool_choice": NAMED},
    {**QUESTION, "inference_scaling": VOTE},
)
SCALING = {"samples": {"max": 4}, "budget": {"usd": 0.02}, "answer": {"last_number": True}}

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Oslo?"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Ask.", "signature": "x"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "9"}], "is_error": False},
            {"type": "text", "text": "So?"},
        ],
    },
]
ANTHROPIC_TOOL = {"name": "get_weather", "description": "Weather of a city", "input_schema": {"type": "object"}}
BLOCKS = either(TEXT, array({"$at": "messages[].content[]"}))
MESSAGES_OVERRIDES: dict[str, Schema] = {
    **GENERATION_OVERRIDES,
    "messages": array({"$at": "messages[]"}, at_least=1),
    "messages[].role": {"enum": ["user", "assistant", "system"]},
    "messages[].content": BLOCKS,
    "messages[].content[].content": either(TEXT, array({"$at": "messages[].content[].content[]"})),
    "system": either(TEXT, array({"$at": "system[]"})),
    "metadata.user_id": either(TEXT),
}
MESSAGES = (
    {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "stop_sequences": ["\n"]},
    {"messages": TURNS, "system": [{"type": "text", "text": "You are terse."}], "tools": [ANTHROPIC_TOOL]},
    {
        "messages": TURNS[1:2],
        "tools": [ANTHROPIC_TOOL],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    },
    {
        "messages": TURNS[1:2],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        "metadata": {"user_id": "u1"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
    },
    {"messages": TURNS[1:2], "thinking": {"type": "enabled", "budget_tokens": 1024}, "chat_template_kwargs": {"a": 1}},
    {"messages": TURNS[1:2], "output_format": {"type": "json_schema", "schema": SCHEMA}},
    {"messages": TURNS[1:2], **GENERATION[2]},
    {"messages": TURNS[1:2], **GENERATION[3]},
)


FUNCTION = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": True}
ITEMS = [
    {"role": "developer", "content": "Be brief."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather in Oslo?"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Ask."}]},
    {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "9 degrees"},
]
ASKED = {"input": "Why is the sky blue?"}
RESPONSES = (
    {**ASKED, "instructions": "Be brief.", "max_output_tokens": 64, "store": False},
    {"input": ITEMS, "tools": [FUNCTION], "tool_choice": {"type": "function", "name": "get_weather"}},
    {
        **ASKED,
        "tools": [FUNCTION],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
    },
    {**ASKED, "text": {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA}}},
    {**ASKED, "stream": True, "stream_options": {"include_obfuscation": False}},
    {**ASKED, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    *({**ASKED, **more} for more in GENERATION[1:5]),
)
RESPONSES_OVERRIDES: dict[str, Schema] = {
    **GENERATION_OVERRIDES,
    "input": {"anyOf": [TEXT, array({"$at": "input[]"}, at_least=1)]},
    "input[].content": either(TEXT, array({"$at": "input[].content[]"})),
    "input[].output": either(TEXT, array({"$at": "input[].content[]"})),
    "tool_choice": either({"enum": ["auto", "required", "none"]}, {"$at": "tool_choice"}),
    "truncation": {"enum": ["auto", "disabled", None]},
}


def _named(*samples: dict[str, Any], **fields: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"model": MODEL, **sample, **fields} for sample in samples)


BODIES: dict[str, Body] = {
    "/v1/chat/completions": Body(
        read_chat_call,
        _named(*CHAT, *({**CHAT[0], **more} for more in (*GENERATION, {"inference_scaling": SCALING}))),
        ("model", "messages"),
        GENERATION_OVERRIDES | CHAT_OVERRIDES,
    ),
    "/v1/completions": Body(
        read_completion_call,
        _named(*({"prompt": "The sky is", **more} for more in GENERATION), {"prompt": [[1, 2]], "echo": True}),
        ("model", "prompt"),
        GENERATION_OVERRIDES
        | {
            "prompt": {
                "anyOf": [
                    TEXT,
                    array(TEXT, at_least=1),
                    array(TOKEN, at_least=1),
                    array(array(TOKEN, at_least=1), at_least=1),
                ]
            },
            "kv_transfer_params": {"not": {}},
        },
    ),
    "/v1/messages": Body(
        read_messages_call, _named(*MESSAGES, max_tokens=64), ("model", "messages", "max_tokens"), MESSAGES_OVERRIDES
    ),
    "/v1/messages/count_tokens": Body(read_count_call, _named(*MESSAGES), ("model", "messages"), MESSAGES_OVERRIDES),
    "/v1/responses": Body(
        partial(read_responses_call, lookup=lambda _: None),
        _named(*RESPONSES),
        ("model", "input"),
        RESPONSES_OVERRIDES,
    ),
    "/tokenize": Body(
        read_tokenize_call,
        _named(*CHAT[:3], {"prompt": "The sky is"}),
        (),
        CHAT_OVERRIDES | {"messages": either(array({"$at": "messages[]"}, at_least=1))},
    ),
    "/detokenize": Body(read_detokenize_call, _named({"tokens": [504, 6376, 314]}), ("tokens",)),
}
