"""Output as its parser reads it: text by phase, and pieces of tool calls. What parses it is behind this. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.policy.phases import Phase


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of one call. The first one has id and name; ``arguments`` of all, joined, are JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """What is known to be text of a phase, or a piece of a call."""

    phase: Phase
    text: str = ""
    call: CallPiece | None = None


class OutputParser(Protocol):
    """Reads one choice's output, token by token.

    It answers with what is certain by then. Tokens about which nothing is said yet belong to what it says next.
    """

    reads_reasoning: bool
    """Whether it wants the reasoning, too; else the tokens of the answer alone."""

    def push(self, token_id: int, text: str) -> list[Part]:
        """Take a token and the text that it adds, special tokens as their text."""
        ...

    def finish(self) -> list[Part]:
        """What is left, at the end."""
        ...


@dataclass(slots=True)
class Call:
    """A whole call."""

    name: str
    arguments: str
    id: str = ""


class Sent:
    """What of an answer has been given out, against what it turns out to be."""

    def __init__(self) -> None:
        self.content = ""
        self.calls: list[Call] = []

    def text(self, text: str) -> list[Part]:
        """Give out text."""
        self.content += text
        return [Part(Phase.ANSWER, text)] if text else []

    def piece(self, piece: CallPiece) -> list[Part]:
        """Give out a piece of the newest call or of a new one. A call with nothing in it gets an empty object."""
        parts: list[Part] = []
        if piece.index >= len(self.calls):
            if self.calls and not self.calls[-1].arguments:
                parts += self.piece(CallPiece(len(self.calls) - 1, arguments="{}"))
            self.calls.append(Call(piece.name, "", piece.id))
        self.calls[-1].arguments += piece.arguments
        return [*parts, Part(Phase.TOOL_CALL, call=piece)]

    def rest(self, content: str, calls: Iterable[Call]) -> list[Part]:
        """Give out what is missing. What was given out stands, even where the whole reads otherwise."""
        parts: list[Part] = []
        if not self.calls and content.startswith(self.content):
            parts += self.text(content[len(self.content) :])
        known = len(self.calls)
        for index, call in enumerate(calls):
            sent = self.calls[index].arguments if index < known else ""
            if index >= known:
                parts += self.piece(CallPiece(index, call.id, call.name, call.arguments))
            elif index == known - 1 and call.arguments.startswith(sent) and call.arguments != sent:
                parts += self.piece(CallPiece(index, arguments=call.arguments[len(sent) :]))
        return parts
