"""Best of n by the model's own confidence: the log-probabilities of the tokens that it sampled. No second model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.policy.thinking.registry import check_options, option, register
from orchestrator.policy.thinking.state import Choice, Settings, State, Step, Trace


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Runs all branches to their ends. ``by_lowest``: a trace is as good as its least sure window, not as its mean."""

    cap: int
    by_lowest: bool
    extracts: bool = False
    scores: bool = True

    def next(self, state: State) -> Step:
        """Start all that may start; answer when all have ended."""
        if not state.to_come and (choice := self.settle(state)):
            return Step(choice=choice)
        return Step(start=self.cap - len(state.running) - len(state.ended))

    def settle(self, state: State) -> Choice | None:
        """The surest that finished."""
        if not state.finished:
            return None
        best = max(state.finished, key=self._score)
        return Choice(best.branch, "samples", math.exp(min(0.0, self._score(best))))

    def _score(self, trace: Trace) -> float:
        return trace.lowest_logprob if self.by_lowest else trace.mean_logprob


@register("best_of_n")
def best_of_n(settings: Settings) -> BestOfN:
    """Option ``score``: ``mean`` or ``lowest``."""
    check_options(settings, "score")
    return BestOfN(settings.most, option(settings, "score", ("mean", "lowest")) == "lowest")
