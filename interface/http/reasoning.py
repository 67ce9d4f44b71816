"""How clients say how much a model is to think: OpenAI's, vLLM's, OpenRouter's and Anthropic's fields as one. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from baton.v1 import inference_pb2
from cluster.errors import InvalidRequest
from interface.http.fields import Fields
from orchestrator.request.efforts import EFFORTS

T = TypeVar("T")

_THINKING_TYPES = {"enabled": True, "disabled": False, "adaptive": None, "auto": None}
"""Anthropic's, and whether they turn the reasoning on or off; the last two leave it to the model."""
_SUMMARIES = frozenset({"summary", "generate_summary"})
_BUDGET_WINS = {"reasoning_effort", "thinking_token_budget"}


@dataclass(slots=True)
class _Said:
    """Everything that the fields say, by the field's name."""

    efforts: dict[str, str] = field(default_factory=dict)
    budgets_tokens: dict[str, int] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)
    exclusions: dict[str, bool] = field(default_factory=dict)


def read_reasoning(fields: Fields) -> inference_pb2.Reasoning | None:
    """Take ``reasoning_effort``, ``thinking_token_budget``, ``reasoning``, ``thinking`` and ``include_reasoning``.

    A ``thinking_token_budget`` of -1 means none, as in vLLM, and one beside ``reasoning_effort`` wins.

    Raises:
        InvalidRequest: a field has the wrong type or value, or two contradict each other.
    """
    said = _Said()
    _effort(fields, "reasoning_effort", said)
    budget_tokens = fields.integer("thinking_token_budget", low=-1)
    if budget_tokens is not None and budget_tokens >= 0:
        said.budgets_tokens["thinking_token_budget"] = budget_tokens
    # A chat has given it to its template by now.
    _flag(fields, "enable_thinking", said.switches)
    if (include := fields.flag("include_reasoning")) is not None:
        said.exclusions["include_reasoning"] = not include
    if (tree := fields.tree("reasoning")) is not None:
        _read_openrouter(fields.inside(tree, "reasoning"), said)
    if (tree := fields.tree("thinking")) is not None:
        _read_anthropic(fields.inside(tree, "thinking"), said)
    reasoning = _merged(said)
    return reasoning if reasoning.ListFields() else None


def _read_openrouter(fields: Fields, said: _Said) -> None:
    _effort(fields, "effort", said)
    if (budget_tokens := fields.integer("max_tokens")) is not None:
        said.budgets_tokens["reasoning.max_tokens"] = budget_tokens
    _flag(fields, "enabled", said.switches)
    _flag(fields, "exclude", said.exclusions)
    fields.drop(_SUMMARIES, "reasoning.")
    fields.finish()


def _read_anthropic(fields: Fields, said: _Said) -> None:
    kind = fields.text("type")
    if kind not in _THINKING_TYPES:
        raise fields.wrong("type", f"expected one of {', '.join(_THINKING_TYPES)}")
    if (switch := _THINKING_TYPES[kind]) is not None:
        said.switches["thinking.type"] = switch
    if (budget_tokens := fields.integer("budget_tokens")) is not None:
        said.budgets_tokens["thinking.budget_tokens"] = budget_tokens
    display = fields.text("display")
    if display not in (None, "summarized", "omitted"):
        raise fields.wrong("display", "expected summarized or omitted")
    if display == "omitted":
        said.exclusions["thinking.display"] = True
    elif display is not None:
        # What comes is the reasoning itself.
        fields.ignored.add("thinking.display")
    fields.finish()


def _effort(fields: Fields, name: str, said: _Said) -> None:
    effort = fields.text(name)
    if effort is None:
        return
    if effort not in EFFORTS:
        raise fields.wrong(name, f"expected one of {', '.join(EFFORTS)}")
    said.efforts[fields.name(name)] = effort


def _flag(fields: Fields, name: str, found: dict[str, bool]) -> None:
    if (value := fields.flag(name)) is not None:
        found[fields.name(name)] = value


def _merged(said: _Said) -> inference_pb2.Reasoning:
    """One message of all that was said.

    Raises:
        InvalidRequest: something is said twice and differently.
    """
    reasoning = inference_pb2.Reasoning()
    effort, budget_tokens = _agreed(said.efforts), _agreed(said.budgets_tokens)
    switch, exclude = _agreed(said.switches), _agreed(said.exclusions)
    thinks = {name: value != "none" for name, value in said.efforts.items()}
    thinks |= {name: value > 0 for name, value in said.budgets_tokens.items()} | said.switches
    _agreed(thinks)
    if said.efforts and said.budgets_tokens and any(thinks.values()):
        names = [*said.efforts, *said.budgets_tokens]
        if set(names) != _BUDGET_WINS:
            raise _wrong(names, "both say how much to think")
    if effort is not None:
        reasoning.effort = EFFORTS[effort]
    if budget_tokens is not None:
        reasoning.budget_tokens = budget_tokens
    if switch is False and not reasoning.ListFields():
        reasoning.effort = inference_pb2.EFFORT_NONE
    if switch:
        reasoning.enabled = True
    reasoning.exclude = bool(exclude)
    return reasoning


def _agreed(said: dict[str, T]) -> T | None:
    """What all that say something say alike; None where nobody does."""
    if len(set(said.values())) > 1:
        first = next(iter(said.values()))
        other = next(name for name, value in said.items() if value != first)
        raise _wrong([next(iter(said)), other], "contradict each other")
    return next(iter(said.values()), None)


def _wrong(names: list[str], text: str) -> InvalidRequest:
    return InvalidRequest(f"{' and '.join(names)} {text}; give one of them", field=names[-1])
