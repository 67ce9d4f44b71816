"""From token ids to text: detokenising, text by phase (reasoning, answer), and finding stop strings. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import DecodeStream

from orchestrator.policy.phases import Phase, PhaseSplitter, ReasoningMarkers, open_at_end
from orchestrator.request.output_parser import CallPiece


@dataclass(slots=True)
class Piece:
    """Text and tokens of one phase. Marker tokens count as reasoning and have no text, wherever they stand."""

    phase: Phase
    text: str
    token_ids: list[int]
    calls: tuple[CallPiece, ...] = ()


class LineEnds:
    """Whether a line ends with a token, remembered by token.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bool] = {}

    def __call__(self, token_id: int) -> bool:
        """Whether a line ends with this token."""
        known = self._known.get(token_id)
        if known is None:
            text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
            known = self._known[token_id] = text.endswith("\n")
        return known


class StopMatcher:
    """Finds the first stop string in text that comes in pieces; holds back what may be the beginning of one.

    Example:
        >>> matcher = StopMatcher(["END"], include=False)
        >>> matcher.push("abcE"), matcher.push("ND!")
        (('abc', None), ('', 'END'))
    """

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        self.stops = [stop for stop in stops if stop]
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take text; returns what may be sent, and the stop string if one was found."""
        if not self.stops:
            return text, None
        buffer = self._held + text
        found = [(index, stop) for stop in self.stops if (index := buffer.find(stop)) >= 0]
        if found:
            index, stop = min(found)
            self._held = ""
            return buffer[: index + len(stop) if self._include else index], stop
        hold = max((self._overlap(buffer, stop) for stop in self.stops), default=0)
        self._held = buffer[len(buffer) - hold :]
        return buffer[: len(buffer) - hold], None

    def skip(self, text: str) -> str:
        """Take text in which stop strings do not count yet (min_tokens)."""
        result, self._held = self._held + text, ""
        return result

    def flush(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(buffer: str, stop: str) -> int:
        for width in range(min(len(stop) - 1, len(buffer)), 0, -1):
            if buffer.endswith(stop[:width]):
                return width
        return 0


class OutputText:
    """Turns one choice's tokens into pieces.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        prompt_ids: The prompt; its end gives the detokeniser context (a leading space, say).
        markers: Reasoning markers; None for a model that does not think.
        stops: Stop strings. They count in the answer alone.
        stop_in_reasoning: Whether they count in the reasoning, too.
        include_stop: Whether the stop string stays in the text.
        min_tokens: Tokens before which stop strings do not count.
        skip_special_tokens: Whether special tokens leave no text.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_ids: Sequence[int],
        markers: ReasoningMarkers | None,
        *,
        stops: Sequence[str] = (),
        stop_in_reasoning: bool = False,
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._min_tokens = min_tokens
        self._splitter = PhaseSplitter(markers, bool(markers and open_at_end(prompt_ids, markers)))
        self._matcher = StopMatcher(stops, include=include_stop)
        self._stop_in_reasoning = stop_in_reasoning
        self._text_phase = self.phase
        self._stream = DecodeStream(ids=list(prompt_ids[-8:]), skip_special_tokens=skip_special_tokens)
        self.reasoning_tokens = 0
        self.answer_tokens = 0
        self.tool_call_tokens = self.calls = 0
        """None here; see `parsed_text.ParsedText`."""
        self.stop_matched: str | None = None

    @property
    def phase(self) -> Phase:
        """Phase of the next token."""
        return Phase.REASONING if self._splitter.in_reasoning else Phase.ANSWER

    def expect_second_end(self, within_tokens: int) -> None:
        """The reasoning is about to be closed by us; see `PhaseSplitter.expect_second_end`."""
        self._splitter.expect_second_end(within_tokens)

    def resume(self, token_ids: Sequence[int]) -> None:
        """Take tokens that the caller has, with their text, already."""
        self.push(token_ids)

    def push(self, token_ids: Sequence[int]) -> list[Piece]:
        """Take new tokens; returns pieces in order, merged by phase. After a stop string nothing more is taken."""
        pieces: list[Piece] = []
        if self.stop_matched is not None:
            return pieces
        splitter = self._splitter
        for token_id in token_ids:
            phase = splitter.plain_phase(token_id)
            if phase is not None:
                self._add(pieces, token_id, phase, True)
                if self.stop_matched is not None:
                    return pieces
                continue
            for decided in splitter.push(token_id):
                self._add(pieces, *decided)
                if self.stop_matched is not None:
                    return pieces
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back."""
        pieces: list[Piece] = []
        if self.stop_matched is None:
            for decided in self._splitter.flush():
                self._add(pieces, *decided)
            if text := self._matcher.flush():
                self._append(pieces, self._text_phase, text, None)
        return pieces

    def _add(self, pieces: list[Piece], token_id: int, phase: Phase, has_text: bool) -> None:
        if phase is Phase.REASONING:
            self.reasoning_tokens += 1
        else:
            self.answer_tokens += 1
        text = ""
        if has_text:
            text = self._stream.step(self._tokenizer, token_id) or ""
        else:
            # A marker ends a text: what was held belongs to the phase before it.
            if held := self._matcher.flush():
                self._append(pieces, self._text_phase, held, None)
            self._stream = DecodeStream(skip_special_tokens=self._skip_special)
        if has_text:
            self._text_phase = phase
        if self._matcher.stops:
            stops_count = phase is Phase.ANSWER or self._stop_in_reasoning
            if not stops_count or self.reasoning_tokens + self.answer_tokens < self._min_tokens:
                text = self._matcher.skip(text)
            else:
                text, self.stop_matched = self._matcher.push(text)
        self._append(pieces, phase, text, token_id)

    @staticmethod
    def _append(pieces: list[Piece], phase: Phase, text: str, token_id: int | None) -> None:
        if not pieces or pieces[-1].phase is not phase:
            pieces.append(Piece(phase, "", []))
        pieces[-1].text += text
        if token_id is not None:
            pieces[-1].token_ids.append(token_id)
