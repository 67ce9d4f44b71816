"""Draft, critique, revise: three legs on one worker, each of which finds what came before in the prefix cache."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.policy.thinking.registry import check_options, register
from orchestrator.policy.thinking.state import Choice, Fork, Settings, State, Step

CRITIQUE = "Check your answer step by step. List every mistake, or say that there is none."
REVISE = "Now give the final answer, with all mistakes corrected."


@dataclass(frozen=True, slots=True)
class Refine:
    """The draft, then its critique, then the revision, which is the answer."""

    cap: int = 3
    extracts: bool = False
    scores: bool = False

    def next(self, state: State) -> Step:
        """Begin the next stage when one has ended."""
        stage = len(state.ended)
        if state.running:
            return Step()
        if stage == 0:
            return Step(start=1)
        if len(state.finished) < stage or stage == self.cap:
            choice = self.settle(state)  # a stage failed: what came of the ones before it is the answer
            return Step(choice=choice) if choice else Step()
        return Step(forks=(Fork(state.ended[-1].branch, CRITIQUE if stage == 1 else REVISE),))

    def settle(self, state: State) -> Choice | None:
        """The revision, else the draft: a critique is no answer."""
        finished = {trace.branch for trace in state.finished}
        for branch, reason in ((2, "revised"), (0, "draft")):
            if branch in finished:
                return Choice(branch, reason, 0.0)
        return None


@register("refine")
def refine(settings: Settings) -> Refine:
    """It has no options, and as many branches as stages."""
    check_options(settings)
    return Refine()
