"""Votes over answers: which one leads, how sure that is, and when it cannot change. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.policy.thinking.state import Trace


def beats(leader: int, second: int) -> float:
    """Probability that the leader's answer is the likelier of two, under Beta(leader + 1, second + 1).

    Example:
        >>> [beats(*votes) for votes in ((3, 0), (4, 0), (5, 5))]
        [0.9375, 0.96875, 0.5]
    """
    draws = leader + second + 1
    return 1 - sum(math.comb(draws, heads) for heads in range(leader + 1, draws + 1)) / (1 << draws)


def votes_needed(leader: int, second: int, agree: float) -> int:
    """Further votes for the leader after which it is as sure as that.

    Example:
        >>> votes_needed(0, 0, 0.95), votes_needed(0, 0, 0.90), votes_needed(3, 1, 0.95)
        (4, 3, 3)
    """
    more = 0
    while beats(leader + more, second) < agree:
        more += 1
    return more


@dataclass(frozen=True, slots=True)
class Tally:
    """Votes counted. Of equal answers the one that came first leads.

    Example:
        >>> from orchestrator.policy.thinking.state import End
        >>> traces = [Trace(n, end=End.FINISHED, answer=a) for n, a in enumerate("xyy")]
        >>> tally = Tally.of(traces)
        >>> tally.leader, tally.lead, tally.second, tally.first_branch
        ('y', 2, 1, 1)
    """

    votes: dict[str, int]
    weights: dict[str, float]
    branches: dict[str, int]
    """The first branch with each answer."""

    @classmethod
    def of(cls, traces: Sequence[Trace], weight: Callable[[Trace], float] = lambda _: 1.0) -> Tally:
        """Count traces, all of which must have an answer, in the order in which they ended."""
        votes: dict[str, int] = {}
        weights: dict[str, float] = {}
        branches: dict[str, int] = {}
        for trace in traces:
            assert trace.answer is not None
            votes[trace.answer] = votes.get(trace.answer, 0) + 1
            weights[trace.answer] = weights.get(trace.answer, 0.0) + weight(trace)
            branches.setdefault(trace.answer, trace.branch)
        return cls(votes, weights, branches)

    @property
    def leader(self) -> str | None:
        """The answer with most weight."""
        return max(self.weights, key=lambda answer: self.weights[answer], default=None)

    @property
    def lead(self) -> int:
        """Votes for the leader."""
        return self.votes[self.leader] if self.leader is not None else 0

    @property
    def second(self) -> int:
        """Most votes for another answer."""
        return max((votes for answer, votes in self.votes.items() if answer != self.leader), default=0)

    @property
    def first_branch(self) -> int:
        """The branch that was first to give the leader's answer."""
        assert self.leader is not None
        return self.branches[self.leader]

    @property
    def confidence(self) -> float:
        """How sure it is that the leader's answer is the likelier one."""
        return beats(self.lead, self.second) if self.leader is not None else 0.0

    def decided(self, to_come: int) -> bool:
        """Whether so many further votes, each of weight 1 at most, cannot change the leader."""
        if self.leader is None:
            return False
        rivals = max((weight for answer, weight in self.weights.items() if answer != self.leader), default=0.0)
        return self.weights[self.leader] - rivals > to_come
