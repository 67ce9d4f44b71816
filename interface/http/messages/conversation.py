"""Anthropic's `messages`, `system`, `tools` and `tool_choice` as a chat. Pure."""

from __future__ import annotations

import json
from typing import Any

from baton.v1 import inference_pb2
from interface.http.fields import Fields, kind_of

BILLING_HEADER = "x-anthropic-billing-header"
"""Claude Code's first system block begins with it, and holds a hash that is another in each request: no prefix of the
prompt would ever be found again. It is for Anthropic's accounts, and is left out."""

_HARMLESS_IN_BLOCK = frozenset({"cache_control", "citations", "caller"})
_TOOL_RUNS_ELSEWHERE = "expected custom: tools that Anthropic runs or defines are not supported; give an input_schema"
_HARMLESS_IN_TOOL = frozenset({"cache_control", "eager_input_streaming"})
_REFUSED_IN_TOOL: dict[str, tuple[tuple[Any, ...], str]] = {
    "defer_loading": ((False,), "is not supported; every tool is in the prompt"),
    "allowed_callers": ((["direct"],), "is not supported; only the model calls tools"),
    "input_examples": (([],), "is not supported; put examples into the description"),
}
_MODES = {
    "auto": inference_pb2.ToolChoice.MODE_AUTO,
    "any": inference_pb2.ToolChoice.MODE_REQUIRED,
    "none": inference_pb2.ToolChoice.MODE_NONE,
}


def read_conversation(fields: Fields) -> inference_pb2.Chat:
    """Take ``system``, ``messages``, ``tools`` and ``tool_choice``.

    A last turn of the assistant is continued.

    Raises:
        InvalidRequest: a field has the wrong type, or asks for what is not supported; the text says which.
    """
    chat = inference_pb2.Chat()
    if system := _system(fields, "system"):
        chat.messages.add(role="system", content=system)
    items = fields.items("messages")
    if not items:
        raise fields.wrong("messages", "expected at least one message")
    for index, item in enumerate(items):
        _put_turn(chat, fields.inside(item, f"messages[{index}]"))
    last = chat.messages[-1] if chat.messages else None
    chat.continue_final_message = last is not None and last.role == "assistant" and not last.tool_calls
    _put_tools(chat, fields)
    return chat


def _put_turn(chat: inference_pb2.Chat, fields: Fields) -> None:
    role = fields.text("role")
    match role:
        case "user":
            _put_user(chat, fields)
        case "assistant":
            _put_assistant(chat, fields)
        case "system":
            # Claude Code's reminders. Many templates take one system message, at the front; for those that know no
            # developer, the gateway makes it so.
            if text := _system(fields, "content"):
                chat.messages.add(role="developer", content=text)
        case _:
            raise fields.wrong("role", "expected user, assistant or system")
    fields.drop(frozenset({"id", "cache_control"}), "messages.")
    fields.drop_vendors("messages.")
    fields.finish()


def _system(fields: Fields, name: str) -> str:
    texts = []
    for block in _blocks(fields, name, required=False):
        if block.text("type") != "text":
            raise block.wrong("type", "expected text")
        text = _text(block)
        if text.startswith(BILLING_HEADER):
            fields.ignored.add(f"system.{BILLING_HEADER}")
        else:
            texts.append(text)
        _finish(block)
    return "\n".join(texts)


def _put_user(chat: inference_pb2.Chat, fields: Fields) -> None:
    texts, results = [], []
    for block in _blocks(fields, "content"):
        kind = block.text("type")
        match kind:
            case "text":
                texts.append(_text(block))
            case "tool_result":
                results.append(_tool_result(block))
            case _:
                raise block.wrong("type", "only text and tool_result are supported; the model takes text only")
        _finish(block)
    # A result follows its call at once, as templates want it.
    chat.messages.extend(results)
    if texts or not results:
        text, last = "\n".join(texts), chat.messages[-1] if chat.messages else None
        if last is not None and last.role == "user":
            last.content += f"\n{text}"
        else:
            chat.messages.add(role="user", content=text)


def _tool_result(fields: Fields) -> inference_pb2.ChatMessage:
    call_id = fields.text("tool_use_id")
    if not call_id:
        raise fields.wrong("tool_use_id", "missing")
    texts = []
    for block in _blocks(fields, "content", required=False):
        if block.text("type") != "text":
            raise block.wrong("type", "only text is supported in a tool_result; the model takes text only")
        texts.append(_text(block))
        _finish(block)
    content = "\n".join(texts)
    if fields.flag("is_error"):
        # Templates have no field for it.
        content = f"Error: {content}"
    return inference_pb2.ChatMessage(role="tool", tool_call_id=call_id, content=content)


def _put_assistant(chat: inference_pb2.Chat, fields: Fields) -> None:
    turn = inference_pb2.ChatMessage(role="assistant")
    texts, thoughts = [], []
    for block in _blocks(fields, "content"):
        kind = block.text("type")
        match kind:
            case "text":
                texts.append(_text(block))
            case "thinking":
                thoughts.append(block.text("thinking") or "")
                # Nothing is checked by it: the text is here.
                block.text("signature")
            case "redacted_thinking":
                block.text("data")
                fields.ignored.add("messages.content.redacted_thinking")
            case "tool_use":
                turn.tool_calls.append(_tool_use(block))
            case _:
                raise block.wrong("type", "only text, thinking and tool_use are supported in a turn of the assistant")
        _finish(block)
    turn.content, turn.reasoning = "\n".join(texts), "\n".join(thoughts)
    if chat.messages and chat.messages[-1].role == "assistant":
        _join(chat.messages[-1], turn)
    else:
        chat.messages.append(turn)


def _tool_use(fields: Fields) -> inference_pb2.ToolCall:
    call = inference_pb2.ToolCall(id=fields.text("id") or "", name=fields.text("name") or "")
    for name in ("id", "name"):
        if not getattr(call, name):
            raise fields.wrong(name, "missing")
    call.arguments = json.dumps(fields.tree("input") or {})
    return call


def _join(turn: inference_pb2.ChatMessage, more: inference_pb2.ChatMessage) -> None:
    """Two turns of one role that follow each other are one."""
    turn.content = "\n".join(text for text in (turn.content, more.content) if text)
    turn.reasoning = "\n".join(text for text in (turn.reasoning, more.reasoning) if text)
    turn.tool_calls.extend(more.tool_calls)


def _put_tools(chat: inference_pb2.Chat, fields: Fields) -> None:
    for index, item in enumerate(fields.items("tools") or ()):
        chat.tools.append(_tool(fields.inside(item, f"tools[{index}]")))
    tree = fields.tree("tool_choice")
    if tree is None:
        return
    choice = fields.inside(tree, "tool_choice")
    kind, name = choice.text("type"), choice.text("name")
    if (single := choice.flag("disable_parallel_tool_use")) is not None and chat.tools:
        chat.parallel_tool_calls = not single
    choice.finish()
    if kind not in ("tool", *_MODES):
        raise choice.wrong("type", "expected auto, any, tool or none")
    if (kind == "tool") != bool(name):
        raise choice.wrong("name", "missing" if kind == "tool" else "needs type: tool")
    if not chat.tools:
        if kind in ("tool", "any"):
            raise choice.wrong("type", "needs tools")
    elif name:
        chat.tool_choice.name = name
    else:
        chat.tool_choice.mode = _MODES[kind]


def _tool(fields: Fields) -> inference_pb2.Tool:
    if fields.text("type") not in (None, "custom"):
        raise fields.wrong("type", _TOOL_RUNS_ELSEWHERE)
    name, schema = fields.text("name"), fields.tree("input_schema")
    if not name:
        raise fields.wrong("name", "missing")
    if schema is None:
        raise fields.wrong("input_schema", "missing")
    tool = inference_pb2.Tool(
        name=name,
        description=fields.text("description") or "",
        parameters_json=json.dumps(schema if "type" in schema else {"type": "object", **schema}),
    )
    if (strict := fields.flag("strict")) is not None:
        tool.strict = strict
    fields.drop(_HARMLESS_IN_TOOL, "tools.")
    fields.drop_vendors("tools.")
    fields.refuse(_REFUSED_IN_TOOL)
    fields.finish()
    return tool


def _blocks(fields: Fields, name: str, *, required: bool = True) -> list[Fields]:
    """The blocks of a content; a string is one of text."""
    value = fields.raw(name)
    if isinstance(value, str):
        value = [{"type": "text", "text": value}]
    if value is None and not required:
        return []
    if not isinstance(value, list):
        raise fields.wrong(name, f"expected a string or an array of blocks, got {kind_of(value)}")
    return [fields.inside(block, f"{fields.name(name)}[{index}]") for index, block in enumerate(value)]


def _text(fields: Fields) -> str:
    text = fields.text("text")
    if text is None:
        raise fields.wrong("text", "missing")
    return text


def _finish(fields: Fields) -> None:
    fields.drop(_HARMLESS_IN_BLOCK, "messages.content.")
    fields.drop_vendors("messages.content.")
    fields.finish()
