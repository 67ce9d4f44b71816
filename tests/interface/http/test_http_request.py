from __future__ import annotations

import json
from typing import Any

import pytest

from baton.v1 import inference_pb2
from cluster.errors import InvalidRequest
from interface.http.completions.request import HttpCall, read_chat_call, read_completion_call
from interface.http.known import HARMLESS, REFUSED

HELLO = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> HttpCall:
    return read_chat_call({"model": "m", "messages": HELLO, **fields})


def completion(**fields: Any) -> HttpCall:
    return read_completion_call({"model": "m", "prompt": "Hi", **fields})


def test_every_sampling_field_arrives() -> None:
    call = chat(
        temperature=0.5,
        top_p=1,
        top_k=-1,
        min_p=0.25,
        presence_penalty=-1.5,
        frequency_penalty=2,
        repetition_penalty=1.25,
        seed=-7,
        n=3,
        max_tokens=9,
        max_completion_tokens=10,
        min_tokens=2,
        stop=["a", "b"],
        stop_token_ids=[5],
        include_stop_str_in_output=True,
        stop_in_reasoning=True,
        ignore_eos=True,
        logprobs=True,
        top_logprobs=4,
        logit_bias={"17": -100},
        allowed_token_ids=[1, 2],
        bad_words=["damn"],
        skip_special_tokens=False,
        reasoning_effort="high",
        thinking_token_budget=64,
        priority=3,
        user="me",
        session_id="s",
        prompt_cache_key="ignored beside session_id",
        deadline_s=2.5,
        request_id="mine",
    )
    assert call.requests[0] == inference_pb2.GenerateRequest(
        model="m",
        chat=inference_pb2.Chat(messages=[inference_pb2.ChatMessage(role="user", content="Hi")]),
        sampling=inference_pb2.Sampling(
            temperature=0.5,
            top_p=1,
            top_k=-1,
            min_p=0.25,
            presence_penalty=-1.5,
            frequency_penalty=2,
            repetition_penalty=1.25,
            seed=-7,
            n=3,
            max_tokens=10,
            min_tokens=2,
            stop=["a", "b"],
            stop_token_ids=[5],
            stop_in_reasoning=True,
            include_stop_in_output=True,
            ignore_eos=True,
            logprobs=4,
            logit_bias={17: -100},
            allowed_token_ids=[1, 2],
            bad_words=["damn"],
            skip_special_tokens=False,
        ),
        reasoning=inference_pb2.Reasoning(effort=inference_pb2.EFFORT_HIGH, budget_tokens=64),
        priority=-3,
        tenant="me",
        session="s",
        deadline_s=2.5,
        request_id="mine",
    )
    assert (call.choices, call.logprobs, call.reply_id) == (3, 4, "chatcmpl-mine")


def test_what_is_left_out_stays_unset() -> None:
    request = chat(temperature=None, stop=None, stream_options=None, logprobs=None, reasoning_effort=None).requests[0]
    assert request.sampling == inference_pb2.Sampling(n=1)
    assert not request.HasField("reasoning")
    assert not request.HasField("deadline_s")
    assert request.request_id


def test_a_completion_that_names_no_limit_gets_openais() -> None:
    assert completion().requests[0].sampling.max_tokens == 16
    assert completion(max_tokens=None).requests[0].sampling.max_tokens == 16
    assert completion(max_tokens=0).requests[0].sampling.max_tokens == 0
    assert not chat().requests[0].sampling.HasField("max_tokens")


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        ("One", ["One"]),
        ([1, 2], [[1, 2]]),
        (["One", "Two"], ["One", "Two"]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ("", [""]),
    ],
)
def test_prompts(prompt: Any, inputs: list[Any]) -> None:
    requests = completion(prompt=prompt).requests
    kinds = {request.WhichOneof("input") for request in requests}
    assert len(kinds) == 1
    got = [request.prompt if kinds == {"prompt"} else list(request.prompt_token_ids.ids) for request in requests]
    assert got == inputs
    assert len({request.request_id for request in requests}) == len(inputs)


@pytest.mark.parametrize("prompt", [None, [], {}, 3, [[]], ["a", 1], [1, "a"], [1.5], [-1], [True], [2**32], [["a"]]])
def test_prompts_of_other_kinds_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt: "):
        completion(prompt=prompt)


def test_more_prompts_than_may_wait_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most 2 prompts"):
        read_completion_call({"model": "m", "prompt": ["a", "b", "c"]}, max_prompts=2)


def test_messages() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]},
        {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "dropped", "audio": None},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": "42"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    got = chat(messages=messages, tools=tools, tool_choice="auto", add_generation_prompt=False).requests[0].chat
    assert [message.content for message in got.messages] == ["Be\nbrief", "", "42"]
    assert json.loads(got.messages[1].tool_calls_json) == calls
    assert (got.messages[2].tool_call_id, got.messages[2].name) == ("1", "f")
    assert [tool.name for tool in got.tools] == ["f"]
    assert got.add_generation_prompt is False


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "Hi",
        ["Hi"],
        [{}],
        [{"role": "user"}],
        [{"role": "", "content": "Hi"}],
        [{"role": 3, "content": "Hi"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": "Hi", "colour": "red"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 3}]}],
        [{"role": "user", "content": [3]}],
    ],
)
def test_malformed_messages_are_refused_by_name(messages: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=messages)
    assert caught.value.field.startswith("messages")


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            {"json_schema": '{"type": "object"}'},
        ),
        ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": '{"type": "object"}'}),
        ({"structured_outputs": {"regex": "a+", "json": None}}, {"regex": "a+"}),
        ({"guided_json": '{"type": "object"}'}, {"json_schema": '{"type": "object"}'}),
        ({"guided_grammar": "root ::= x"}, {"grammar": "root ::= x"}),
        ({"guided_choice": ["a", "b"]}, {"choices": {"values": ["a", "b"]}}),
    ],
)
def test_structured_output(fields: dict[str, Any], expected: dict[str, Any] | None) -> None:
    sampling = completion(**fields).requests[0].sampling
    if expected is None:
        assert not sampling.HasField("structured_output")
    else:
        assert sampling.structured_output == inference_pb2.StructuredOutput(**expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", 1e39),
        ("temperature", 10**400),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", 2**32),
        ("max_tokens", "9"),
        ("n", 0),
        ("n", True),
        ("seed", 2**63),
        ("top_k", -2),
        ("stop", 3),
        ("stop", ["a", None]),
        ("stop_token_ids", ["a"]),
        ("logit_bias", [1]),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"٣": 1}),
        ("logit_bias", {"1": "much"}),
        ("logit_bias", {"4294967296": 1}),
        ("stream", "yes"),
        ("user", 3),
        ("model", ""),
        ("model", 3),
        ("bad_words", "damn"),
        ("ignore_eos", 1),
        ("reasoning_effort", "huge"),
        ("reasoning_effort", 3),
        ("thinking_token_budget", -2),
        ("priority", 2**31),
        ("request_id", "line\nbreak"),
        ("request_id", "x" * 129),
        ("tools", {}),
        ("tool_choice", "always"),
        ("top_logprobs", 3),
        ("stream_options", {"include_usage": True}),
        ("response_format", "json"),
        ("response_format", {"type": "structural_tag"}),
        ("structured_outputs", {"json": {}, "regex": "a"}),
        ("structured_outputs", {"wat": 1}),
        ("kv_transfer_params", {"do_remote_prefill": True}),
        ("kv_transfer_params", None),
        ("colour", "red"),
        ("echo", True),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**{name: value})
    assert caught.value.field.startswith(name)
    assert name in caught.value.message


def test_wrong_types_inside_are_named_by_path() -> None:
    with pytest.raises(InvalidRequest, match=r"response_format\.json_schema\.schema: expected a JSON schema"):
        chat(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": 3}})
    with pytest.raises(InvalidRequest, match=r"stream_options\.wat: unknown field"):
        chat(stream=True, stream_options={"wat": 1})


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_known_fields_are_refused_unless_they_change_nothing(name: str) -> None:
    neutral, reason = REFUSED[name]
    for value in (None, *neutral):
        chat(**{name: value})
    with pytest.raises(InvalidRequest) as caught:
        chat(**{name: "something else"})
    assert caught.value.message == f"{name}: {reason}"


@pytest.mark.parametrize("name", sorted(HARMLESS - {"parallel_tool_calls"}))
def test_harmless_fields_are_let_through(name: str) -> None:
    assert chat(**{name: {"any": "thing"}}).requests


def test_no_field_is_both() -> None:
    assert not HARMLESS & REFUSED.keys()


@pytest.mark.parametrize(
    ("body", "scored"),
    [
        ({}, None),
        ({"echo": True}, None),
        ({"echo": True, "logprobs": 0}, 0),
        ({"echo": True, "logprobs": 3}, 3),
        ({"echo": True, "logprobs": 1, "prompt_logprobs": 2}, 2),
        ({"echo": True, "max_tokens": 0}, 0),
        ({"prompt_logprobs": 0}, 0),
    ],
)
def test_how_a_prompt_is_scored(body: dict[str, Any], scored: int | None) -> None:
    call = completion(**body)
    sampling = call.requests[0].sampling
    assert (sampling.prompt_logprobs if sampling.HasField("prompt_logprobs") else None) == scored
    assert call.prompt_logprobs == body.get("prompt_logprobs")
    assert call.echo == (("Hi",) if "echo" in body else ())


def test_an_unknown_name_is_shown_cut_and_printable() -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**{"é\n" + "x" * 1000: 1})
    assert len(caught.value.message) < 100
    assert caught.value.message.isascii()


def test_thinking_budget_without_a_limit() -> None:
    assert not completion(thinking_token_budget=-1).requests[0].HasField("reasoning")
    assert completion(thinking_token_budget=0).requests[0].reasoning.HasField("budget_tokens")
