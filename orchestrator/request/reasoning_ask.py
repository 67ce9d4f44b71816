"""What a request says of its reasoning: whether to think, how hard, how much, and where it contradicts itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baton.v1.inference_pb2 import Effort, GenerateRequest
from cluster.errors import InvalidRequest
from cluster.spec.model_settings import ReasoningSettings
from orchestrator.request.chat_template import THINKING_SWITCHES
from orchestrator.request.efforts import EFFORT_NAMES, EFFORTS

_BY_RANK = list(EFFORTS)
_MAY_BE_NEAR = frozenset({"minimal", "xhigh", "max"})
"""Efforts that few models have; a cluster gives them the nearest that it has."""


@dataclass(frozen=True, slots=True)
class ReasoningAsk:
    """What a request asks of the reasoning.

    ``wanted`` is None where nothing is said of whether to think, ``effort`` is empty without one, and ``budget_tokens``
    None. ``by_message`` is whether the request's reasoning message asks to think, and not the template's variables
    alone, which mean to a model what its template makes of them.
    """

    wanted: bool | None = None
    effort: str = ""
    budget_tokens: int | None = None
    by_message: bool = False

    def template_variables(self) -> dict[str, Any]:
        """What a chat template is given of it, under the names that templates have for it."""
        variables: dict[str, Any] = {}
        if self.wanted is not None:
            variables.update(dict.fromkeys(THINKING_SWITCHES, self.wanted))
        if self.effort:
            variables["reasoning_effort"] = self.effort
        return variables


def read_ask(
    request: GenerateRequest, variables: Mapping[str, Any], reasoning: ReasoningSettings | None
) -> ReasoningAsk:
    """Read a request's reasoning message and its template's variables.

    Args:
        request: As it came.
        variables: Those of the chat template.
        reasoning: The model's; None for one that does not reason.

    Raises:
        InvalidRequest: they contradict each other, or there is no such effort.
    """
    asked = request.reasoning
    effort = _effort(asked.effort, reasoning)
    budget_tokens = int(asked.budget_tokens) if asked.HasField("budget_tokens") else None
    # The budget wins over the effort.
    amount = bool(budget_tokens) if budget_tokens is not None else effort != "none" if effort else None
    switches = {f"chat_template_kwargs.{name}": variables[name] for name in THINKING_SWITCHES if name in variables}
    if asked.HasField("enabled"):
        switches["reasoning.enabled"] = asked.enabled
    said = {name: value for name, value in switches.items() if isinstance(value, bool)}
    if len(set(said.values())) > 1:
        raise InvalidRequest(f"{' and '.join(said)} contradict each other; give one of them", field="reasoning")
    switch = next(iter(said.values()), None)
    if switch is not None and amount is not None and switch is not amount:
        way = "budget" if budget_tokens is not None else "effort"
        raise InvalidRequest(
            f"{next(iter(said))} turns the reasoning {'on' if switch else 'off'} and the {way} asks for "
            f"{'some' if amount else 'none'}; give one of them",
            field="reasoning",
        )
    by_message = amount is True or (asked.HasField("enabled") and asked.enabled)
    return ReasoningAsk(switch if amount is None else amount, effort, budget_tokens, by_message)


def nearest_effort(effort: str, known: Mapping[Any, Any]) -> str | None:
    """The effort whose budget a request gets; None where there is none for it. Of two as near, the smaller one.

    Example:
        >>> nearest_effort("max", {"none": 0, "low": 512, "high": 4096}), nearest_effort("medium", {"low": 512})
        ('high', None)
    """
    if effort in known:
        return effort
    if effort not in _MAY_BE_NEAR:
        return None
    near = [name for name in _BY_RANK if name in known and name != "none"]
    return min(near, key=lambda name: abs(_BY_RANK.index(name) - _BY_RANK.index(effort)), default=None)


def _effort(effort: int, reasoning: ReasoningSettings | None) -> str:
    """By name, as the cluster has a budget for it."""
    if effort == Effort.EFFORT_UNSPECIFIED:
        return ""
    name = EFFORT_NAMES.get(effort)
    if name is None:
        raise InvalidRequest(f"reasoning.effort={effort}: unknown", field="reasoning.effort")
    if reasoning is None or name == "none":
        return name
    near = nearest_effort(name, reasoning.effort_budgets_tokens)
    if near is None:
        raise InvalidRequest(f"this cluster has no budget for effort {name!r}", field="reasoning.effort")
    return near
