"""A message of Anthropic's API, built from a request's events. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from baton.v1 import inference_pb2
from interface.http.blocks import Block, Blocks, Kind
from interface.http.messages.request import MessagesCall


class MessageReply:
    """Collects the events of a call and writes its message."""

    def __init__(self, call: MessagesCall, _created_unix_s: int) -> None:
        self._call = call
        self._blocks = Blocks()
        self._usage = inference_pb2.Usage()

    def add(self, prompt: int, event: inference_pb2.GenerateResponse) -> None:
        """Take one event."""
        match event.WhichOneof("event"):
            case "delta":
                for _ in self._blocks.take(event.delta):
                    pass
            case "finished":
                self._usage = event.finished.usage

    def object(self) -> dict[str, Any]:
        """The message."""
        for _ in self._blocks.end():
            pass
        content = [content_block(block) for block in self._blocks.all]
        return message_object(
            self._call, content, stop_fields(self._blocks.last, self._call), usage_object(self._usage)
        )


def message_object(
    call: MessagesCall, content: list[dict[str, Any]], stop: dict[str, Any], usage: dict[str, Any]
) -> dict[str, Any]:
    """A message, whole or at its beginning."""
    return {
        "id": f"msg_{call.request_id}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        **stop,
        "usage": usage,
    }


def content_block(block: Block) -> dict[str, Any]:
    """A block as it is when it is whole."""
    match block.kind:
        case Kind.REASONING:
            return {"type": "thinking", "thinking": block.text, "signature": signature(block.text)}
        case Kind.TEXT:
            return {"type": "text", "text": block.text}
        case Kind.CALL:
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _input(block)}


def signature(thinking: str) -> str:
    """Clients send thinking back only with a signature. Nothing checks it: the text is what the template gets."""
    return base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()


def stop_fields(last: inference_pb2.Delta, call: MessagesCall) -> dict[str, Any]:
    """Why the message ended, by the delta that ended it."""
    match last.finish_reason:
        case inference_pb2.FINISH_REASON_LENGTH | inference_pb2.FINISH_REASON_THINKING_BUDGET:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        case inference_pb2.FINISH_REASON_TOOL_CALLS:
            return {"stop_reason": "tool_use", "stop_sequence": None}
    if last.stop_matched in call.requests[0].sampling.stop:
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop_matched}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def usage_object(usage: inference_pb2.Usage) -> dict[str, Any]:
    """The ``usage`` of a message; tokens found in the cache do not count among the input's, as Anthropic has it."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.reasoning_tokens + usage.answer_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _input(block: Block) -> dict[str, Any]:
    """The arguments; none where the call was cut off within them."""
    try:
        arguments = json.loads(block.text or "{}")
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}
