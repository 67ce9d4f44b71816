"""How much a request may think: effort and budget as asked for, what the cluster gives instead, and its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baton.v1.inference_pb2 import Effort, GenerateRequest
from cluster.errors import InvalidRequest
from cluster.spec.config import ClusterSpec
from orchestrator.policy.budget_governor import BudgetAsk
from orchestrator.policy.budget_governor import budget as budget_under
from orchestrator.policy.closing import reasoning_limit
from orchestrator.policy.phases import ReasoningMarkers, open_at_end
from orchestrator.request.model_front import ModelFront

_EFFORT_NAMES = {
    Effort.EFFORT_NONE: "none",
    Effort.EFFORT_LOW: "low",
    Effort.EFFORT_MEDIUM: "medium",
    Effort.EFFORT_HIGH: "high",
}


@dataclass(frozen=True, slots=True)
class Budget:
    """Thinking budget of a request; None for none. ``reduced``: the cluster gave less than what was asked for."""

    tokens: int | None
    reduced: bool = False


def effort_of(request: GenerateRequest, spec: ClusterSpec) -> str:
    """Effort by name, empty without one; a budget in tokens counts as the least effort that allows it."""
    effort = ""
    if request.HasField("reasoning"):
        effort = _EFFORT_NAMES.get(request.reasoning.effort, "")
        if request.reasoning.HasField("budget_tokens") and spec.model.reasoning is not None:
            budgets = sorted((tokens, name) for name, tokens in spec.model.reasoning.effort_budgets_tokens.items())
            enough = (name for tokens, name in budgets if tokens >= request.reasoning.budget_tokens)
            effort = next(enough, "high")
    return effort


def thinking_budget(
    request: GenerateRequest, front: ModelFront, spec: ClusterSpec, *, priority: int, severity: float
) -> Budget:
    """The budget that the request has where KV is as scarce as ``severity`` says.

    Raises:
        InvalidRequest: the model does not reason, or there is no budget for that effort.
    """
    asked = _asked_tokens(request, front, spec)
    if severity > 0 and front.markers is not None and not request.HasField("resume"):
        ask = BudgetAsk(asked, request.tenant, priority, effort_of(request, spec), front.max_model_len_tokens)
        given = budget_under(ask, severity, spec.autoscaling.thinking_budgets)
        if given is not None:
            return Budget(given, reduced=True)
    return Budget(asked)


def _asked_tokens(request: GenerateRequest, front: ModelFront, spec: ClusterSpec) -> int | None:
    """Budget in tokens as asked for: the caller's, else the effort's; None without one."""
    if not request.HasField("reasoning"):
        return None
    wants = request.reasoning.HasField("budget_tokens") or request.reasoning.effort not in (
        Effort.EFFORT_UNSPECIFIED,
        Effort.EFFORT_NONE,
    )
    reasoning = spec.model.reasoning
    if reasoning is None or front.markers is None:
        if wants:
            raise InvalidRequest(
                f"{front.name} does not reason; leave out reasoning (or its markers are missing in the spec)",
                field="reasoning",
            )
        return None
    if request.reasoning.HasField("budget_tokens"):
        return min(int(request.reasoning.budget_tokens), front.max_model_len_tokens)
    effort = request.reasoning.effort
    if effort == Effort.EFFORT_UNSPECIFIED:
        return None
    name = _EFFORT_NAMES.get(effort)
    if name is None:
        raise InvalidRequest(f"reasoning.effort={effort}: unknown", field="reasoning.effort")
    budgets: Mapping[str, int] = {str(key): value for key, value in reasoning.effort_budgets_tokens.items()}
    if name not in budgets:
        raise InvalidRequest(f"this cluster has no budget for effort {name!r}", field="reasoning.effort")
    return min(budgets[name], front.max_model_len_tokens)


def reasoning_limit_tokens(
    budget: Budget, front: ModelFront, spec: ClusterSpec, *, max_tokens: int, ignore_eos: bool
) -> int | None:
    """Reasoning tokens after which the trace is closed; None where nothing limits it."""
    reasoning = spec.model.reasoning
    if front.markers is None or reasoning is None:
        return None
    if ignore_eos:  # its output is to be as long as asked for, whatever it says
        return budget.tokens
    return reasoning_limit(
        budget.tokens,
        max_tokens=max_tokens,
        answer_reserve_tokens=reasoning.answer_reserve_tokens,
        window_tokens=reasoning.closing_window_tokens,
        markers=front.markers,
    )


def closed_reasoning(prompt: Sequence[int], markers: ReasoningMarkers) -> tuple[int, ...]:
    """Tokens that close the reasoning before it begins, so that a budget of 0 holds for the first token too."""
    return markers.end_ids if open_at_end(prompt, markers) else markers.start_ids + markers.end_ids
