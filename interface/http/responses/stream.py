"""The events of a streamed response. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from baton.v1 import inference_pb2
from cluster.errors import ServingError
from interface.http.blocks import Block, Closed, Kind, Opened, Piece, Step
from interface.http.event_stream import EventStream
from interface.http.responses.reply import Keep, ResponseState
from interface.http.responses.request import ResponsesCall

_DELTAS = {
    Kind.REASONING: "response.reasoning_text.delta",
    Kind.TEXT: "response.output_text.delta",
    Kind.CALL: "response.function_call_arguments.delta",
}
_NO_LOGPROBS = {Kind.REASONING: "", Kind.TEXT: ',"logprobs":[]', Kind.CALL: ""}
_DONE = {
    Kind.REASONING: "response.reasoning_text.done",
    Kind.TEXT: "response.output_text.done",
    Kind.CALL: "response.function_call_arguments.done",
}


class ResponseEvents:
    """Writes the events of one response, numbered. The first come with the first token, or from `queue`."""

    def __init__(self, call: ResponsesCall, created_unix_s: int, keep: Keep) -> None:
        self._state = ResponseState(call, created_unix_s)
        self._keep = keep
        self._number = 0
        self._begun = False
        self._delta_tail = ""

    def sink(self, _stream: EventStream) -> None:
        """None: each delta has a number, and may open or close an item."""

    def object(self) -> dict[str, Any]:
        """The response as it is now."""
        return self._state.object()

    def queue(self) -> bytes:
        """Begin before the backend does: a background response waits."""
        self._state.status = "queued"
        response = {"response": self._state.object()}
        return self._event("response.created", response) + self._event("response.queued", response)

    def take(self, prompt: int, event: inference_pb2.GenerateResponse) -> bytes:
        """The events that one event of the backend comes to."""
        runs = self._state.status == "queued" and event.HasField("admitted")
        begun = self._begin() if runs or event.HasField("delta") else b""
        return begun + self._write(self._state.take(event))

    def end(self) -> bytes:
        """What closes the last item and the response, which is kept by now."""
        begun = self._begin()
        # Its status is set first: the last item's depends on it.
        steps = self._write(self._state.end())
        return begun + steps + self._over(f"response.{self._state.status}")

    def fail(self, error: ServingError) -> bytes:
        """A response that failed in mid-stream; it is kept by now, too."""
        begun = self._begin()
        self._state.fail(error)
        return begun + self._over("response.failed")

    def cancel(self) -> bytes:
        """A response that was cancelled, which is kept. OpenAI has no event for it; the last one shows its status."""
        begun = self._begin()
        self._state.cancel()
        return begun + self._over("response.incomplete")

    def _over(self, kind: str) -> bytes:
        made = self._state.object()
        self._keep(self._state.call, made)
        return self._event(kind, {"response": made})

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        queued, self._state.status = self._state.status == "queued", "in_progress"
        response = {"response": {**self._state.object(), "output": []}}
        created = b"" if queued else self._event("response.created", response)
        return created + self._event("response.in_progress", response)

    def _write(self, steps: Iterable[Step]) -> bytes:
        return b"".join(data for step in steps for data in self._step(step))

    def _step(self, step: Step) -> Iterator[bytes]:
        match step:
            case Piece(block, text, logprobs):
                yield self._delta(block, text, logprobs)
            case Opened(block):
                self._delta_tail = self._tail(block)
                item = self._state.item(block)
                if block.kind is not Kind.CALL:
                    item["content"] = []
                yield self._event("response.output_item.added", {"output_index": block.index, "item": item})
                if block.kind is not Kind.CALL:
                    part = {**self._place(block), "part": self._state.part(block)}
                    yield self._event("response.content_part.added", part)
            case Closed(block):
                yield self._event(_DONE[block.kind], {**self._place(block), **self._whole(block)})
                if block.kind is not Kind.CALL:
                    part = {**self._place(block), "part": self._state.part(block)}
                    yield self._event("response.content_part.done", part)
                item = self._state.item(block)
                yield self._event("response.output_item.done", {"output_index": block.index, "item": item})

    def _place(self, block: Block) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": self._state.item_id(block), "output_index": block.index}
        return place if block.kind is Kind.CALL else {**place, "content_index": 0}

    def _whole(self, block: Block) -> dict[str, Any]:
        match block.kind:
            case Kind.REASONING:
                return {"text": block.text}
            case Kind.TEXT:
                return {"text": block.text, "logprobs": self._state.logprobs(block.logprobs)}
            case Kind.CALL:
                return {"arguments": block.text, "name": block.name}

    def _tail(self, block: Block) -> str:
        """What all deltas of a block have between their number and their text."""
        tail = f',"item_id":{quote(self._state.item_id(block))},"output_index":{block.index}'
        return tail if block.kind is Kind.CALL else f'{tail},"content_index":0'

    def _delta(self, block: Block, text: str, logprobs: Sequence[inference_pb2.TokenLogprobs]) -> bytes:
        """One per token: only the text is encoded, and the log-probabilities where they were asked for."""
        kind = _DELTAS[block.kind]
        rows = self._state.logprobs(logprobs) if logprobs else []
        shown = f',"logprobs":{json.dumps(rows, separators=(",", ":"))}' if rows else _NO_LOGPROBS[block.kind]
        number = self._number
        self._number += 1
        return (
            f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":{number}{self._delta_tail}{shown},'
            f'"delta":{quote(text)}}}\n\n'
        ).encode()

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        tree = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(tree, separators=(',', ':'))}\n\n".encode()
