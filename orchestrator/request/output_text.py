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
    """Text and tokens of one phase. Marker tokens count as reasoning and have no text, wherever they stand."""

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


def _last_index(ids: Sequence[int], pattern: tuple[int, ...]) -> int:
    width = len(pattern)
    for index in range(len(ids) - width, -1, -1):
        if ids[index] == pattern[0] and tuple(ids[index : index + width]) == pattern:
            return index
    return -1


@dataclass(slots=True)
class PhaseSplitter:
    """Assigns each token a phase. Tokens that may be the beginning of a marker are held until that is known.

    A marker is never text. One that comes within the answer is left out, and the answer goes on: a model that opens or
    closes its reasoning once more has begun to answer all the same.

    After `expect_second_end` the first tokens behind the next end marker are held back. Where the model closes the
    reasoning once more among them, it had gone on thinking: they are reasoning, and the answer begins there.

    Example:
        >>> splitter = PhaseSplitter(ReasoningMarkers((3,), (4,)), in_reasoning=True)
        >>> [(token, phase.name, text) for ids in (7, 4, 8) for token, phase, text in splitter.push(ids)]
        [(7, 'REASONING', True), (4, 'REASONING', False), (8, 'ANSWER', True)]
    """

    markers: ReasoningMarkers | None
    in_reasoning: bool = False
    answered: bool = False
    """Whether the reasoning is over for good."""
    _held: list[int] = field(default_factory=list)
    _wait_tokens: int = 0
    _behind: list[int] | None = None
    """What came behind a closed marker and is yet to show what it is."""

    def expect_second_end(self, within_tokens: int) -> None:
        """Hold back so many tokens behind the next end marker, in case the model closes the reasoning once more."""
        self._wait_tokens = within_tokens

    def push(self, token_id: int) -> list[tuple[int, Phase, bool]]:
        """Take one token; returns (token, phase, has text) for each token decided."""
        if self.markers is None:
            return [(token_id, Phase.ANSWER, True)]
        if self._behind is None:
            return self._decide(token_id)
        self._behind.append(token_id)
        end = self.markers.end_ids
        if tuple(self._behind[-len(end) :]) == end:
            thought, self._behind = self._behind[: -len(end)], None
            return [
                *((token, Phase.REASONING, True) for token in thought),
                *((token, Phase.REASONING, False) for token in end),
            ]
        return self._let_go() if len(self._behind) > self._wait_tokens else []

    def flush(self) -> list[tuple[int, Phase, bool]]:
        """Decide what is still held, at the end."""
        decided = self._let_go()
        held, self._held = self._held, []
        return [*decided, *(self._plain(token_id) for token_id in held)]

    @property
    def may_be_end(self) -> bool:
        """Whether the newest tokens are the beginning of an end marker."""
        return self.in_reasoning and bool(self._held)

    def _decide(self, token_id: int) -> list[tuple[int, Phase, bool]]:
        assert self.markers is not None
        end = self.markers.end_ids
        patterns = (end,) if self.in_reasoning else (self.markers.start_ids, end)
        if not self._held and all(token_id != pattern[0] for pattern in patterns):
            return [self._plain(token_id)]
        self._held.append(token_id)
        decided: list[tuple[int, Phase, bool]] = []
        while self._held and not any(tuple(self._held) == pattern[: len(self._held)] for pattern in patterns):
            decided.append(self._plain(self._held.pop(0)))
        if tuple(self._held) in patterns:
            decided += [(held, Phase.REASONING, False) for held in self._held]
            ended, self._held = tuple(self._held) == end, []
            if self.in_reasoning and self._wait_tokens:
                self._behind = []
            self.answered |= ended
            self.in_reasoning = not self.answered
        return decided

    def _let_go(self) -> list[tuple[int, Phase, bool]]:
        behind, self._behind = self._behind or [], None
        return [decided for token_id in behind for decided in self._decide(token_id)]

    def _plain(self, token_id: int) -> tuple[int, Phase, bool]:
        return (token_id, Phase.REASONING if self.in_reasoning else Phase.ANSWER, True)


class LineEnds:
    """Tells the tokens whose text ends a line, and remembers them.

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
        self.stop_matched: str | None = None

    @property
    def phase(self) -> Phase:
        """Phase of the next token."""
        return Phase.REASONING if self._splitter.in_reasoning else Phase.ANSWER

    def expect_second_end(self, within_tokens: int) -> None:
        """The reasoning is about to be closed by us; see `PhaseSplitter.expect_second_end`."""
        self._splitter.expect_second_end(within_tokens)

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
