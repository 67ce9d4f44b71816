"""One trace, within its budget."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.policy.thinking.registry import check_options, register
from orchestrator.policy.thinking.state import Choice, Settings, State, Step


@dataclass(frozen=True, slots=True)
class Single:
    """Starts one branch and answers with it."""

    cap: int = 1
    extracts: bool = False
    scores: bool = False

    def next(self, state: State) -> Step:
        """Start, then answer."""
        if choice := self.settle(state):
            return Step(choice=choice)
        return Step(start=1 - len(state.running) - len(state.ended))

    def settle(self, state: State) -> Choice | None:
        """The branch, if it finished."""
        return Choice(state.finished[0].branch, "finished", 1.0) if state.finished else None


@register("single")
def single(settings: Settings) -> Single:
    """It has no options."""
    check_options(settings)
    return Single()
