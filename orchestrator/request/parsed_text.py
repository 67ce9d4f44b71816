"""From token ids to text where a parser reads the output: reasoning, answer and tool calls. No I/O.

In place of `output_text.OutputText` for requests with tools, and for models whose whole output a parser reads. A parser
says of some tokens only later what they were; until then they wait here.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

from orchestrator.policy.phases import Phase, PhaseSplitter, ReasoningMarkers, open_at_end
from orchestrator.request.output_parser import OutputParser, Part
from orchestrator.request.output_text import Piece, StopMatcher


class ParsedText:
    """Turns one choice's tokens into pieces, with those of tool calls.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        prompt_ids: The prompt; its end gives the detokeniser context.
        markers: Reasoning markers; None for a model that does not think.
        parser: Reads the answer, or everything.
        silent_ids: Tokens that end an output, and are no text.
        stops: Stop strings. They count in the answer alone; markup and arguments of calls are no part of it.
        stop_in_reasoning: Whether they count in the reasoning, too.
        include_stop: Whether the stop string stays in the text.
        min_tokens: Tokens before which stop strings do not count.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_ids: Sequence[int],
        markers: ReasoningMarkers | None,
        parser: OutputParser,
        silent_ids: Container[int],
        *,
        stops: Sequence[str] = (),
        stop_in_reasoning: bool = False,
        include_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        if parser.reads_reasoning:
            markers = None
        self._tokenizer = tokenizer
        self._parser = parser
        self._silent_ids = silent_ids
        self._min_tokens = min_tokens
        self._stop_in_reasoning = stop_in_reasoning
        self._splitter = PhaseSplitter(markers, bool(markers and open_at_end(prompt_ids, markers)))
        self._matcher = StopMatcher(stops, include=include_stop)
        self._stream = DecodeStream(ids=list(prompt_ids[-8:]), skip_special_tokens=False)
        self._waiting: list[int] = []
        self._known = 0
        """The first of those that wait with which the caller came."""
        self._text_phase = self._phase = Phase.REASONING if self._splitter.in_reasoning else Phase.ANSWER
        self.reasoning_tokens = 0
        self.answer_tokens = 0
        """Those of tool calls included."""
        self.tool_call_tokens = 0
        self.calls = 0
        self.stop_matched: str | None = None

    @property
    def phase(self) -> Phase:
        """Phase of the newest token that is decided."""
        return self._phase

    def expect_second_end(self, within_tokens: int) -> None:
        """The reasoning is about to be closed by us; see `PhaseSplitter.expect_second_end`."""
        self._splitter.expect_second_end(within_tokens)

    def resume(self, token_ids: Sequence[int]) -> None:
        """Take tokens that the caller has, with their text, already."""
        self.push(token_ids)
        self._known = len(self._waiting)

    def push(self, token_ids: Sequence[int]) -> list[Piece]:
        """Take new tokens; returns pieces in order, merged by phase. After a stop string nothing more is taken."""
        pieces: list[Piece] = []
        for token_id in token_ids:
            for decided in self._splitter.push(token_id):
                if self.stop_matched is None:
                    self._add(pieces, *decided)
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back."""
        pieces: list[Piece] = []
        if self.stop_matched is not None:
            return pieces
        for decided in self._splitter.flush():
            self._add(pieces, *decided)
        self._take(pieces, self._parser.finish())
        if self.stop_matched is None:
            undecided = Phase.REASONING if self._splitter.in_reasoning else Phase.ANSWER
            said = self._parser.reads_reasoning or self._phase is Phase.TOOL_CALL
            self._release(pieces, self._phase if said else undecided)
            if text := self._matcher.flush():
                self._piece(pieces, self._text_phase).text += text
        return pieces

    # --- pieces ---------------------------------------------------------------------------------------------

    def _add(self, pieces: list[Piece], token_id: int, phase: Phase, has_text: bool) -> None:
        self._waiting.append(token_id)
        if not has_text:
            # A marker of the reasoning, wherever it stands, ends a text.
            self._stream = DecodeStream(skip_special_tokens=False)
            self._release(pieces, Phase.REASONING)
            return
        text = "" if token_id in self._silent_ids else self._stream.step(self._tokenizer, token_id) or ""
        parts = [Part(phase, text)] if phase is Phase.REASONING else self._parser.push(token_id, text)
        self._take(pieces, parts)

    def _take(self, pieces: list[Piece], parts: Sequence[Part]) -> None:
        """Give out what is certain by now; the tokens that wait are those of the last part."""
        for part in parts:
            piece = self._piece(pieces, part.phase)
            if part.call is not None:
                piece.calls = (*piece.calls, part.call)
                self.calls = max(self.calls, part.call.index + 1)
            elif part.text or part.phase is Phase.REASONING:
                piece.text += self._matched(pieces, part)
                if self.stop_matched is not None:
                    break
        if parts:
            self._release(pieces, pieces[-1].phase)

    def _matched(self, pieces: list[Piece], part: Part) -> str:
        """A part's text as far as no stop string has it."""
        if part.phase is not self._text_phase:
            if held := self._matcher.flush():
                pieces.insert(len(pieces) - 1, Piece(self._text_phase, held, []))
            self._text_phase = part.phase
        counted = self.reasoning_tokens + self.answer_tokens + len(self._waiting)
        stops_count = part.phase is Phase.ANSWER or self._stop_in_reasoning
        if not stops_count or counted < self._min_tokens:
            return self._matcher.skip(part.text)
        text, self.stop_matched = self._matcher.push(part.text)
        return text

    def _release(self, pieces: list[Piece], phase: Phase) -> None:
        """The tokens that wait are of this phase."""
        count = len(self._waiting)
        if not count:
            return
        self._phase = phase
        if phase is Phase.REASONING:
            self.reasoning_tokens += count
        else:
            self.answer_tokens += count
            self.tool_call_tokens += count if phase is Phase.TOOL_CALL else 0
        if new_ids := self._waiting[self._known :]:
            self._piece(pieces, phase).token_ids += new_ids
        self._waiting, self._known = [], 0

    @staticmethod
    def _piece(pieces: list[Piece], phase: Phase) -> Piece:
        """The last piece, or a new one where that is of another phase."""
        if not pieces or pieces[-1].phase is not phase:
            pieces.append(Piece(phase, "", []))
        return pieces[-1]
