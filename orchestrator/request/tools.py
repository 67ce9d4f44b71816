"""The tools of a request: checked, for the chat template, and what is asked of the model's calls. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from baton.v1.inference_pb2 import Chat, GenerateRequest, Tool, ToolCall, ToolChoice
from cluster.errors import InvalidRequest
from orchestrator.request.fields import json_field

MAX_TOOLS = 1024
_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,256}")
"""Names go into grammars and markup. OpenAI allows 64 of fewer characters; MCP servers use dots and colons."""
_MODES = {
    ToolChoice.MODE_UNSPECIFIED: "auto",
    ToolChoice.MODE_AUTO: "auto",
    ToolChoice.MODE_NONE: "none",
    ToolChoice.MODE_REQUIRED: "required",
}


@dataclass(frozen=True, slots=True)
class ToolAsk:
    """What a request asks of the model's calls.

    ``tools`` are in OpenAI's form. ``choice`` is auto, required, or the tool to call if ``named``. ``earlier_calls``
    counts those of earlier turns, by which some families number theirs.
    """

    tools: tuple[dict[str, Any], ...]
    choice: str
    named: bool
    parallel: bool
    earlier_calls: int

    @property
    def forced(self) -> bool:
        """Whether the model must call."""
        return self.named or self.choice == "required"


def tools_of(request: GenerateRequest) -> list[Any] | None:
    """The tools for the chat template; None without any.

    Raises:
        InvalidRequest: they are malformed, or come in two ways.
    """
    chat = request.chat
    if chat.tools:
        if chat.tools_json:
            raise InvalidRequest("tools_json and tools are both given; leave tools_json out", field="tools_json")
        if len(chat.tools) > MAX_TOOLS:
            raise InvalidRequest(f"tools: expected at most {MAX_TOOLS}, got {len(chat.tools)}", field="tools")
        return [_entry(tool, f"tools[{index}]") for index, tool in enumerate(chat.tools)]
    if not chat.tools_json:
        return None
    tools = json_field(chat.tools_json, "tools_json")
    if not isinstance(tools, list):
        raise InvalidRequest("tools_json: expected a JSON array", field="tools_json")
    return tools


def tool_ask(request: GenerateRequest) -> ToolAsk | None:
    """What is asked of the model's calls; None where there are none to be parsed.

    Raises:
        InvalidRequest: tools or choice are malformed, or contradict each other.
    """
    chat = request.chat
    kind = chat.tool_choice.WhichOneof("kind")
    choice = chat.tool_choice.name if kind == "name" else _MODES.get(chat.tool_choice.mode)
    if choice is None:
        raise InvalidRequest(f"tool_choice.mode={chat.tool_choice.mode}: unknown", field="tool_choice")
    if not chat.tools:
        if kind == "name" or choice == "required":
            raise InvalidRequest("tool_choice asks for a call, and there are no tools; give some", field="tool_choice")
        return None
    tools = tools_of(request) or []
    names = [tool["function"]["name"] for tool in tools]
    if twice := next((name for index, name in enumerate(names) if name in names[:index]), None):
        raise InvalidRequest(f"tools: two are named {twice!r}; expected different names", field="tools")
    if kind == "name" and choice not in names:
        raise InvalidRequest(f"tool_choice={choice[:256]!r}: no tool has this name", field="tool_choice")
    if kind != "name" and choice == "none":
        return None
    parallel = chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True
    return ToolAsk(tuple(tools), choice, kind == "name", parallel, _earlier_calls(chat))


def held_to_schemas(ask: ToolAsk) -> ToolAsk:
    """The same with every tool strict, for a grammar of required calls: arguments fit their schema.

    Of a tool that says ``strict: false`` they are any object. vLLM alone would let a required call of a tool that says
    nothing have any JSON value for arguments, a number, say.
    """

    def strict(tool: dict[str, Any]) -> dict[str, Any]:
        function = tool["function"]
        given = None if function.get("strict") is False else function.get("parameters")
        return {**tool, "function": {**function, "parameters": given or {"type": "object"}, "strict": True}}

    return replace(ask, tools=tuple(map(strict, ask.tools)))


def call_entries(calls: list[ToolCall], path: str) -> list[dict[str, Any]]:
    """Calls of an earlier turn in OpenAI's form, for the chat template.

    Raises:
        InvalidRequest: one has no name.
    """
    nameless = next((index for index, call in enumerate(calls) if not call.name), None)
    if nameless is not None:
        raise InvalidRequest(f"{path}.tool_calls[{nameless}].name is empty", field=f"{path}.tool_calls")
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def _entry(tool: Tool, path: str) -> dict[str, Any]:
    if not _NAME.fullmatch(tool.name):
        raise InvalidRequest(f"{path}.name: expected 1 to 256 letters, digits, or any of _ . : -", field=f"{path}.name")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        parameters = json_field(tool.parameters_json, f"{path}.parameters_json")
        if not isinstance(parameters, dict):
            raise InvalidRequest(f"{path}.parameters_json: expected a JSON object", field=f"{path}.parameters_json")
        function["parameters"] = parameters
    if tool.HasField("strict"):
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _earlier_calls(chat: Chat) -> int:
    def count(text: str) -> int:
        try:
            calls = json.loads(text) if text else []
        except (ValueError, RecursionError):
            return 0  # reported where the messages are read
        return len(calls) if isinstance(calls, list) else 0

    return sum(len(message.tool_calls) + count(message.tool_calls_json) for message in chat.messages)
