"""Items of a response's input as chat messages. Pure.

A turn of the assistant may be several items: reasoning, then text, then calls. They become one message again, as the
model wrote them, so that the prompt of the next turn begins with the tokens of this one where the template allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from baton.v1 import inference_pb2
from interface.http.fields import Fields, kind_of
from interface.http.responses.opaque_reasoning import opened

_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_REASONING_PARTS = frozenset({"reasoning_text", "summary_text", "text"})
_ROLES = frozenset({"user", "assistant", "system", "developer"})
_HARMLESS_IN_ITEM = frozenset({"id", "status", "phase", "created_by", "cache_control"})
_HARMLESS_IN_PART = frozenset({"annotations", "logprobs", "id", "cache_control", "prompt_cache_breakpoint"})


def put_items(chat: inference_pb2.Chat, items: Sequence[Fields]) -> None:
    """Append the items to the chat.

    Raises:
        InvalidRequest: an item has the wrong form, or is of a type that is not supported.
    """
    turn: inference_pb2.ChatMessage | None = None
    """The assistant's, while it may still get more."""
    for fields in items:
        kind = fields.text("type") or "message"
        if kind in ("message", "reasoning", "function_call"):
            part = _part_of_turn(fields, kind)
            if part.role != "assistant":
                chat.messages.append(part)
                turn = None
            elif turn is not None and _continues(turn, part):
                turn.MergeFrom(part)
            else:
                turn = chat.messages.add()
                turn.CopyFrom(part)
        elif kind == "function_call_output":
            chat.messages.append(_result(fields))
            turn = None
        else:
            raise fields.wrong(
                "type",
                "expected message, reasoning, function_call, function_call_output or item_reference; "
                "what tools of OpenAI's own made cannot be read here",
            )
        fields.drop(_HARMLESS_IN_ITEM, "input.")
        fields.drop_vendors("input.")
        fields.finish()


def _continues(turn: inference_pb2.ChatMessage, part: inference_pb2.ChatMessage) -> bool:
    """Whether a part can be of the same turn: reasoning before text, and text before calls."""
    if part.reasoning:
        return not (turn.reasoning or turn.content or turn.tool_calls)
    return bool(part.tool_calls) or not (turn.content or turn.tool_calls)


def _part_of_turn(fields: Fields, kind: str) -> inference_pb2.ChatMessage:
    match kind:
        case "reasoning":
            return inference_pb2.ChatMessage(role="assistant", reasoning=_reasoning(fields))
        case "function_call":
            message = inference_pb2.ChatMessage(role="assistant")
            message.tool_calls.add(
                id=_required(fields, "call_id"),
                name=_required(fields, "name"),
                arguments=fields.text("arguments") or "{}",
            )
            return message
    role = fields.text("role")
    if role not in _ROLES:
        raise fields.wrong("role", "expected user, assistant, system or developer")
    return inference_pb2.ChatMessage(role=role, content=_content(fields, "content"))


def _result(fields: Fields) -> inference_pb2.ChatMessage:
    # Some clients repeat the tool's name.
    fields.text("name")
    call_id = _required(fields, "call_id")
    return inference_pb2.ChatMessage(role="tool", tool_call_id=call_id, content=_content(fields, "output"))


def _reasoning(fields: Fields) -> str:
    texts = [_reasoning_text(part) for part in _parts(fields, "content")]
    summary = [_reasoning_text(part) for part in _parts(fields, "summary")]
    if not texts and (value := fields.text("encrypted_content")):
        text = opened(value)
        if text is None and not summary:
            raise fields.wrong("encrypted_content", "cannot be read here: it was written elsewhere; leave the item out")
        if text is not None:
            return text
        fields.ignored.add("input.encrypted_content")
    # Beside the text itself it says nothing more.
    fields.text("encrypted_content")
    return "\n".join(texts or summary)


def _reasoning_text(fields: Fields) -> str:
    if fields.text("type") not in _REASONING_PARTS:
        raise fields.wrong("type", "expected reasoning_text or summary_text")
    text = fields.text("text")
    fields.drop(_HARMLESS_IN_PART, "input.content.")
    fields.finish()
    return text or ""


def _content(fields: Fields, name: str) -> str:
    value = fields.raw(name)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong(name, f"expected a string or an array of parts, got {kind_of(value)}")
    path = fields.name(name)
    return "\n".join(_text(fields.inside(part, f"{path}[{index}]")) for index, part in enumerate(value))


def _text(fields: Fields) -> str:
    kind = fields.text("type")
    if kind not in _TEXT_PARTS:
        raise fields.wrong("type", "only input_text and output_text are supported; the model takes text only")
    text = fields.text(_TEXT_PARTS[kind])
    if text is None:
        raise fields.wrong(_TEXT_PARTS[kind], "missing")
    fields.drop(_HARMLESS_IN_PART, "input.content.")
    fields.drop_vendors("input.content.")
    fields.finish()
    return text


def _parts(fields: Fields, name: str) -> list[Fields]:
    return [fields.inside(part, f"{fields.name(name)}[{index}]") for index, part in enumerate(fields.items(name) or ())]


def _required(fields: Fields, name: str) -> str:
    value = fields.text(name)
    if not value:
        raise fields.wrong(name, "missing")
    return value


def listed_items(items: Sequence[dict[str, Any]], response_id: str) -> list[dict[str, Any]]:
    """Items as ``input_items`` lists them: each with its type and an id.

    Example:
        >>> listed_items([{"role": "user", "content": "Hi"}], "resp_1")
        [{'id': 'in_1_0', 'type': 'message', 'role': 'user', 'content': [{'type': 'input_text', 'text': 'Hi'}]}]
    """
    listed = []
    for index, item in enumerate(items):
        shown = {"id": f"in_{response_id.removeprefix('resp_')}_{index}", "type": "message", **item}
        if shown["type"] == "message" and isinstance(shown.get("content"), str):
            kind = "output_text" if shown.get("role") == "assistant" else "input_text"
            shown["content"] = [{"type": kind, "text": shown["content"]}]
        listed.append(shown)
    return listed
