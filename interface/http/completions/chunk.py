"""Streamed chunks (server-sent events) of an OpenAI reply. Pure.

A chunk is written by hand around the text, which alone is encoded: one is built per token of every stream, and a
``json.dumps`` of the whole costs several times as much.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from baton.v1 import inference_pb2
from cluster.errors import ServingError
from interface.http import scaling
from interface.http.chunk_sink import ChunkSink
from interface.http.completions.reply import FINISH_REASONS, prompt_token_ids, stop_reason, usage_object
from interface.http.completions.request import HttpCall
from interface.http.event_stream import EventStream
from interface.http.logprobs import CompletionLogprobs, by_phase, chat_logprobs
from interface.status import openai_error
from orchestrator.policy.phases import Phase

DONE = b"data: [DONE]\n\n"

_REASONING = inference_pb2.PHASE_REASONING
_TOOL_CALL = inference_pb2.PHASE_TOOL_CALL
_MARK = "\0"
"""Stands for the text in a frame; no name of a field is written like it."""


class Chunks:
    """Writes the chunks of one call, in order. The first chunk of a chat choice carries the role and its text alike."""

    def __init__(self, call: HttpCall, created_unix_s: int) -> None:
        self._call = call
        kind = "chat.completion.chunk" if call.chat else "text_completion"
        self._head = (
            f'data: {{"id":{quote(call.reply_id)},"object":"{kind}","created":{created_unix_s},'
            f'"model":{quote(call.model)},"choices":['
        )
        self._tail = "]" + (',"usage":null' if call.include_usage and not call.continuous_usage else "") + "}\n\n"
        self.plain = call.logprobs is None and not call.return_token_ids and not call.continuous_usage
        """Whether a chunk has text alone, so that `text` may write it."""
        self._frames: dict[tuple[int, bool], list[str]] = {}
        self._started: set[int] = set()
        self._usages: list[inference_pb2.Usage] = []
        self._prompt_tokens: dict[int, int] = {}
        self._cached_tokens: dict[int, int] = {}
        self._output_tokens: dict[int, list[int]] = {}
        """By choice: tokens of the reasoning, and of the answer."""
        self._logprobs: dict[int, CompletionLogprobs] = {}

    def take(self, prompt: int, event: inference_pb2.GenerateResponse) -> bytes:
        """The chunk of one event of the given prompt; empty where the event has none."""
        match event.WhichOneof("event"):
            case "delta":
                return self._delta(prompt, event.delta)
            case "finished":
                self._usages.append(event.finished.usage)
                if event.finished.HasField("inference_scaling"):
                    return self._aside(scaling.NAME, scaling.report_object(event.finished.inference_scaling))
            case "progress":
                return self._aside("progress", scaling.progress_object(event.progress))
            case "admitted":
                self._prompt_tokens[prompt] = event.admitted.prompt_tokens
            case "first_token":
                self._cached_tokens[prompt] = event.first_token.cached_tokens
            case "prompt_logprobs":
                return self._echoed(prompt, event.prompt_logprobs)
        return b""

    def _aside(self, name: str, tree: dict[str, Any]) -> bytes:
        """A chunk without choices."""
        return f'{self._head}],"{name}":{json.dumps(tree, separators=(",", ":"))}}}\n\n'.encode()

    def _echoed(self, prompt: int, piece: inference_pb2.PromptLogprobs) -> bytes:
        """Chunks with log-probabilities of an echoed prompt, one for each of its choices; the first has the text."""
        call = self._call
        if not call.echo or call.logprobs is None:
            return b""
        chunks = []
        for index in range(prompt * call.choices, (prompt + 1) * call.choices):
            text = "" if index in self._logprobs else call.echo[prompt]
            logprobs = self._logprobs.setdefault(index, CompletionLogprobs(call.logprobs)).take_prompt(piece)
            body = json.dumps(
                {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}, separators=(",", ":")
            )
            chunks.append(f"{self._head}{body}{self._tail}")
        return "".join(chunks).encode()

    def sink(self, stream: EventStream) -> ChunkSink | None:
        """What takes deltas with text alone straight to the stream; none where chunks have more."""
        return ChunkSink(stream, self.text) if self.plain else None

    def text(self, choice: int, phase: Phase, text: str) -> bytes:
        """The chunk of a delta with text alone, that is not the first one of its choice; of calls that are `plain`.

        All but the text is the same in each: it is written once for a phase of a choice.
        """
        thinks = phase is Phase.REASONING
        if thinks and self._call.exclude_reasoning:
            return b""
        frame = self._frames.get((choice, thinks))
        if frame is None:
            frame = self._frames[choice, thinks] = self._frame(choice, thinks)
        return quote(text).join(frame).encode()

    def _frame(self, choice: int, thinks: bool) -> list[str]:
        """What stands around the text of a chunk, in as many parts as there are places for it and one."""
        phase = _REASONING if thinks else inference_pb2.PHASE_ANSWER
        marked = inference_pb2.Delta(phase=phase, text=_MARK)
        body = _chat_body(marked, False) if self._call.chat else _completion_body(marked, "")
        frame = body.split(quote(_MARK))
        frame[0] = f'{self._head}{{"index":{choice},{frame[0]}'
        frame[-1] += f',"logprobs":null,"finish_reason":null}}{self._tail}'
        return frame

    def end(self) -> bytes:
        """What closes the stream: usage where it was asked for, and the end mark."""
        if not self._call.include_usage:
            return DONE
        usage = json.dumps(usage_object(self._usages), separators=(",", ":"))
        return f'{self._head}],"usage":{usage}}}\n\n'.encode() + DONE

    def fail(self, error: ServingError) -> bytes:
        """An error that comes after the first chunk, as vLLM sends it and OpenAI's client raises it."""
        return f"data: {json.dumps(openai_error(error))}\n\n".encode() + DONE

    def _delta(self, prompt: int, delta: inference_pb2.Delta) -> bytes:
        index = prompt * self._call.choices + delta.choice
        first = index not in self._started
        if first:
            self._started.add(index)
        # An echoed prompt with log-probabilities has gone out with these.
        echo = self._call.echo[prompt] if first and self._call.echo and index not in self._logprobs else ""
        if self._call.exclude_reasoning and delta.phase == _REASONING:
            # Its first chunk goes out, empty: the caller learns that the request is served.
            if not (first or delta.finish_reason or self._call.continuous_usage):
                return b""
            self._count(index, delta)
            delta = inference_pb2.Delta(
                choice=delta.choice,
                finish_reason=delta.finish_reason,
                stop_matched=delta.stop_matched,
                reasoning_closed=delta.reasoning_closed,
            )
        if delta.phase == _TOOL_CALL and self.plain and not (first or delta.tool_calls or delta.finish_reason):
            return b""  # markup
        body = _chat_body(delta, first) if self._call.chat else _completion_body(delta, echo)
        if self.plain and not delta.finish_reason:
            chunk = f'{self._head}{{"index":{index},{body},"logprobs":null,"finish_reason":null}}{self._tail}'
        else:
            chunk = self._full(prompt, index, first, body, delta)
        return chunk.encode()

    def _full(self, prompt: int, index: int, first: bool, body: str, delta: inference_pb2.Delta) -> str:
        """A chunk with everything that few chunks carry."""
        call = self._call
        rest: dict[str, Any] = {
            "logprobs": self._logprobs_of(index, delta),
            "finish_reason": FINISH_REASONS[delta.finish_reason],
        }
        if delta.finish_reason:
            rest["stop_reason"] = stop_reason(delta, call.requests[prompt])
        if call.return_token_ids:
            rest["token_ids"] = list(delta.token_ids)
            if first:
                rest["prompt_token_ids"] = prompt_token_ids(call.requests[prompt])
        tail = f'],"usage":{self._usage_until(prompt, index, delta)}}}\n\n' if call.continuous_usage else self._tail
        return f'{self._head}{{"index":{index},{body},{json.dumps(rest, separators=(",", ":"))[1:]}{tail}'

    def _usage_until(self, prompt: int, index: int, delta: inference_pb2.Delta) -> str:
        """The ``usage`` of a choice up to and with this delta."""
        counts = self._count(index, delta)
        usage = inference_pb2.Usage(
            prompt_tokens=self._prompt_tokens.get(prompt, 0),
            cached_tokens=self._cached_tokens.get(prompt, 0),
            reasoning_tokens=counts[0],
            answer_tokens=counts[1],
        )
        return json.dumps(usage_object([usage]), separators=(",", ":"))

    def _count(self, index: int, delta: inference_pb2.Delta) -> list[int]:
        """Tokens of reasoning and answer of a choice, with this delta's."""
        counts = self._output_tokens.setdefault(index, [0, 0])
        counts[delta.phase != _REASONING] += len(delta.token_ids)
        return counts

    def _logprobs_of(self, index: int, delta: inference_pb2.Delta) -> dict[str, Any] | None:
        top = self._call.logprobs
        if top is None:
            return None
        rows = by_phase([(delta.phase, delta.logprobs)])
        if self._call.chat:
            return chat_logprobs(rows, top)
        return self._logprobs.setdefault(index, CompletionLogprobs(top)).take(rows)


def _calls_body(delta: inference_pb2.Delta, role: str) -> str:
    """A delta of tool calls: the first piece of each with id and name, as OpenAI has it."""
    pieces = []
    for call in delta.tool_calls:
        function: dict[str, str] = {"arguments": call.arguments}
        piece: dict[str, Any] = {"index": call.index, "function": function}
        if call.name:
            piece = {
                "index": call.index,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, **function},
            }
        pieces.append(json.dumps(piece, separators=(",", ":")))
    content = '"content":null,' if role else ""
    calls = f'"tool_calls":[{",".join(pieces)}]' if pieces else ""
    return f'"delta":{{{f"{role}{content}{calls}".rstrip(",")}}}'


def _chat_body(delta: inference_pb2.Delta, first: bool) -> str:
    text = quote(delta.text)
    role = '"role":"assistant",' if first else ""
    if delta.phase == _TOOL_CALL:
        return _calls_body(delta, role)
    if delta.phase == _REASONING:
        # Two names for one thing, as in a whole reply.
        return f'"delta":{{{role}"reasoning_content":{text},"reasoning":{text}}}'
    return f'"delta":{{{role}"content":{text}}}'


def _completion_body(delta: inference_pb2.Delta, echo: str) -> str:
    text = quote(delta.text)
    if delta.phase == _REASONING:
        return f'"text":{quote(echo)},"reasoning_content":{text},"reasoning":{text}'
    return f'"text":{quote(echo + delta.text) if echo else text}'
