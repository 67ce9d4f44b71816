"""How much a request may think: effort and budget as asked for, what the cluster gives instead, and its limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baton.v1.inference_pb2 import GenerateRequest
from cluster.errors import InvalidRequest
from cluster.spec.config import ClusterSpec
from orchestrator.policy.budget_governor import BudgetAsk
from orchestrator.policy.budget_governor import budget as budget_under
from orchestrator.policy.closing import reasoning_limit
from orchestrator.policy.phases import ReasoningMarkers, open_at_end
from orchestrator.request.model_front import ModelFront
from orchestrator.request.reasoning_ask import ReasoningAsk


@dataclass(frozen=True, slots=True)
class Budget:
    """Thinking budget of a request; None for none. ``reduced``: the cluster gave less than what was asked for."""

    tokens: int | None
    reduced: bool = False


def effort_of(ask: ReasoningAsk, spec: ClusterSpec) -> str:
    """Effort by name, empty without one; a budget in tokens counts as the least effort that allows it."""
    if ask.wanted is False:
        return "none"
    reasoning = spec.model.reasoning
    if ask.budget_tokens is not None and reasoning is not None:
        budgets = sorted((tokens, name) for name, tokens in reasoning.effort_budgets_tokens.items())
        return next((name for tokens, name in budgets if tokens >= ask.budget_tokens), "high")
    return ask.effort


def thinking_budget(
    request: GenerateRequest, ask: ReasoningAsk, front: ModelFront, spec: ClusterSpec, *, priority: int, severity: float
) -> Budget:
    """The budget that the request has where KV is as scarce as ``severity`` says.

    Raises:
        InvalidRequest: the model does not reason.
    """
    asked = _asked_tokens(ask, front, spec)
    if severity > 0 and front.markers is not None and not request.HasField("resume"):
        wanted = BudgetAsk(asked, request.tenant, priority, effort_of(ask, spec), front.max_model_len_tokens)
        given = budget_under(wanted, severity, spec.autoscaling.thinking_budgets)
        if given is not None:
            return Budget(given, reduced=True)
    return Budget(asked)


def _asked_tokens(ask: ReasoningAsk, front: ModelFront, spec: ClusterSpec) -> int | None:
    """Budget in tokens as asked for: the caller's, else the effort's; None without one."""
    reasoning = spec.model.reasoning
    if reasoning is None or front.markers is None:
        if ask.by_message and not spec.model.accept_reasoning_effort:
            raise InvalidRequest(
                f"{front.name} does not reason; leave out reasoning (or its markers are missing in the spec, or "
                "model.accept_reasoning_effort, which lets such requests through)",
                field="reasoning",
            )
        return None
    if ask.wanted is False:
        return 0
    tokens = ask.budget_tokens
    if tokens is None and ask.effort:
        tokens = {str(name): budget for name, budget in reasoning.effort_budgets_tokens.items()}[ask.effort]
    return None if tokens is None else min(tokens, front.max_model_len_tokens)


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


def closed_reasoning(
    prompt: Sequence[int], markers: ReasoningMarkers, *, template_closed: bool = False
) -> tuple[int, ...]:
    """Tokens that close the reasoning before it begins, so that a budget of 0 holds for the first token too.

    ``template_closed``: the chat template was asked not to think and has done its part, or the prompt ends in
    mid-answer, so only what is open is closed.
    """
    if open_at_end(prompt, markers):
        return markers.end_ids
    return () if template_closed else markers.start_ids + markers.end_ids
