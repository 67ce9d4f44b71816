"""Chat messages, tools and what the chat template is given, of an OpenAI request. Pure."""

from __future__ import annotations

import json
from typing import Any

from baton.v1 import inference_pb2
from interface.http.fields import Fields, kind_of
from interface.http.known import HARMLESS_IN_MESSAGE, HARMLESS_IN_PART, HARMLESS_IN_TOOL

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_MODES = {
    "auto": inference_pb2.ToolChoice.MODE_AUTO,
    "none": inference_pb2.ToolChoice.MODE_NONE,
    "required": inference_pb2.ToolChoice.MODE_REQUIRED,
}
_MAY_BE_EMPTY = frozenset({"assistant", "tool", "function"})
"""Roles whose turn may have null for content: a call of a tool has none, and nor need its result."""


def read_chat(fields: Fields) -> inference_pb2.Chat:
    """Take ``messages``, ``tools``, ``tool_choice`` and what the chat template is given.

    Raises:
        InvalidRequest: a field has the wrong type, or asks for what is not supported; the text says which.
    """
    messages = fields.items("messages")
    if not messages:
        raise fields.wrong("messages", "expected at least one message")
    chat = inference_pb2.Chat(messages=[_message(fields, item, f"messages[{i}]") for i, item in enumerate(messages)])
    _put_tools(fields, chat)
    _put_rendering(fields, chat)
    return chat


def _put_rendering(fields: Fields, chat: inference_pb2.Chat) -> None:
    """How the template is to write the messages."""
    opens, goes_on = fields.flag("add_generation_prompt"), fields.flag("continue_final_message")
    if opens and goes_on:
        raise fields.wrong(
            "continue_final_message",
            "goes on in the last message, and add_generation_prompt begins another; give one of them",
        )
    if opens is not None:
        chat.add_generation_prompt = opens
    chat.continue_final_message = bool(goes_on)
    variables = fields.tree("chat_template_kwargs") or {}
    if (switch := fields.flag("enable_thinking")) is not None:
        if variables.get("enable_thinking", switch) is not switch:
            raise fields.wrong("enable_thinking", "contradicts chat_template_kwargs.enable_thinking; give one of them")
        variables = {**variables, "enable_thinking": switch}
    if variables:
        chat.template_variables_json = json.dumps(variables)


def _message(request: Fields, item: Any, path: str) -> inference_pb2.ChatMessage:
    fields = request.inside(item, path)
    role = fields.text("role")
    if not role:
        raise fields.wrong("role", "missing")
    content = _content(fields)
    refusal = fields.text("refusal")
    if content is None and refusal:
        content = refusal
    tool_calls = fields.items("tool_calls")
    if not all(isinstance(call, dict) for call in tool_calls or ()):
        raise fields.wrong("tool_calls", "expected an array of objects")
    if content is None and not tool_calls and role not in _MAY_BE_EMPTY:
        raise fields.wrong("content", "missing")
    message = inference_pb2.ChatMessage(
        role=role,
        content=content or "",
        name=fields.text("name") or "",
        tool_calls_json=json.dumps(tool_calls) if tool_calls else "",
        tool_call_id=fields.text("tool_call_id") or "",
        reasoning=_reasoning(fields),
    )
    fields.drop(HARMLESS_IN_MESSAGE, "messages.")
    fields.drop_vendors("messages.")
    fields.refuse({"annotations": (([],), "is not supported")})
    fields.finish()
    return message


def _reasoning(fields: Fields) -> str:
    """An earlier turn's reasoning, as clients send a reply back, under either name."""
    older, newer = fields.text("reasoning_content"), fields.text("reasoning")
    return newer or older or ""


def _content(fields: Fields) -> str | None:
    value = fields.raw("content")
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong("content", f"expected a string or an array of parts, got {kind_of(value)}")
    return "\n".join(_part(fields, part, f"{fields.name('content')}[{i}]") for i, part in enumerate(value))


def _part(message: Fields, part: Any, path: str) -> str:
    if isinstance(part, str):
        return part
    fields = message.inside(part, path)
    kind = fields.text("type")
    if kind not in _TEXT_PARTS:
        raise fields.wrong("type", "only parts of type text are supported; the model takes text only")
    text = fields.text(_TEXT_PARTS[kind])
    if text is None:
        raise fields.wrong(_TEXT_PARTS[kind], "missing")
    fields.drop(HARMLESS_IN_PART, "messages.content.")
    fields.drop_vendors("messages.content.")
    fields.finish()
    return text


def _put_tools(fields: Fields, chat: inference_pb2.Chat) -> None:
    for index, item in enumerate(fields.items("tools") or ()):
        chat.tools.append(_tool(fields.inside(item, f"tools[{index}]")))
    parallel = fields.flag("parallel_tool_calls")
    if parallel is not None and chat.tools:
        chat.parallel_tool_calls = parallel
    choice = fields.raw("tool_choice")
    if isinstance(choice, dict):
        named = fields.inside(choice, "tool_choice")
        if (kind := named.text("type")) != "function":
            raise named.wrong("type", f"expected function, got {kind!r}" if kind else "missing")
        function = _function(named)
        chat.tool_choice.name = function.text("name") or ""
        if not chat.tool_choice.name:
            raise function.wrong("name", "missing")
        function.finish()
        named.finish()
    elif isinstance(choice, str) and choice in _MODES:
        if chat.tools or choice == "required":
            chat.tool_choice.mode = _MODES[choice]
    elif choice is not None:
        raise fields.wrong("tool_choice", "expected none, auto, required, or the name of a function")


def _tool(fields: Fields) -> inference_pb2.Tool:
    kind = fields.text("type")
    if kind not in (None, "function"):
        raise fields.wrong("type", "only tools of type function are supported")
    function = _function(fields)
    parameters, strict = function.tree("parameters"), function.flag("strict")
    tool = inference_pb2.Tool(
        name=function.text("name") or "",
        description=function.text("description") or "",
        parameters_json="" if parameters is None else json.dumps(parameters),
    )
    if strict is not None:
        tool.strict = strict
    if not tool.name:
        raise function.wrong("name", "missing")
    for part in (function, fields):
        part.drop(HARMLESS_IN_TOOL, "tools.")
        part.drop_vendors("tools.")
        part.finish()
    return tool


def _function(fields: Fields) -> Fields:
    tree = fields.tree("function")
    if tree is None:
        raise fields.wrong("function", "missing")
    return fields.inside(tree, fields.name("function"))
