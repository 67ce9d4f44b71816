"""The deltas of one choice, cut into blocks: reasoning, text and tool calls, in the model's order. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from baton.v1 import inference_pb2
from cluster.errors import EngineFailed


class Kind(Enum):
    """What a block holds."""

    REASONING = "reasoning"
    TEXT = "text"
    CALL = "call"


@dataclass(slots=True)
class Block:
    """A run of one kind. Each tool call is one of its own, and its text is the JSON of its arguments."""

    kind: Kind
    index: int
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[inference_pb2.TokenLogprobs] = field(default_factory=list)
    """One per token of a text, where they were asked for."""
    closed: bool = False

    @property
    def text(self) -> str:
        """What has come of it."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins. The one before it has closed."""

    block: Block


@dataclass(frozen=True, slots=True)
class Piece:
    """Text is added to the open block."""

    block: Block
    text: str
    logprobs: Sequence[inference_pb2.TokenLogprobs] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """The open block is whole, or was cut off."""

    block: Block


Step = Opened | Piece | Closed


class Blocks:
    """Takes the deltas of a choice in order.

    Example:
        >>> blocks = Blocks()
        >>> delta = inference_pb2.Delta(phase=inference_pb2.PHASE_ANSWER, text="Hi")
        >>> [type(step).__name__ for step in [*blocks.take(delta), *blocks.end()]]
        ['Opened', 'Piece', 'Closed']
    """

    def __init__(self) -> None:
        self.all: list[Block] = []
        self.last = inference_pb2.Delta()
        """The delta with the finish reason, once it has come."""
        self._open: Block | None = None
        self._call = -1
        """The contract's index of the newest call."""
        self._logprobs: list[inference_pb2.TokenLogprobs] = []
        """Of tokens whose text has not come: a character may take several."""

    def take(self, delta: inference_pb2.Delta) -> Iterator[Step]:
        """What a delta does to the blocks.

        Raises:
            EngineFailed: it has a piece of a call that has ended.
        """
        if delta.phase == inference_pb2.PHASE_ANSWER:
            self._logprobs.extend(delta.logprobs)
        if delta.text:
            kind = Kind.REASONING if delta.phase == inference_pb2.PHASE_REASONING else Kind.TEXT
            if self._open is None or self._open.kind is not kind:
                yield from self._begin(kind)
            yield self._add(delta.text)
        for piece in delta.tool_calls:
            yield from self._take_call(piece)
        if delta.finish_reason:
            self.last = delta

    def end(self) -> Iterator[Step]:
        """Close what is open. A turn that ended by itself without a word or a call gets an empty text."""
        said = any(block.kind is not Kind.REASONING for block in self.all)
        if not said and self.last.finish_reason != inference_pb2.FINISH_REASON_LENGTH:
            yield from self._begin(Kind.TEXT)
        yield from self._close()

    def _take_call(self, piece: inference_pb2.ToolCallDelta) -> Iterator[Step]:
        goes_on = piece.index == self._call and self._open is not None and self._open.kind is Kind.CALL
        if piece.index <= self._call and not goes_on:
            raise EngineFailed("a piece of a tool call came after the call had ended")
        if piece.index > self._call:
            self._call = piece.index
            yield from self._begin(Kind.CALL, piece.id, piece.name)
        if piece.arguments:
            yield self._add(piece.arguments)

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> Iterator[Step]:
        yield from self._close()
        self._open = Block(kind, len(self.all), call_id, name)
        self.all.append(self._open)
        yield Opened(self._open)

    def _add(self, text: str) -> Piece:
        assert self._open is not None
        self._open.pieces.append(text)
        logprobs = self._settle_logprobs(self._open)
        return Piece(self._open, text, logprobs)

    def _close(self) -> Iterator[Step]:
        if self._open is not None:
            self._settle_logprobs(self._open)
            self._open.closed = True
            yield Closed(self._open)
            self._open = None

    def _settle_logprobs(self, block: Block) -> list[inference_pb2.TokenLogprobs]:
        if block.kind is not Kind.TEXT:
            return []
        settled, self._logprobs = self._logprobs, []
        block.logprobs.extend(settled)
        return settled
