from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.v1 import inference_pb2 as pb
from cluster.errors import DeadlineExceeded, InvalidRequest, ServingError
from cluster.spec.autoscaling_settings import ThinkingBudgetSettings
from cluster.spec.config import parse
from orchestrator.request.lifecycle import Handoff
from orchestrator.request.prepare import PreparedRequest, prepare
from tests.fakes.tokenizer import END_THINK, MARKERS, THINK, front

SPEC = parse("""
model:
  path: m
  served_name: fake
  max_model_len_tokens: 128
  reasoning: {effort_budgets_tokens: {none: 0, low: 7, high: 100000}}
pools: {colocated: {replicas: 1}}
gateway: {default_max_tokens: 16, max_choices: 4, max_logprobs: 5}
""")
FRONT = front(markers=MARKERS, max_model_len_tokens=128)
DULL = front(max_model_len_tokens=128)


def ready(request: pb.GenerateRequest, *, model: Any = FRONT) -> PreparedRequest:
    return prepare(request, model, SPEC, now_s=100.0)


def ask(**fields: Any) -> pb.GenerateRequest:
    if not fields.keys() & {"prompt", "prompt_token_ids", "chat"}:
        fields["prompt"] = "hello"
    return pb.GenerateRequest(**fields)


def sampling(**fields: Any) -> pb.GenerateRequest:
    return ask(sampling=pb.Sampling(**fields))


def chat(*messages: pb.ChatMessage, **fields: Any) -> pb.GenerateRequest:
    return ask(chat=pb.Chat(messages=messages, **fields))


USER = pb.ChatMessage(role="user", content="hi")
BAD: list[tuple[str, pb.GenerateRequest]] = [
    ("prompt", ask(prompt="")),
    ("prompt", ask(prompt="x" * 128)),
    ("prompt", ask(prompt="x" * 9000)),
    ("prompt_token_ids", ask(prompt_token_ids=pb.TokenIds(ids=[]))),
    ("prompt_token_ids", ask(prompt_token_ids=pb.TokenIds(ids=[1, 258]))),
    ("input", pb.GenerateRequest()),
    ("messages", chat()),
    ("messages[0].role", chat(pb.ChatMessage(content="hi"))),
    ("messages", chat(pb.ChatMessage(role="refused", content="hi"))),
    ("messages", chat(pb.ChatMessage(role="user", content="x" * 9000))),
    ("messages[0].tool_calls_json", chat(pb.ChatMessage(role="user", tool_calls_json="{"))),
    ("tools_json", chat(pb.ChatMessage(role="user"), tools_json="[" * 100_000)),
    ("tools[0].name", chat(USER, tools=[pb.Tool()])),
    ("tools[1].name", chat(USER, tools=[pb.Tool(name="f"), pb.Tool(name="g h")])),
    ("tools[0].parameters_json", chat(USER, tools=[pb.Tool(name="f", parameters_json="{")])),
    ("tools[0].parameters_json", chat(USER, tools=[pb.Tool(name="f", parameters_json="[]")])),
    ("tools", chat(USER, tools=[pb.Tool(name="f"), pb.Tool(name="f")])),
    ("tools_json", chat(USER, tools=[pb.Tool(name="f")], tools_json="[]")),
    ("tool_choice", chat(USER, tool_choice=pb.ToolChoice(name="f"))),
    ("tool_choice", chat(USER, tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED))),
    ("tool_choice", chat(USER, tools=[pb.Tool(name="f")], tool_choice=pb.ToolChoice(name="g"))),
    # The fake model's calls are not parsed.
    ("tool_choice", chat(USER, tools=[pb.Tool(name="f")], tool_choice=pb.ToolChoice(name="f"))),
    ("messages[0].tool_calls", chat(pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(id="f")]))),
    (
        "messages[0].tool_calls_json",
        chat(pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(name="f")], tool_calls_json="[]")),
    ),
    ("tenant", ask(tenant="x" * 257)),
    ("session", ask(session="x" * 257)),
    ("request_id", ask(request_id="x" * 257)),
    ("reasoning.effort", ask(reasoning=pb.Reasoning(effort=9))),
    ("reasoning.effort", ask(reasoning=pb.Reasoning(effort=pb.EFFORT_MEDIUM))),
    *[
        (f"sampling.{name}", sampling(**{name: value}))
        for name, values in {
            "temperature": [-0.1, 101, math.nan, math.inf],
            "top_p": [0.0, 1.1, math.nan],
            "top_k": [-2],
            "min_p": [-0.1, 1.5],
            "presence_penalty": [-2.5, 2.5],
            "frequency_penalty": [-2.5, 2.5, math.nan],
            "repetition_penalty": [0.0, -1.0, 1000.0],
            "max_tokens": [0],
            "min_tokens": [17],
            "logprobs": [6],
            "n": [5],
            "stop": [[""], ["x" * 1025], ["x"] * 17],
            "stop_token_ids": [[258]],
            "allowed_token_ids": [[258]],
            "logit_bias": [{258: 1.0}, {1: 101.0}, {1: math.nan}],
            "bad_words": [[""]],
            "structured_output": [
                pb.StructuredOutput(),
                pb.StructuredOutput(regex=""),
                pb.StructuredOutput(grammar=""),
                pb.StructuredOutput(json_object=False),
                pb.StructuredOutput(choices=pb.StructuredOutput.Choices()),
                pb.StructuredOutput(choices=pb.StructuredOutput.Choices(values=["a", ""])),
            ],
        }.items()
        for value in values
    ],
    ("sampling.structured_output.json_schema", sampling(structured_output=pb.StructuredOutput(json_schema="{"))),
    ("sampling.structured_output.json_schema", sampling(structured_output=pb.StructuredOutput(json_schema="7"))),
]


@pytest.mark.parametrize(("field", "request_"), BAD, ids=[f"{index}-{field}" for index, (field, _) in enumerate(BAD)])
def test_bad_input_is_refused_by_the_name_of_its_field(field: str, request_: pb.GenerateRequest) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ready(request_)
    assert refused.value.field == field
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, math.nan, -math.inf])
def test_a_deadline_already_past(deadline_s: float) -> None:
    with pytest.raises(DeadlineExceeded):
        ready(ask(deadline_s=deadline_s))


def test_what_is_left_out_is_filled_in() -> None:
    made = ready(ask(model="fake"))
    assert made.prompt_ids == tuple(b"hello")
    assert (made.max_tokens, made.min_tokens, made.choices, made.priority) == (16, 0, 1, 0)
    assert made.deadline_s == 3700.0
    assert made.thinking_budget_tokens is None
    assert made.skip_special_tokens
    assert made.request_id


def test_limits_are_cut_to_the_models_length() -> None:
    made = ready(sampling(max_tokens=500, min_tokens=400))
    assert (made.max_tokens, made.min_tokens) == (123, 123)
    assert ready(ask(priority=1 << 30, deadline_s=math.inf)).priority == 1000


def test_defaults_come_from_the_models_folder_unless_given() -> None:
    model = front(max_model_len_tokens=128)
    model.sampling_defaults.update(temperature=0.5, top_k=3)
    made = ready(sampling(top_k=9), model=model)
    assert (made.sampling.temperature, made.sampling.top_k) == (0.5, 9)


@pytest.mark.parametrize(
    ("reasoning", "budget"),
    [
        (pb.Reasoning(budget_tokens=9), 9),
        (pb.Reasoning(budget_tokens=9, effort=pb.EFFORT_LOW), 9),
        (pb.Reasoning(effort=pb.EFFORT_LOW), 7),
        (pb.Reasoning(effort=pb.EFFORT_HIGH), 128),
        (pb.Reasoning(), None),
    ],
)
def test_effort_and_budget(reasoning: pb.Reasoning, budget: int | None) -> None:
    assert ready(ask(reasoning=reasoning)).thinking_budget_tokens == budget


@pytest.mark.parametrize("reasoning", [pb.Reasoning(budget_tokens=0), pb.Reasoning(effort=pb.EFFORT_NONE)])
@pytest.mark.parametrize(("prompt", "closing"), [([72], [THINK, END_THINK]), ([72, THINK], [END_THINK])])
def test_a_budget_of_zero_closes_the_reasoning(reasoning: pb.Reasoning, prompt: list[int], closing: list[int]) -> None:
    made = ready(ask(prompt_token_ids=pb.TokenIds(ids=prompt), reasoning=reasoning))
    assert list(made.prompt_ids) == prompt + closing
    assert (made.reasoning_limit_tokens, made.reasoning_closed) == (0, True)


def test_a_model_that_does_not_think_refuses_a_budget_and_takes_effort_none() -> None:
    with pytest.raises(InvalidRequest) as refused:
        ready(ask(reasoning=pb.Reasoning(budget_tokens=5)), model=DULL)
    assert refused.value.field == "reasoning"
    assert ready(ask(reasoning=pb.Reasoning(effort=pb.EFFORT_NONE)), model=DULL).prompt_ids == tuple(b"hello")


@pytest.mark.parametrize(
    ("fields", "plain"),
    [
        ({}, False),
        ({"temperature": 0.7, "top_p": 0.9, "min_p": 0.1}, False),
        ({"repetition_penalty": 1.2}, False),  # counts the prompt too, so the first token is counted either way
        ({"logit_bias": {1: 5.0}, "min_tokens": 4, "logprobs": 2, "stop": ["x"]}, False),
        ({"seed": 1, "temperature": 0.0}, False),
        ({"seed": 1}, True),
        ({"presence_penalty": 0.1}, True),
        ({"frequency_penalty": -0.1}, True),
        ({"bad_words": ["x"]}, True),
        ({"structured_output": pb.StructuredOutput(json_schema="{}")}, True),
    ],
)
def test_the_plain_handoff_is_taken_where_the_first_token_must_count(fields: dict[str, Any], plain: bool) -> None:
    made = ready(sampling(**fields))
    assert made.handoff is (Handoff.PLAIN if plain else Handoff.FIRST_TOKEN)
    assert made.resumable is not plain


def test_a_chat_goes_through_the_template() -> None:
    made = ready(chat(pb.ChatMessage(role="user", content="hi"), tools_json=json.dumps([])))
    assert bytes(made.prompt_ids) == b"user:hi;assistant:"
    made = ready(chat(pb.ChatMessage(role="user", content="hi"), add_generation_prompt=False))
    assert bytes(made.prompt_ids) == b"user:hi;"


FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
numbers = st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0])
ids = st.lists(st.integers(0, 300), max_size=3)
samplings = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(FLOATS, numbers),
        "top_k": st.integers(-(1 << 31), (1 << 31) - 1),
        "seed": st.integers(-(1 << 63), (1 << 63) - 1),
        **{name: st.integers(0, (1 << 32) - 1) for name in ("max_tokens", "min_tokens", "logprobs", "n")},
        "stop": st.lists(st.text(max_size=3), max_size=3),
        "bad_words": st.lists(st.text(max_size=3), max_size=3),
        "stop_token_ids": ids,
        "allowed_token_ids": ids,
        "logit_bias": st.dictionaries(st.integers(0, 300), numbers, max_size=2),
        "structured_output": st.builds(pb.StructuredOutput, json_schema=st.text(max_size=8)),
    },
)
inputs = st.one_of(
    st.fixed_dictionaries({"prompt": st.text(max_size=40)}),
    ids.map(lambda given: {"prompt_token_ids": pb.TokenIds(ids=given)}),
    st.lists(
        st.builds(
            pb.ChatMessage,
            role=st.sampled_from(["user", ""]),
            content=st.text(max_size=9),
            tool_calls_json=st.text(max_size=4),
        ),
        max_size=2,
    ).map(lambda messages: {"chat": pb.Chat(messages=messages)}),
)


@settings(deadline=None, max_examples=200)
@given(
    inputs,
    samplings,
    st.fixed_dictionaries({}, optional={"deadline_s": st.floats(), "priority": st.integers(-(1 << 31), (1 << 31) - 1)}),
    st.none()
    | st.builds(pb.Reasoning, budget_tokens=st.none() | st.integers(0, (1 << 32) - 1), effort=st.integers(0, 5)),
)
def test_whatever_is_asked_is_prepared_or_refused(
    given_input: dict[str, Any], options: dict[str, Any], rest: dict[str, Any], reasoning: pb.Reasoning | None
) -> None:
    try:
        made = ready(pb.GenerateRequest(sampling=pb.Sampling(**options), reasoning=reasoning, **given_input, **rest))
    except ServingError:
        return
    assert 1 <= len(made.prompt_ids) < 128
    assert 1 <= made.max_tokens <= 128 - len(made.prompt_ids)
    assert made.min_tokens <= made.max_tokens
    assert made.deadline_s >= 100.0  # equal when the deadline is too short for a float to tell


@pytest.mark.parametrize("name", ["tenant", "session", "request_id"])
def test_labels_must_be_printable(name: str) -> None:
    """An id with a control character came back from prefill in parameters that no ticket takes; its blocks stayed."""
    with pytest.raises(InvalidRequest, match="cannot be printed") as refused:
        ready(ask(**{name: "a\x00"}))
    assert refused.value.field == name


def test_a_scarce_cluster_gives_a_smaller_budget_and_says_so() -> None:
    settings = ThinkingBudgetSettings(enabled=True, floor_tokens=16)
    autoscaling = SPEC.autoscaling.model_copy(update={"thinking_budgets": settings})
    spec = SPEC.model_copy(update={"autoscaling": autoscaling})
    request = ask(reasoning=pb.Reasoning(budget_tokens=100))
    ample = prepare(request, FRONT, spec, now_s=0.0)
    scarce = prepare(request, FRONT, spec, now_s=0.0, severity=0.5)
    assert (ample.thinking_budget_tokens, ample.reduced_budget) == (100, False)
    assert (scarce.thinking_budget_tokens, scarce.reduced_budget) == (50, True)
    # One that asks for no budget gets one.
    assert prepare(ask(), FRONT, spec, now_s=0.0, severity=1.0).thinking_budget_tokens == 16
