from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest
from cluster.spec.config import ClusterSpec, parse
from cluster.spec.model_settings import ReasoningSettings
from orchestrator.request.efforts import EFFORT_NAMES
from orchestrator.request.prepare import prepare
from orchestrator.request.reasoning_ask import ReasoningAsk, nearest_effort, read_ask
from tests.fakes.tokenizer import front

ORDER = ["none", "minimal", "low", "medium", "high", "xhigh", "max"]
DULL = front(max_model_len_tokens=128)


def ask(reasoning: pb.Reasoning, **variables: object) -> ReasoningAsk:
    return read_ask(pb.GenerateRequest(reasoning=reasoning), variables, ReasoningSettings())


def test_every_effort_of_the_proto_has_a_name() -> None:
    assert list(EFFORT_NAMES.values()) == ORDER
    assert {0, *EFFORT_NAMES} == set(pb.Effort.values())


@given(st.sampled_from(["minimal", "xhigh", "max"]), st.dictionaries(st.sampled_from(ORDER), st.integers(0)))
def test_the_nearest_effort_is_near_and_thinks(effort: str, known: dict[str, int]) -> None:
    near = nearest_effort(effort, known)
    thinking = known.keys() - {"none"}
    if not thinking:
        assert near is None
        return
    assert near in thinking
    away = abs(ORDER.index(near) - ORDER.index(effort))
    assert all(away <= abs(ORDER.index(other) - ORDER.index(effort)) for other in thinking)


@pytest.mark.parametrize(("effort", "name"), [("MINIMAL", "low"), ("LOW", "low"), ("XHIGH", "high"), ("MAX", "high")])
def test_the_default_budgets(effort: str, name: str) -> None:
    assert ask(pb.Reasoning(effort=pb.Effort.Value(f"EFFORT_{effort}"))).effort == name


@pytest.mark.parametrize(
    ("reasoning", "variables"),
    [
        (pb.Reasoning(enabled=False), {"enable_thinking": True}),
        (pb.Reasoning(), {"enable_thinking": True, "thinking": False}),
        (pb.Reasoning(effort=pb.EFFORT_HIGH), {"enable_thinking": False}),
        (pb.Reasoning(effort=pb.EFFORT_NONE), {"thinking": True}),
        (pb.Reasoning(budget_tokens=5, enabled=False), {}),
        (pb.Reasoning(budget_tokens=0, enabled=True), {}),
    ],
)
def test_contradictions_are_refused(reasoning: pb.Reasoning, variables: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="give one of them") as refused:
        ask(reasoning, **variables)
    assert refused.value.field == "reasoning"


def test_what_is_no_switch_is_the_templates_own_matter() -> None:
    assert ask(pb.Reasoning(), thinking="a lot").wanted is None


ASKS = [pb.Reasoning(effort=pb.EFFORT_LOW), pb.Reasoning(budget_tokens=5), pb.Reasoning(enabled=True)]


@pytest.mark.parametrize("reasoning", ASKS)
def test_a_model_that_does_not_reason_refuses_unless_the_spec_lets_it_take_them(reasoning: pb.Reasoning) -> None:
    request = pb.GenerateRequest(prompt="hello", reasoning=reasoning)
    with pytest.raises(InvalidRequest, match=r"model\.accept_reasoning_effort"):
        prepare(request, DULL, spec(accepts=False), now_s=0.0)
    made = prepare(request, DULL, spec(accepts=True), now_s=0.0)
    assert (made.prompt_ids, made.thinking_budget_tokens) == (tuple(b"hello"), None)


@pytest.mark.parametrize("reasoning", [pb.Reasoning(budget_tokens=0), pb.Reasoning(enabled=False, exclude=True)])
def test_no_reasoning_is_no_more_than_such_a_model_does(reasoning: pb.Reasoning) -> None:
    made = prepare(pb.GenerateRequest(prompt="hello", reasoning=reasoning), DULL, spec(accepts=False), now_s=0.0)
    assert made.prompt_ids == tuple(b"hello")


def spec(*, accepts: bool) -> ClusterSpec:
    return parse(f"""
model: {{path: m, served_name: fake, max_model_len_tokens: 128, accept_reasoning_effort: {str(accepts).lower()}}}
pools: {{colocated: {{replicas: 1}}}}
""")
