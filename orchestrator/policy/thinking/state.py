"""What strategies see of the branches of a request, and what they answer. Data alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class End(StrEnum):
    """How a branch ended.

    CUT: at a limit, or its reasoning was closed there. Its answer is no vote.
    """

    FINISHED = "finished"
    CUT = "cut"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Trace:
    """A branch as it stands, or as it ended."""

    branch: int
    tokens: int = 0
    end: End | None = None
    """None while it runs."""
    answer: str | None = None
    """Extracted and normalised; None where there is none."""
    mean_logprob: float = 0.0
    """Of its sampled tokens."""
    lowest_logprob: float = 0.0
    """The least mean over a window of them."""


@dataclass(frozen=True, slots=True)
class State:
    """The branches of one request.

    ``ended`` are in the order in which they did; ``may_start`` is how many more the cap, the budget and the load allow
    at present, and 0 while some run is no reason to settle.
    """

    cap: int
    may_start: int
    running: tuple[Trace, ...] = ()
    ended: tuple[Trace, ...] = ()

    @property
    def finished(self) -> list[Trace]:
        """Those that made all of their tokens."""
        return [trace for trace in self.ended if trace.end is End.FINISHED]

    @property
    def votes(self) -> list[Trace]:
        """Those whose answer counts."""
        return [trace for trace in self.finished if trace.answer is not None]

    @property
    def to_come(self) -> int:
        """Votes that can still come, at most."""
        return self.cap - len(self.ended)


@dataclass(frozen=True, slots=True)
class Choice:
    """The branch whose answer is given, and why now."""

    branch: int
    reason: str
    confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class Fork:
    """A branch that goes on from the prompt and output of an ended one, and from a further turn of the user."""

    of: int
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """What a strategy wants done: start so many branches, fork, cancel, or give an answer."""

    start: int = 0
    forks: tuple[Fork, ...] = ()
    cancel: tuple[int, ...] = ()
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What a request asks of its strategy."""

    least: int = 0
    """Branches of the first wave; 0 leaves it to the strategy."""
    most: int = 8
    """Branches at most."""
    agree: float = 0.95
    options: dict[str, str] = field(default_factory=dict)
    """Further ones, by the strategy's own names."""


class Strategy(Protocol):
    """Decides by what it sees, and keeps nothing."""

    @property
    def cap(self) -> int:
        """Branches that it will start at most."""
        ...

    @property
    def extracts(self) -> bool:
        """Whether it needs the traces' answers."""
        ...

    @property
    def scores(self) -> bool:
        """Whether it needs the log-probabilities of sampled tokens."""
        ...

    def next(self, state: State) -> Step:
        """What to do, after the start and after every change."""
        ...

    def settle(self, state: State) -> Choice | None:
        """The answer by what has ended, since no more will come; None where nothing has that will do."""
        ...
