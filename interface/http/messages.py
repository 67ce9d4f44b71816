"""Chat messages and tools of an OpenAI request. Pure."""

from __future__ import annotations

import json
from typing import Any

from baton.v1 import inference_pb2
from interface.http.fields import Fields, kind_of

_DROPPED = frozenset({"reasoning", "reasoning_content"})
"""An earlier turn's reasoning, as clients send a reply back. Chat templates of thinking models leave it out as well."""

_TEXT_PARTS = {"text": "text", "refusal": "refusal"}


def read_chat(fields: Fields) -> inference_pb2.Chat:
    """Take ``messages``, ``tools``, ``tool_choice`` and ``add_generation_prompt``.

    Raises:
        InvalidRequest: a field has the wrong type, or asks for what is not supported; the text says which.
    """
    messages = fields.items("messages")
    if not messages:
        raise fields.wrong("messages", "expected at least one message")
    chat = inference_pb2.Chat(messages=[_message(item, f"messages[{i}]") for i, item in enumerate(messages)])
    tools = _tools(fields)
    if tools:
        chat.tools_json = json.dumps(tools)
    add_generation_prompt = fields.flag("add_generation_prompt")
    if add_generation_prompt is not None:
        chat.add_generation_prompt = add_generation_prompt
    return chat


def _message(item: Any, path: str) -> inference_pb2.ChatMessage:
    fields = Fields(item, path)
    role = fields.text("role")
    if not role:
        raise fields.wrong("role", "missing")
    content = _content(fields)
    tool_calls = fields.items("tool_calls")
    if content is None and not tool_calls and role != "assistant":
        raise fields.wrong("content", "missing")
    message = inference_pb2.ChatMessage(
        role=role,
        content=content or "",
        name=fields.text("name") or "",
        tool_calls_json=json.dumps(tool_calls) if tool_calls else "",
        tool_call_id=fields.text("tool_call_id") or "",
    )
    fields.drop(_DROPPED)
    fields.refuse({"annotations": (([],), "is not supported")})
    fields.finish()
    return message


def _content(fields: Fields) -> str | None:
    value = fields.raw("content")
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong("content", f"expected a string or an array of parts, got {kind_of(value)}")
    return "\n".join(_part(part, f"{fields.name('content')}[{i}]") for i, part in enumerate(value))


def _part(part: Any, path: str) -> str:
    if isinstance(part, str):
        return part
    fields = Fields(part, path)
    kind = fields.text("type")
    if kind not in _TEXT_PARTS:
        raise fields.wrong("type", "only parts of type text are supported; the model takes text only")
    text = fields.text(_TEXT_PARTS[kind])
    if text is None:
        raise fields.wrong(_TEXT_PARTS[kind], "missing")
    fields.finish()
    return text


def _tools(fields: Fields) -> list[Any] | None:
    tools = fields.items("tools")
    if tools is not None and not all(isinstance(tool, dict) for tool in tools):
        raise fields.wrong("tools", "expected an array of objects")
    choice = fields.raw("tool_choice")
    if choice not in (None, "none", "auto"):
        raise fields.wrong("tool_choice", "only none and auto are supported; a call of a tool cannot be forced")
    return None if choice == "none" else tools
