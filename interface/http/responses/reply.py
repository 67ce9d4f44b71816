"""The response object of OpenAI's API, built from a request's events. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from baton.v1 import inference_pb2
from cluster.errors import ServingError
from interface.http.blocks import Block, Blocks, Kind, Step
from interface.http.completions.reply import usage_object
from interface.http.logprobs import token_logprobs
from interface.http.responses.opaque_reasoning import sealed
from interface.http.responses.request import ResponsesCall
from interface.status import status_of

Keep = Callable[[ResponsesCall, dict[str, Any]], None]
"""Stores a response that has ended."""

_PREFIXES = {Kind.REASONING: "rs", Kind.TEXT: "msg", Kind.CALL: "fc"}
_ERROR_CODES = {400: "invalid_prompt", 413: "invalid_prompt", 429: "rate_limit_exceeded"}


class ResponseState:
    """What is known of a response so far. Streams, whole replies and background responses are made from one each."""

    def __init__(self, call: ResponsesCall, created_unix_s: int) -> None:
        self.call = call
        self.blocks = Blocks()
        self.status = "in_progress"
        self._created_unix_s = created_unix_s
        self._usage: inference_pb2.Usage | None = None
        self._error: dict[str, Any] | None = None

    def take(self, event: inference_pb2.GenerateResponse) -> Iterator[Step]:
        """What one event does to the blocks."""
        match event.WhichOneof("event"):
            case "delta":
                yield from self.blocks.take(event.delta)
            case "finished":
                self._usage = event.finished.usage

    def end(self) -> Iterator[Step]:
        """Close it: it is complete, or was cut at the limit of tokens."""
        last = self.blocks.last.finish_reason
        cut = last in (inference_pb2.FINISH_REASON_LENGTH, inference_pb2.FINISH_REASON_THINKING_BUDGET)
        self.status = "incomplete" if cut else "completed"
        yield from self.blocks.end()

    def fail(self, error: ServingError) -> None:
        """End it with an error."""
        self.status = "failed"
        self._error = {"code": _ERROR_CODES.get(status_of(error).http, "server_error"), "message": error.message}

    def cancel(self) -> None:
        """End it by the caller's wish."""
        self.status = "cancelled"

    def object(self) -> dict[str, Any]:
        """The response as it is now."""
        call = self.call
        return {
            "id": call.response_id,
            "object": "response",
            "created_at": self._created_unix_s,
            "status": self.status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "output": [self.item(block) for block in self.blocks.all],
            "usage": response_usage(self._usage) if self._usage is not None else None,
            "service_tier": "default",
            **call.shown,
        }

    def item_id(self, block: Block) -> str:
        """The id of a block's item: unique, and leads back to the response."""
        return f"{_PREFIXES[block.kind]}_{self.call.response_id.removeprefix('resp_')}_{block.index}"

    def item(self, block: Block) -> dict[str, Any]:
        """A block as an item of the output."""
        shared = {"id": self.item_id(block), "status": self._item_status(block)}
        match block.kind:
            case Kind.REASONING:
                item = {**shared, "type": "reasoning", "summary": [], "content": [self.part(block)]}
                return item | ({"encrypted_content": sealed(block.text)} if self.call.opaque_reasoning else {})
            case Kind.TEXT:
                return {**shared, "type": "message", "role": "assistant", "content": [self.part(block)]}
            case Kind.CALL:
                call = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
                return {**shared, "type": "function_call", **call}

    def part(self, block: Block) -> dict[str, Any]:
        """A block's text as a part of its item."""
        if block.kind is Kind.REASONING:
            return {"type": "reasoning_text", "text": block.text}
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": self.logprobs(block.logprobs)}

    def logprobs(self, rows: Any) -> list[dict[str, Any]]:
        """One object per token, where they were asked for."""
        return token_logprobs(rows, self.call.logprobs) if self.call.logprobs is not None else []

    def _item_status(self, block: Block) -> str:
        if not block.closed:
            return "incomplete" if self.status in ("failed", "cancelled") else "in_progress"
        return "incomplete" if self.status == "incomplete" and block is self.blocks.all[-1] else "completed"


class ResponseReply:
    """Collects the events of a call for its whole reply."""

    def __init__(self, call: ResponsesCall, created_unix_s: int, keep: Keep) -> None:
        self._state = ResponseState(call, created_unix_s)
        self._keep = keep

    def add(self, prompt: int, event: inference_pb2.GenerateResponse) -> None:
        """Take one event."""
        for _ in self._state.take(event):
            pass

    def object(self) -> dict[str, Any]:
        """The response, which is kept by now."""
        for _ in self._state.end():
            pass
        made = self._state.object()
        self._keep(self._state.call, made)
        return made


def response_usage(usage: inference_pb2.Usage) -> dict[str, Any]:
    """The ``usage`` of a response: that of a chat, by other names."""
    chat = usage_object([usage])
    return {
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": {**chat["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": chat["completion_tokens_details"],
        "total_tokens": chat["total_tokens"],
    }
