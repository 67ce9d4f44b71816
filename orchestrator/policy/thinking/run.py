"""A strategy at work on one request: what its driver reports goes in, actions on branches come out. Pure.

The strategy decides what it wants; here it is kept within its cap, its budget and what the load allows, every branch
that was started is accounted for until its end, and the tokens of all of them are summed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.policy.thinking.budget import Budget, Lengths, Meters, over, spent_up, startable
from orchestrator.policy.thinking.state import Choice, End, State, Step, Strategy, Trace


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a branch, of so many tokens at most; ``of`` and ``text`` fork it from an ended one."""

    branch: int
    limit_tokens: int
    of: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a branch; its blocks are freed."""

    branch: int


@dataclass(frozen=True, slots=True)
class Close:
    """Close the reasoning of a branch, so that it answers; nothing to do if it answers already, or decodes not yet."""

    branch: int


@dataclass(frozen=True, slots=True)
class CutOff:
    """End a branch as it stands: its budget is used up."""

    branch: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Give the answer of this branch; None: there is none to give."""

    choice: Choice | None


Action = Start | Cancel | Close | CutOff | Answer


@dataclass(slots=True)
class ThinkingRun:
    """Owns the branches of one request, from the first start to the last end.

    Args:
        strategy: Decides.
        budget: What may be spent.
        lengths: Tokens of a branch.
    """

    strategy: Strategy
    budget: Budget
    lengths: Lengths
    choice: Choice | None = None
    answered: bool = False
    started: int = 0
    ended: list[Trace] = field(default_factory=list)
    stopped_by: str = ""
    """The budget that came to its closing reserve."""
    _limits: dict[int, int] = field(default_factory=dict)
    """Of branches that run."""
    _asked: set[int] = field(default_factory=set)
    """Branches that were cancelled or closed and have not ended."""

    @property
    def over(self) -> bool:
        """Whether an answer is given and every branch has ended."""
        return self.answered and not self._limits

    @property
    def running(self) -> list[int]:
        """Branches that have not ended."""
        return list(self._limits)

    def advance(self, meters: Meters, *, ended: Iterable[Trace] = (), running: Sequence[Trace] = ()) -> list[Action]:
        """Take what has happened; returns what to do.

        Args:
            meters: What is spent by now.
            ended: Branches that ended since the last call.
            running: How far others are, where that is known.
        """
        for trace in ended:
            if trace.branch in self._limits:
                assert trace.end is not None
                del self._limits[trace.branch]
                self._asked.discard(trace.branch)
                self.ended.append(trace)
        if self.answered:
            return []
        known = {trace.branch: trace for trace in running}
        state = self._state(meters, [known.get(branch, Trace(branch)) for branch in self._limits])
        if stop := spent_up(self.budget, meters, self.lengths, len(self._limits)) or self.stopped_by:
            return self._budget_ends(stop, state, meters)
        return self._do(self.strategy.next(state), state)

    # --- pieces ---------------------------------------------------------------------------------------------

    @property
    def _unreserved_tokens(self) -> float:
        if self.budget.tokens is None:
            return float("inf")
        return self.budget.tokens - sum(trace.tokens for trace in self.ended) - sum(self._limits.values())

    def _state(self, meters: Meters, running: Sequence[Trace]) -> State:
        left = min(self.strategy.cap - self.started, meters.may_start if self._limits else self.strategy.cap)
        most = startable(self.budget, meters, self.lengths, len(self._limits), self._unreserved_tokens)
        return State(self.strategy.cap, max(0, min(left, most)), tuple(running), tuple(self.ended))

    def _do(self, step: Step, state: State) -> list[Action]:
        if step.choice is not None:
            return self._answer(step.choice)
        actions: list[Action] = [
            Cancel(branch) for branch in step.cancel if branch in self._limits and branch not in self._asked
        ]
        self._asked.update(step.cancel)
        wanted = [(fork.of, fork.text) for fork in step.forks] + [(None, "")] * max(0, step.start)
        actions += self._start(wanted[: state.may_start])
        if not self._limits:
            return self._answer(self.strategy.settle(state))
        return actions

    def _start(self, wanted: Sequence[tuple[int | None, str]]) -> list[Action]:
        starts: list[Action] = []
        for index, (of, text) in enumerate(wanted):
            share = self._unreserved_tokens / (len(wanted) - index)
            limit_tokens = int(min(self.lengths.limit_tokens, share))
            if limit_tokens < 1:
                break
            self._limits[self.started] = limit_tokens
            starts.append(Start(self.started, limit_tokens, of, text))
            self.started += 1
        return starts

    def _budget_ends(self, stop: str, state: State, meters: Meters) -> list[Action]:
        """Answer with what there is, else close the trace that is furthest, within the reserve."""
        self.stopped_by = stop
        if (choice := self.strategy.settle(state)) is not None:
            return self._answer(replace(choice, reason=stop))
        cut = [trace for trace in self.ended if trace.end is End.CUT]
        if cut:
            return self._answer(Choice(cut[-1].branch, stop))
        if not state.running:
            return self._answer(None)
        if used_up := over(self.budget, meters):
            self.stopped_by = used_up
            return [CutOff(branch) for branch in self._limits]
        furthest = max(state.running, key=lambda trace: (trace.branch in self._closing, trace.tokens)).branch
        actions: list[Action] = [Cancel(each) for each in self._limits if each != furthest and each not in self._asked]
        actions.append(Close(furthest))  # again each time: it may not have decoded before
        self._asked.update(self._limits)
        return actions

    @property
    def _closing(self) -> set[int]:
        return self._asked if self.stopped_by else set()

    def _answer(self, choice: Choice | None) -> list[Action]:
        if choice is None:
            cut = [trace for trace in self.ended if trace.end is End.CUT]
            choice = Choice(cut[-1].branch, "cut") if cut else None
        self.answered, self.choice = True, choice
        return [Answer(choice), *(Cancel(branch) for branch in self._limits)]


def ends(run: ThinkingRun) -> Counter[str]:
    """Branches by how they ended; a cut one has finished, too."""
    return Counter("finished" if trace.end is End.CUT else str(trace.end) for trace in run.ended)


def tokens(run: ThinkingRun) -> tuple[int, int]:
    """Tokens of the branch whose answer was given, and of all others."""
    winner = run.choice.branch if run.choice is not None else -1
    won = sum(trace.tokens for trace in run.ended if trace.branch == winner)
    return won, sum(trace.tokens for trace in run.ended) - won
