"""`tools` and `tool_choice` of a response, for the core and for the reply. Pure."""

from __future__ import annotations

import json
from typing import Any

from baton.v1 import inference_pb2
from interface.http.fields import Fields

_MODES = {
    "auto": inference_pb2.ToolChoice.MODE_AUTO,
    "required": inference_pb2.ToolChoice.MODE_REQUIRED,
    "none": inference_pb2.ToolChoice.MODE_NONE,
}
_REFUSED_IN_TOOL: dict[str, tuple[tuple[Any, ...], str]] = {
    "defer_loading": ((False,), "is not supported; every tool is in the prompt"),
    "allowed_callers": ((["direct"],), "is not supported; only the model calls tools"),
    "async": ((False,), "is not supported; the caller runs tools"),
    "output_schema": ((), "is not supported"),
}


def put_tools(chat: inference_pb2.Chat, fields: Fields) -> dict[str, Any]:
    """Take ``tools``, ``tool_choice`` and ``parallel_tool_calls``; returns what the reply shows of them.

    Raises:
        InvalidRequest: a tool is not the caller's own function, or the choice fits no tool.
    """
    shown = []
    for index, item in enumerate(fields.items("tools") or ()):
        tool, tree = _tool(fields.inside(item, f"tools[{index}]"))
        chat.tools.append(tool)
        shown.append(tree)
    parallel = fields.flag("parallel_tool_calls")
    if parallel is not None and chat.tools:
        chat.parallel_tool_calls = parallel
    choice = fields.raw("tool_choice")
    if choice is not None:
        _put_choice(chat, fields, choice)
    return {
        "tools": shown,
        "tool_choice": choice if choice is not None else "auto",
        "parallel_tool_calls": parallel is not False,
    }


def _tool(fields: Fields) -> tuple[inference_pb2.Tool, dict[str, Any]]:
    if fields.text("type") != "function":
        raise fields.wrong("type", "expected function: tools that OpenAI runs or defines are not supported")
    name, parameters = fields.text("name"), fields.tree("parameters")
    if not name:
        raise fields.wrong("name", "missing")
    description, strict = fields.text("description"), fields.flag("strict")
    tool = inference_pb2.Tool(name=name, description=description or "")
    if parameters is not None:
        tool.parameters_json = json.dumps(parameters)
    if strict is not None:
        tool.strict = strict
    fields.drop_vendors("tools.")
    fields.refuse(_REFUSED_IN_TOOL)
    fields.finish()
    shown = {
        "type": "function",
        "name": name,
        "description": description,
        "parameters": parameters or {},
        "strict": strict is True,
    }
    return tool, shown


def _put_choice(chat: inference_pb2.Chat, fields: Fields, choice: Any) -> None:
    if isinstance(choice, dict):
        _put_named(chat, fields.inside(choice, "tool_choice"))
        return
    if not isinstance(choice, str) or choice not in _MODES:
        raise fields.wrong("tool_choice", "expected auto, required, none, or an object that names functions")
    if chat.tools:
        chat.tool_choice.mode = _MODES[choice]
    elif choice == "required":
        raise fields.wrong("tool_choice", "needs tools")


def _put_named(chat: inference_pb2.Chat, fields: Fields) -> None:
    kind = fields.text("type")
    known = {tool.name for tool in chat.tools}
    match kind:
        case "function":
            name = fields.text("name")
            if name not in known:
                raise fields.wrong("name", "expected the name of one of the tools")
            chat.tool_choice.name = name
        case "allowed_tools":
            mode = fields.text("mode")
            if mode not in ("auto", "required"):
                raise fields.wrong("mode", "expected auto or required")
            allowed = {_allowed(fields, item, index) for index, item in enumerate(fields.items("tools") or ())}
            if not allowed or allowed - known:
                raise fields.wrong("tools", "expected names of some of the tools")
            kept = [tool for tool in chat.tools if tool.name in allowed]
            del chat.tools[:]
            chat.tools.extend(kept)
            chat.tool_choice.mode = _MODES[mode]
        case _:
            raise fields.wrong("type", "expected function or allowed_tools")
    fields.finish()


def _allowed(choice: Fields, item: Any, index: int) -> str | None:
    fields = choice.inside(item, f"tool_choice.tools[{index}]")
    if fields.text("type") != "function":
        raise fields.wrong("type", "expected function")
    name = fields.text("name")
    fields.finish()
    return name
