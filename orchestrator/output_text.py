"""From token ids to text: detokenising, telling reasoning from answer, and finding stop strings. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from tokenizers.decoders import DecodeStream


class Phase(IntEnum):
    """What a token is part of; values as in the API."""

    REASONING = 1
    ANSWER = 2


@dataclass(slots=True)
class Piece:
    """Text and tokens of one phase. Marker tokens count as reasoning and have no text."""

    phase: Phase
    text: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """Token sequences that open and close the reasoning."""

    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]


def open_at_end(prompt_ids: Sequence[int], markers: ReasoningMarkers) -> bool:
    """Whether the prompt leaves the reasoning open: its last opening marker comes after its last closing one.

    Example:
        >>> open_at_end([7, 3, 9], ReasoningMarkers((3,), (4,)))
        True
        >>> open_at_end([7, 3, 9, 4], ReasoningMarkers((3,), (4,)))
        False
    """
    return _last_index(prompt_ids, markers.start_ids) > _last_index(prompt_ids, markers.end_ids)


def budget_survives(prompt_ids: Sequence[int], output_ids: Sequence[int], markers: ReasoningMarkers) -> bool:
    """Whether an engine that gets the output so far as prompt counts a thinking budget as the first engine did.

    It counts anew from the ledger. That comes out the same where the reasoning is open from the first token on; tokens
    before the marker are counted by one engine and not by the other. A budget's end of several tokens, cut in the
    middle, would be begun again.
    """
    opened = open_at_end(prompt_ids, markers) or tuple(output_ids[: len(markers.start_ids)]) == markers.start_ids
    return opened and len(markers.end_ids) == 1


def _last_index(ids: Sequence[int], pattern: tuple[int, ...]) -> int:
    width = len(pattern)
    for index in range(len(ids) - width, -1, -1):
        if ids[index] == pattern[0] and tuple(ids[index : index + width]) == pattern:
            return index
    return -1


@dataclass(slots=True)
class PhaseSplitter:
    """Assigns each token a phase. Tokens that may be the beginning of a marker are held until that is known.

    Example:
        >>> splitter = PhaseSplitter(ReasoningMarkers((3,), (4,)), in_reasoning=True)
        >>> [(token, phase.name, text) for ids in (7, 4, 8) for token, phase, text in splitter.push(ids)]
        [(7, 'REASONING', True), (4, 'REASONING', False), (8, 'ANSWER', True)]
    """

    markers: ReasoningMarkers | None
    in_reasoning: bool = False
    _held: list[int] = field(default_factory=list)
    _answered: bool = False

    def push(self, token_id: int) -> list[tuple[int, Phase, bool]]:
        """Take one token; returns (token, phase, has text) for each token decided."""
        if self.markers is None:
            return [(token_id, Phase.ANSWER, True)]
        pattern = self.markers.end_ids if self.in_reasoning else self.markers.start_ids
        if not self.in_reasoning and self._answered:
            return [(token_id, Phase.ANSWER, True)]
        self._held.append(token_id)
        decided: list[tuple[int, Phase, bool]] = []
        while self._held and tuple(self._held) != pattern[: len(self._held)]:
            decided.append(self._plain(self._held.pop(0)))
        if len(self._held) == len(pattern):
            decided += [(held, Phase.REASONING, False) for held in self._held]
            self._held = []
            self._answered = self.in_reasoning
            self.in_reasoning = not self.in_reasoning
        return decided

    def flush(self) -> list[tuple[int, Phase, bool]]:
        """Decide what is still held, at the end."""
        held, self._held = self._held, []
        return [self._plain(token_id) for token_id in held]

    def _plain(self, token_id: int) -> tuple[int, Phase, bool]:
        return (token_id, Phase.REASONING if self.in_reasoning else Phase.ANSWER, True)


class StopMatcher:
    """Finds the first stop string in text that comes in pieces; holds back what may be the beginning of one.

    Example:
        >>> matcher = StopMatcher(["END"], include=False)
        >>> matcher.push("abcE"), matcher.push("ND!")
        (('abc', None), ('', 'END'))
    """

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        self._stops = [stop for stop in stops if stop]
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take text; returns what may be sent, and the stop string if one was found."""
        if not self._stops:
            return text, None
        buffer = self._held + text
        found = [(index, stop) for stop in self._stops if (index := buffer.find(stop)) >= 0]
        if found:
            index, stop = min(found)
            self._held = ""
            return buffer[: index + len(stop) if self._include else index], stop
        hold = max((self._overlap(buffer, stop) for stop in self._stops), default=0)
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
        stops: Stop strings.
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
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._min_tokens = min_tokens
        self._splitter = PhaseSplitter(markers, bool(markers and open_at_end(prompt_ids, markers)))
        self._matcher = StopMatcher(stops, include=include_stop)
        self._stream = DecodeStream(ids=list(prompt_ids[-8:]), skip_special_tokens=skip_special_tokens)
        self.reasoning_tokens = 0
        self.answer_tokens = 0
        self.stop_matched: str | None = None

    @property
    def phase(self) -> Phase:
        """Phase of the next token."""
        return Phase.REASONING if self._splitter.in_reasoning else Phase.ANSWER

    def push(self, token_ids: Sequence[int]) -> list[Piece]:
        """Take new tokens; returns pieces in order, merged by phase. After a stop string nothing more is taken."""
        pieces: list[Piece] = []
        if self.stop_matched is not None:
            return pieces
        for token_id in token_ids:
            for decided in self._splitter.push(token_id):
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
                self._append(pieces, self.phase, text, None)
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
                self._append(pieces, phase, held, None)
            self._stream = DecodeStream(skip_special_tokens=self._skip_special)
        if self.reasoning_tokens + self.answer_tokens < self._min_tokens:
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
