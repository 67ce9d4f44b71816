"""A vote of the confident: traces whose least sure window is worse than that of the first wave's best are cancelled.

In the manner of DeepConf, by the log-probabilities of sampled tokens. The first wave runs to its end and sets the
threshold, so there is always somebody to vote; votes count by their confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.policy.thinking.agreement import Tally
from orchestrator.policy.thinking.registry import check_options, option, register
from orchestrator.policy.thinking.state import Choice, End, Settings, State, Step, Trace

KEEP = {"low": 0.1, "high": 0.9}
"""Share of the first wave that would pass its own threshold."""


@dataclass(frozen=True, slots=True)
class ConfidentVote:
    """Votes weighted by confidence, behind a threshold from the first wave."""

    cap: int
    wave: int
    agree: float
    keep: float
    extracts: bool = True
    scores: bool = True

    def next(self, state: State) -> Step:
        """Run the first wave to its end, then the others as far as they are sure."""
        first = [trace for trace in state.ended if trace.branch < self.wave]
        if len(first) < self.wave:
            return Step(start=self.wave - len(first) - sum(trace.branch < self.wave for trace in state.running))
        tally = self._tally(state)
        if (leader := tally.leader) is not None:
            share = tally.weights[leader] / sum(tally.weights.values())
            if tally.decided(state.to_come):
                return Step(choice=Choice(tally.first_branch, "decided", share))
            if share >= self.agree:
                return Step(choice=Choice(tally.first_branch, "agreed", share))
        unsure = tuple(trace.branch for trace in state.running if trace.lowest_logprob < self._threshold(first))
        return Step(start=self.cap - len(state.running) - len(state.ended), cancel=unsure)

    def settle(self, state: State) -> Choice | None:
        """The leader, or, where nobody voted, what finished first."""
        tally = self._tally(state)
        if (leader := tally.leader) is not None:
            return Choice(tally.first_branch, "samples", tally.weights[leader] / sum(tally.weights.values()))
        return Choice(state.finished[0].branch, "no_votes", 0.0) if state.finished else None

    def _threshold(self, first: list[Trace]) -> float:
        whole = (trace.lowest_logprob for trace in first if trace.end in (End.FINISHED, End.CUT))
        scores = sorted(whole, reverse=True)
        return scores[min(len(scores) - 1, int(self.keep * len(scores)))] if scores else -math.inf

    def _tally(self, state: State) -> Tally:
        return Tally.of(state.votes, lambda trace: math.exp(min(0.0, trace.lowest_logprob)))


@register("confident_vote")
def confident_vote(settings: Settings) -> ConfidentVote:
    """Option ``keep``: ``high`` (90 % of the first wave would pass) or ``low`` (10 %)."""
    check_options(settings, "keep")
    wave = min(settings.least or max(2, settings.most // 4), settings.most)
    return ConfidentVote(settings.most, wave, settings.agree, KEEP[option(settings, "keep", ("high", "low"))])
