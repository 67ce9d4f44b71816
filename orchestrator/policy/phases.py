"""Which output tokens are reasoning and which are the answer, by the markers between them. Pure.

Here a tool call is part of the answer; `orchestrator.request.parsed_text` distinguishes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum


class Phase(IntEnum):
    """What a token is part of; values as in the API."""

    REASONING = 1
    ANSWER = 2
    TOOL_CALL = 3


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """Token sequences that open and close the reasoning.

    With one of ``implicit_ends`` the answer begins, too, and it is part of the answer: a tool call, say, for which a
    model does not always close its reasoning.
    """

    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    implicit_ends: tuple[tuple[int, ...], ...] = ()


def open_at_end(prompt_ids: Sequence[int], markers: ReasoningMarkers) -> bool:
    """Whether the prompt leaves the reasoning open: its last opening marker comes after its last closing one.

    Example:
        >>> open_at_end([7, 3, 9], ReasoningMarkers((3,), (4,)))
        True
        >>> open_at_end([7, 3, 9, 4], ReasoningMarkers((3,), (4,)))
        False
    """
    ends = (markers.end_ids, *markers.implicit_ends)
    return _last_index(prompt_ids, markers.start_ids) > max(_last_index(prompt_ids, end) for end in ends)


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

    def plain_phase(self, token_id: int) -> Phase | None:
        """The phase of a token that is text for certain and changes nothing here; None where `push` has to decide.

        Example:
            >>> splitter = PhaseSplitter(ReasoningMarkers((3,), (4,)), in_reasoning=True)
            >>> splitter.plain_phase(7).name, splitter.plain_phase(4)
            ('REASONING', None)
        """
        markers = self.markers
        if markers is None:
            return Phase.ANSWER
        if self._held or self._behind is not None or token_id == markers.end_ids[0]:
            return None
        if self.in_reasoning:
            return None if any(token_id == end[0] for end in markers.implicit_ends) else Phase.REASONING
        return None if token_id == markers.start_ids[0] else Phase.ANSWER

    def flush(self) -> list[tuple[int, Phase, bool]]:
        """Decide what is still held, at the end."""
        decided = self._let_go()
        held, self._held = self._held, []
        return [*decided, *(self._plain(token_id) for token_id in held)]

    @property
    def may_be_end(self) -> bool:
        """Whether the newest tokens are the beginning of an end of the reasoning."""
        return self.in_reasoning and bool(self._held)

    def _decide(self, token_id: int) -> list[tuple[int, Phase, bool]]:
        assert self.markers is not None
        end, implicit = self.markers.end_ids, self.markers.implicit_ends
        patterns = (end, *implicit) if self.in_reasoning else (self.markers.start_ids, end)
        if not self._held and all(token_id != pattern[0] for pattern in patterns):
            return [self._plain(token_id)]
        self._held.append(token_id)
        decided: list[tuple[int, Phase, bool]] = []
        while self._held and not any(tuple(self._held) == pattern[: len(self._held)] for pattern in patterns):
            decided.append(self._plain(self._held.pop(0)))
        if self.in_reasoning and tuple(self._held) in implicit:
            decided += [(held, Phase.ANSWER, True) for held in self._held]
            self._held, self.answered, self.in_reasoning = [], True, False
        elif tuple(self._held) in patterns:
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
