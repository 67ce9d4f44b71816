"""Majority vote that stops early: self-consistency in waves.

The first wave is the least that can agree; then as many more are started as would settle it if all went to the leader.
It ends once the leader beats the runner-up with the probability asked for, or cannot be caught.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.policy.thinking.agreement import Tally, beats, votes_needed
from orchestrator.policy.thinking.registry import check_options, option, register
from orchestrator.policy.thinking.state import Choice, Settings, State, Step, Trace


@dataclass(frozen=True, slots=True)
class Vote:
    """Votes in waves. ``weighted``: each counts by the geometric mean of its tokens' probabilities."""

    cap: int
    wave: int
    agree: float
    weighted: bool = False
    extracts: bool = True

    @property
    def scores(self) -> bool:
        """Weights are log-probabilities."""
        return self.weighted

    def next(self, state: State) -> Step:
        """Start a wave, stop, or go on."""
        tally = self._tally(state)
        if (stop := self._stop(tally, state)) is not None:
            return Step(choice=stop)
        if not state.ended:
            return Step(start=max(0, self.wave - len(state.running)))
        return Step(start=max(0, self._missing(tally) - len(state.running)))

    def settle(self, state: State) -> Choice | None:
        """The leader, or, where nobody voted, what finished first."""
        tally = self._tally(state)
        if tally.leader is not None:
            return Choice(tally.first_branch, "samples", tally.confidence)
        return Choice(state.finished[0].branch, "no_votes", 0.0) if state.finished else None

    def _stop(self, tally: Tally, state: State) -> Choice | None:
        if tally.leader is None:
            return None
        if tally.decided(state.to_come):
            return Choice(tally.first_branch, "decided", tally.confidence)
        most_votes = max(tally.votes.values())
        if tally.lead == most_votes and beats(tally.lead, tally.second) >= self.agree:
            return Choice(tally.first_branch, "agreed", tally.confidence)
        return None

    def _missing(self, tally: Tally) -> int:
        """Votes for the leader that would settle it; at least one."""
        return max(1, votes_needed(tally.lead, tally.second, self.agree))

    def _tally(self, state: State) -> Tally:
        return Tally.of(state.votes, _weight if self.weighted else lambda _: 1.0)


def _weight(trace: Trace) -> float:
    return math.exp(min(0.0, trace.mean_logprob))


@register("vote")
def vote(settings: Settings) -> Vote:
    """Option ``weight``: ``equal`` or ``confidence``."""
    check_options(settings, "weight")
    wave = settings.least or votes_needed(0, 0, settings.agree)
    weighted = option(settings, "weight", ("equal", "confidence")) == "confidence"
    return Vote(settings.most, min(wave, settings.most), settings.agree, weighted)
