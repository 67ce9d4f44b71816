"""Reads tool calls with vLLM's parsers, so that a stream gives what they make of the whole output.

vLLM has two kinds of parsers. *Engines* are one state machine for streams and whole outputs. The older ones have a
second implementation for streams, whose result depends on how the output is cut and differs from that for the whole
(ADR 28); of these the one for the whole is used alone. Whatever is given out is compared with the whole at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from orchestrator.policy.phases import Phase
from orchestrator.request.json_calls import JsonCalls
from orchestrator.request.output_parser import Call, CallPiece, Part, Sent


class Whole(NamedTuple):
    """What vLLM makes of a whole answer."""

    content: str
    calls: list[Call]


ParseWhole = Callable[[str, Sequence[int]], Whole]


class HeldCalls:
    """Content as it comes until a call may begin; the rest at the end, as the parser reads the whole.

    Args:
        parse: Reads a whole answer.
        starts: Text with which a call begins; none: all is held.
        json_starts: Whether a JSON object with a name as its first key may begin one as well.
        limit: Most calls.
        json_calls: Finds calls that are certain to be there while they are written; None where none is certain.
    """

    reads_reasoning = False

    def __init__(
        self,
        parse: ParseWhole,
        starts: Sequence[str],
        *,
        json_starts: bool,
        limit: int | None,
        json_calls: JsonCalls | None = None,
    ) -> None:
        self._json_calls = json_calls
        self._parse = parse
        self._starts = tuple(starts)
        self._json_starts = json_starts
        self._limit = limit
        self._sent = Sent()
        self._text = ""
        self._ids: list[int] = []
        self._holds = not starts and not json_starts

    def push(self, token_id: int, text: str) -> list[Part]:
        """Take a token of the answer."""
        self._text += text
        self._ids.append(token_id)
        parts = self._written_calls(text)
        if self._holds or parts:
            return parts
        begun = len(self._sent.content)
        until, self._holds = self._plain_until(begun)
        content = self._text[begun:until]
        # White space before a call is no content, and nobody misses it before it is known whether there is one.
        return self._sent.text(content) if begun or content.strip() else []

    def finish(self) -> list[Part]:
        """Everything that was held."""
        whole = self._parse(self._text, self._ids)
        return self._sent.rest(whole.content, whole.calls[: self._limit])

    def _written_calls(self, text: str) -> list[Part]:
        parts: list[Part] = []
        for piece in self._json_calls.push(text) if self._json_calls else ():
            if self._limit is None or piece.index < self._limit:
                self._holds = True
                parts += self._sent.piece(piece)
        return parts

    def _plain_until(self, begun: int) -> tuple[int, bool]:
        """Where what may be a call begins, and whether it does."""
        text = self._text
        found = [index for start in self._starts if (index := text.find(start, begun)) >= 0]
        until = len(text)
        for start in self._starts:
            widths = range(min(len(start) - 1, len(text) - begun), 0, -1)
            until = min(until, len(text) - next((width for width in widths if text.endswith(start[:width])), 0))
        if self._json_starts:
            brace = text.find("{", begun)
            while brace >= 0:
                key = text[brace + 1 :].lstrip()[:6]
                if key == '"name"':
                    found.append(brace)
                    break
                if '"name"'.startswith(key):
                    until = min(until, brace)
                    break
                brace = text.find("{", brace + 1)
        return (min(found), True) if found else (until, False)


class StreamedCalls:
    """Content and arguments as they come, from a parser that reads streams as it does the whole.

    Args:
        parser: vLLM's, new.
        request: vLLM's request.
        parse: Reads a whole answer.
        limit: Most calls.
    """

    reads_reasoning = False

    def __init__(self, parser: Any, request: Any, parse: ParseWhole, *, limit: int | None) -> None:
        self._parser = parser
        self._request = request
        self._parse = parse
        self._limit = limit
        self._sent = Sent()
        self._text = ""
        self._ids: list[int] = []
        self._space = ""

    def push(self, token_id: int, text: str) -> list[Part]:
        """Take a token of the answer."""
        self._text += text
        self._ids.append(token_id)
        return self._take(text, [token_id], finished=False)

    def finish(self) -> list[Part]:
        """Everything that was held."""
        parts = self._take("", [], finished=True)
        whole = self._parse(self._text, self._ids)
        return parts + self._sent.rest(whole.content, whole.calls[: self._limit])

    def _take(self, text: str, ids: list[int], *, finished: bool) -> list[Part]:
        # With a prompt, empty: the reasoning is over.
        delta = self._parser.parse_delta(text, ids, self._request, [], finished=finished)
        if delta is None:
            return []
        parts: list[Part] = []
        if delta.content:
            # White space before a call may be no content; what the parser makes of all so far says.
            content = self._space + delta.content
            kept = content.rstrip()
            self._space = content[len(kept) :]
            parts += self._sent.text(kept)
        if delta.tool_calls and not self._sent.calls:
            parts += self._sent.rest(self._parse(self._text, self._ids).content, ())
        for call in delta.tool_calls or ():
            if self._limit is None or call.index < self._limit:
                function = call.function
                name, arguments = (function.name or "", function.arguments or "") if function else ("", "")
                parts += self._sent.piece(CallPiece(call.index, call.id or "", name, arguments))
        return parts


class HarmonyCalls:
    """gpt-oss's channels: reasoning, content, and calls, each of which is given out when its message is complete.

    vLLM's parser for streams writes arguments as they come and joins messages by nothing; that for the whole formats
    them again and joins messages by line ends, and so does this.

    Args:
        parser: vLLM's `HarmonyParser`, new.
        prompt_ids: What of the assistant's turn the prompt has already.
        is_call: Whether a message to this recipient is a call.
        read_call: A complete message as a call.
        limit: Most calls.
    """

    reads_reasoning = True

    def __init__(
        self,
        parser: Any,
        prompt_ids: Sequence[int],
        is_call: Callable[[str], bool],
        read_call: Callable[[Any], Call],
        *,
        limit: int | None,
    ) -> None:
        self._parser = parser
        self._is_call = is_call
        self._read_call = read_call
        self._limit = limit
        self._calls = 0
        self._ended: set[Phase] = set()
        """Phases with text whose last message is complete."""
        self._said: set[Phase] = set()
        parser.process_chunk(prompt_ids)

    def push(self, token_id: int, text: str) -> list[Part]:
        """Take a token."""
        return self._parts(self._parser.process_chunk([token_id]).segments)

    def finish(self) -> list[Part]:
        """What a message that is not complete has."""
        return self._parts(self._parser.flush())

    def _parts(self, segments: Sequence[Any]) -> list[Part]:
        parts: list[Part] = []
        for segment in segments:
            message = segment.completed_message
            phase = self._phase(segment.channel, segment.recipient)
            if message is None:
                if segment.delta and phase in (Phase.REASONING, Phase.ANSWER):
                    text = ("\n" if phase in self._ended else "") + segment.delta
                    self._ended.discard(phase)
                    self._said.add(phase)
                    parts.append(Part(phase, text))
                continue
            phase = self._phase(message.channel, message.recipient)
            if phase is Phase.TOOL_CALL and message.content and (self._limit is None or self._calls < self._limit):
                call = self._read_call(message)
                parts.append(Part(phase, call=CallPiece(self._calls, call.id, call.name, call.arguments)))
                self._calls += 1
            elif phase in self._said:
                self._ended.add(phase)
        return parts

    def _phase(self, channel: str | None, recipient: str | None) -> Phase | None:
        if recipient and self._is_call(recipient):
            return Phase.TOOL_CALL
        if channel == "analysis":
            return Phase.REASONING
        return Phase.ANSWER if channel == "final" or (channel == "commentary" and recipient is None) else None
