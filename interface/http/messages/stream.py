"""The events of a streamed message. Pure."""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from baton.v1 import inference_pb2
from cluster.errors import ServingError
from interface.http.blocks import Block, Blocks, Closed, Kind, Opened, Piece, Step
from interface.http.event_stream import EventStream
from interface.http.messages.reply import message_object, signature, stop_fields, usage_object
from interface.http.messages.request import MessagesCall
from interface.status import anthropic_error

_DELTAS = {
    Kind.REASONING: ("thinking_delta", "thinking"),
    Kind.TEXT: ("text_delta", "text"),
    Kind.CALL: ("input_json_delta", "partial_json"),
}


class MessageEvents:
    """Writes the events of one message, in order; the first come with the first token."""

    def __init__(self, call: MessagesCall, _created_unix_s: int) -> None:
        self._call = call
        self._blocks = Blocks()
        self._usage = inference_pb2.Usage()
        self._begun = False

    def sink(self, _stream: EventStream) -> None:
        """None: each delta may open or close a block."""

    def take(self, prompt: int, event: inference_pb2.GenerateResponse) -> bytes:
        """The events that one event of the backend comes to."""
        match event.WhichOneof("event"):
            case "admitted":
                self._usage.prompt_tokens = event.admitted.prompt_tokens
            case "first_token":
                self._usage.cached_tokens = event.first_token.cached_tokens
            case "delta":
                return self._begin() + b"".join(self._step(step) for step in self._blocks.take(event.delta))
            case "finished":
                self._usage = event.finished.usage
        return b""

    def end(self) -> bytes:
        """What closes the last block and the message."""
        closed = self._begin() + b"".join(self._step(step) for step in self._blocks.end())
        delta = {"delta": stop_fields(self._blocks.last, self._call), "usage": usage_object(self._usage)}
        return closed + _event("message_delta", delta) + _event("message_stop", {})

    def fail(self, error: ServingError) -> bytes:
        """An error in mid-stream, as Anthropic's client raises it."""
        return _event("error", anthropic_error(error))

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        stop = {"stop_reason": None, "stop_sequence": None}
        message = message_object(self._call, [], stop, usage_object(self._usage))
        return _event("message_start", {"message": message}) + _event("ping", {})

    def _step(self, step: Step) -> bytes:
        match step:
            case Opened(block):
                return _event("content_block_start", {"index": block.index, "content_block": _empty(block)})
            case Piece(block, text):
                kind, name = _DELTAS[block.kind]
                # One per token: only the text is encoded.
                return (
                    'event: content_block_delta\ndata: {"type":"content_block_delta","index":'
                    f'{block.index},"delta":{{"type":"{kind}","{name}":{quote(text)}}}}}\n\n'
                ).encode()
            case Closed(block):
                signed = b""
                if block.kind is Kind.REASONING:
                    delta = {"type": "signature_delta", "signature": signature(block.text)}
                    signed = _event("content_block_delta", {"index": block.index, "delta": delta})
                return signed + _event("content_block_stop", {"index": block.index})


def _empty(block: Block) -> dict[str, Any]:
    """A block as it begins."""
    match block.kind:
        case Kind.REASONING:
            return {"type": "thinking", "thinking": "", "signature": ""}
        case Kind.TEXT:
            return {"type": "text", "text": ""}
        case Kind.CALL:
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields}, separators=(',', ':'))}\n\n".encode()
