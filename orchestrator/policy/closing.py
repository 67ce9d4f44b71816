"""When a trace of thought is closed, so that an answer always fits; and where a grammar begins. Pure.

The gateway counts every output token here before it goes into the ledger. What comes after the point where the trace
is to be closed is dropped, the end marker goes into the ledger, and the decode worker goes on from that: the *closing
leg*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.policy.phases import Phase, PhaseSplitter, ReasoningMarkers, open_at_end


def reasoning_limit(
    budget_tokens: int | None,
    *,
    max_tokens: int,
    answer_reserve_tokens: int,
    window_tokens: int,
    markers: ReasoningMarkers,
) -> int:
    """Reasoning tokens that a request may have: its budget, and what leaves tokens for the answer in any case.

    At most half of ``max_tokens`` is kept for the answer, so that a small limit leaves tokens for both. Fewer than
    ``window_tokens`` hold no line of a trace, and are none.

    Example:
        >>> given = {"answer_reserve_tokens": 64, "window_tokens": 16, "markers": ReasoningMarkers((3,), (4,))}
        >>> reasoning_limit(None, max_tokens=1000, **given)
        935
        >>> reasoning_limit(50, max_tokens=60, **given)
        29
        >>> reasoning_limit(10, max_tokens=1000, **given), reasoning_limit(None, max_tokens=20, **given)
        (0, 0)
    """
    reserve = min(answer_reserve_tokens, -(-max_tokens // 2))
    most = max(0, max_tokens - reserve - len(markers.end_ids))
    limit = most if budget_tokens is None else min(budget_tokens, most)
    return limit if limit >= window_tokens else 0


@dataclass(frozen=True, slots=True)
class Turn:
    """A leg is to be given up: the ledger goes on with ``token_ids``. ``closes`` the reasoning, or begins a grammar."""

    token_ids: tuple[int, ...]
    closes: bool


class OutputGate:
    """Counts one choice's output on its way into the ledger, and says where it has to take another turn.

    Args:
        markers: Reasoning markers; None for a model that does not think.
        prompt_ids: The prompt; it may leave the reasoning open.
        limit_tokens: Reasoning tokens after which the trace is closed; None for no limit.
        window_tokens: A trace is closed at the end of a line if fewer tokens than these are left. It begins at one.
        ends_line: Whether a token ends a line.
        grammar: Whether the answer has a grammar. It begins with the answer. Where the prompt leaves open whether the
            model thinks, its first token shows it: with any other than the start marker the answer has begun, and is
            begun again with the grammar. A tool call within the reasoning ends that, but its grammar could not begin:
            the reasoning is closed in its place.
        closed: The prompt closes the reasoning, so the first token is the answer's.

    Example:
        >>> gate = OutputGate(ReasoningMarkers((3,), (4,)), [3], limit_tokens=2)
        >>> gate.take([7, 8, 9])
        ((7, 8), Turn(token_ids=(4,), closes=True))
    """

    def __init__(
        self,
        markers: ReasoningMarkers | None,
        prompt_ids: Sequence[int],
        *,
        limit_tokens: int | None = None,
        window_tokens: int = 0,
        ends_line: Callable[[int], bool] = lambda _: False,
        grammar: bool = False,
        closed: bool = False,
    ) -> None:
        opens = markers is not None and open_at_end(prompt_ids, markers)
        self._markers = markers
        self._splitter = PhaseSplitter(markers, opens)
        self._limit_tokens = limit_tokens
        self._window_tokens = window_tokens
        self._ends_line = ends_line
        self._line_ended = True
        self._implicit_ends = markers.implicit_ends if markers else ()
        self._grammar = grammar
        self._undecided = grammar and markers is not None and not opens and not closed
        self._held: list[int] = []
        self.reasoning_tokens = 0
        """Tokens since the reasoning was opened, a start marker that the model wrote included."""
        self.closed = False
        """Whether the trace was closed here, not by the model."""
        self.answer_began = False
        """Whether the ledger holds a token of the answer."""

    @property
    def awaits_answer(self) -> bool:
        """Whether an end marker is still to come before the answer, as far as is known."""
        return self._splitter.in_reasoning or self._undecided

    @property
    def thinks(self) -> bool:
        """Whether the reasoning is open."""
        return self._splitter.in_reasoning

    @property
    def held_tokens(self) -> int:
        """Tokens that may be the beginning of a start marker, and are not in the ledger."""
        return len(self._held)

    def push(self, token_ids: Sequence[int]) -> None:
        """Count tokens that are in the ledger, whatever they are."""
        for token_id in token_ids:
            self._undecided = False
            self._count(token_id)

    def take(self, token_ids: Sequence[int], *, ends: bool = False) -> tuple[tuple[int, ...], Turn | None]:
        """Count new tokens of a leg; returns those for the ledger and, if the leg must be given up, how to go on.

        Args:
            token_ids: What the leg said.
            ends: Whether these are its last ones; then nothing is held back.
        """
        if self.answer_began and (self._splitter.answered or self._markers is None):
            return tuple(token_ids), None
        taken: list[int] = []
        for token_id in token_ids:
            if self._undecided:
                self._held.append(token_id)
                if (turn := self._look(taken)) is not None:
                    return tuple(taken), turn
                continue
            if self.closes_before(token_id):
                return tuple(taken), self.close()
            if self._grammar and self._splitter.in_reasoning and (token_id,) in self._implicit_ends:
                return tuple(taken), self._end_reasoning()
            self._count(token_id)
            taken.append(token_id)
        if ends and self._held:
            return tuple(taken), self._begin_grammar()
        return tuple(taken), None

    def passes(self, token_ids: Sequence[int]) -> bool:
        """Count new tokens that all go into the ledger for certain, and nothing else; otherwise `take` has to look.

        Returns whether they were counted. It does what `take` would have done, for a small part of its cost. At least
        one token must be given.
        """
        splitter = self._splitter
        if self.answer_began and (splitter.answered or self._markers is None):
            return True
        if self._undecided or any(splitter.plain_phase(token_id) is None for token_id in token_ids):
            return False
        if not splitter.in_reasoning:
            self.answer_began = True
            return True
        after = self.reasoning_tokens + len(token_ids)
        if self._limit_tokens is not None and self._limit_tokens - after < self._window_tokens:
            return False
        self.reasoning_tokens = after
        self._line_ended = self._ends_line(token_ids[-1])
        return True

    def close(self) -> Turn:
        """Close the trace where it is."""
        self.closed = True
        return replace(self._end_reasoning(), closes=True)

    def forget_held(self) -> int:
        """A leg ended in the middle of a start marker: what it said of that is void. Returns how many tokens."""
        count, self._held = len(self._held), []
        return count

    def closes_before(self, token_id: int) -> bool:
        """Whether the trace is to be closed where it is, rather than go on with this token."""
        limit, splitter, markers = self._limit_tokens, self._splitter, self._markers
        if limit is None or markers is None or not splitter.in_reasoning:
            return False
        left = limit - self.reasoning_tokens
        if left > 0 and not (self._line_ended and left < self._window_tokens):
            return False
        # The model may be closing it by itself.
        return not splitter.may_be_end and all(token_id != end[0] for end in (markers.end_ids, *self._implicit_ends))

    # --- pieces ---------------------------------------------------------------------------------------------

    def _look(self, taken: list[int]) -> Turn | None:
        """Decide, if it can be decided, whether the model thinks."""
        assert self._markers is not None
        start = self._markers.start_ids
        if tuple(self._held) != start[: len(self._held)]:
            return self._begin_grammar()
        if len(self._held) == len(start):
            taken += self._held
            self._held = []
            self.push(start)
        return None

    def _end_reasoning(self) -> Turn:
        assert self._markers is not None
        self.push(self._markers.end_ids)
        return Turn(self._markers.end_ids, closes=False)

    def _begin_grammar(self) -> Turn:
        self._held, self._undecided = [], False
        return Turn((), closes=False)

    def _count(self, token_id: int) -> None:
        splitter = self._splitter
        thought = splitter.in_reasoning
        decided = splitter.push(token_id)
        if thought and any(phase is Phase.ANSWER for _, phase, _ in decided):
            self.answer_began = True
        elif thought or splitter.in_reasoning:
            self.reasoning_tokens += 1
            self._line_ended = self._ends_line(token_id)
        elif splitter.answered or any(text for _, _, text in decided):
            self.answer_began = True
