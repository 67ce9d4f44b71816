"""One stream of events, three forms: a whole reply, chunks, and the client's completion. They say the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest, RequestRejected
from interface.client.completion import Completion, event_of
from interface.http.body import parse_json
from interface.http.completions.chunk import DONE, Chunks
from interface.http.completions.reply import Reply, usage_object
from interface.http.completions.request import HttpCall, read_chat_call, read_completion_call
from interface.http.fields import FLOAT32_MAX, UINT32_MAX, Fields
from tests.fakes.backend import admitted, delta, finished

texts = st.text(max_size=6)
PHASES = st.booleans()


@dataclass(frozen=True)
class Output:
    """What one choice of one prompt is given: its deltas, reasoning first, and how it ends."""

    reasoning: list[str]
    answer: list[str]
    finish: str


choices = st.builds(
    Output, st.lists(texts, max_size=4), st.lists(texts, min_size=1, max_size=4), st.sampled_from(["STOP", "LENGTH"])
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[HttpCall, list[list[Output]]]:
    """A call, and what each choice of each of its prompts is given."""
    chat = draw(st.booleans())
    n, prompts = draw(st.integers(1, 3)), 1 if chat else draw(st.integers(1, 3))
    body: dict[str, Any] = {"model": "m", "n": n, "return_token_ids": draw(st.booleans()), "stream": True}
    logprobs = draw(st.booleans())
    if chat:
        body |= {"messages": [{"role": "user", "content": "Hi"}]}
        body |= {"logprobs": True, "top_logprobs": 2} if logprobs else {}
        call = read_chat_call(body)
    else:
        body |= {"prompt": [f"p{i}" for i in range(prompts)]}
        body |= {"logprobs": 2} if logprobs else {"echo": draw(st.booleans())}
        call = read_completion_call(body)
    return call, draw(st.lists(st.lists(choices, min_size=n, max_size=n), min_size=prompts, max_size=prompts))


def events(call: HttpCall, outputs: list[list[Output]]) -> list[tuple[int, pb.GenerateResponse]]:
    found: list[tuple[int, pb.GenerateResponse]] = []
    for prompt, row in enumerate(outputs):
        found += [(prompt, admitted(choice=choice)) for choice in range(len(row))]
        for choice, each in enumerate(row):
            parts = [(text, True) for text in each.reasoning] + [(text, False) for text in each.answer]
            for index, (text, thinks) in enumerate(parts):
                last = index == len(parts) - 1
                found.append(
                    (
                        prompt,
                        delta(
                            text, choice=choice, reasoning=thinks, finish=each.finish if last else "",
                            ids=(100 + index,), logprobs=call.logprobs,
                        ),
                    )
                )  # fmt: skip
        reasoning = sum(len(each.reasoning) for each in row)
        answer = sum(len(each.answer) for each in row)
        found.append((prompt, finished(reasoning=reasoning, answer=answer, choices=len(row))))
    return found


def streamed(call: HttpCall, outputs: list[list[Output]]) -> list[dict[str, Any]]:
    """The chunks' objects, as a client of server-sent events reads them."""
    chunks = Chunks(call, 7)
    data = b"".join(chunks.take(prompt, event) for prompt, event in events(call, outputs)) + chunks.end()
    assert data.endswith(DONE)
    rows = data.removesuffix(DONE).decode().split("\n\n")
    assert rows.pop() == ""
    return [json.loads(row.removeprefix("data: ")) for row in rows]


def whole(call: HttpCall, outputs: list[list[Output]]) -> dict[str, Any]:
    reply = Reply(call, 7)
    for prompt, event in events(call, outputs):
        reply.add(prompt, event)
    found: dict[str, Any] = json.loads(json.dumps(reply.object()))
    return found


def joined(chunks: list[dict[str, Any]], index: int, name: str) -> str:
    found = ""
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                found += (choice.get("delta") or choice).get(name) or ""
    return found


@settings(max_examples=60)
@given(calls())
def test_chunks_put_together_are_the_whole_reply(made: tuple[HttpCall, list[list[Output]]]) -> None:
    call, outputs = made
    chunks, reply = streamed(call, outputs), whole(call, outputs)
    assert {chunk["id"] for chunk in chunks} == {reply["id"]}
    assert {(chunk["created"], chunk["model"]) for chunk in chunks} == {(7, "m")}
    assert len(reply["choices"]) == len(outputs) * call.choices
    for index, choice in enumerate(reply["choices"]):
        given_ = outputs[index // call.choices][index % call.choices]
        own = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
        reasoning = "".join(given_.reasoning)
        text = choice["message"]["content"] if call.chat else choice["text"]
        echo = call.echo[index // call.choices] if call.echo else ""
        assert (text or "") == echo + "".join(given_.answer)
        assert joined(chunks, index, "content" if call.chat else "text") == (text or "")
        assert joined(chunks, index, "reasoning_content") == reasoning
        assert joined(chunks, index, "reasoning") == reasoning
        assert (choice["message"] if call.chat else choice).get("reasoning_content", "") == reasoning
        # It ends once, at its last chunk.
        ends = [part["finish_reason"] for part in own]
        assert ends == [None] * (len(own) - 1) + [given_.finish.lower()]
        assert choice["finish_reason"] == ends[-1]
        if call.chat:
            assert [("role" in part["delta"]) for part in own] == [True] + [False] * (len(own) - 1)
        if call.return_token_ids:
            assert [token for part in own for token in part["token_ids"]] == choice["token_ids"]


@settings(max_examples=40)
@given(calls())
def test_log_probabilities_of_chunks_are_those_of_the_whole(made: tuple[HttpCall, list[list[Output]]]) -> None:
    call, outputs = made
    if call.logprobs is None:
        assert all(choice["logprobs"] is None for choice in whole(call, outputs)["choices"])
        return
    chunks, reply = streamed(call, outputs), whole(call, outputs)
    names = ("content",) if call.chat else ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    for choice in reply["choices"]:
        own = [part["logprobs"] for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        for name in names:
            assert [row for part in own for row in part[name]] == choice["logprobs"][name], name
        thoughts = [part["reasoning_content"] for part in own if "reasoning_content" in part]
        kept = choice["logprobs"].get("reasoning_content")
        if call.chat:
            assert [row for part in thoughts for row in part] == (kept or [])
        else:
            assert [row for part in thoughts for row in part["tokens"]] == (kept or {"tokens": []})["tokens"]


@settings(max_examples=40)
@given(calls())
def test_the_client_folds_the_same_events_to_the_same_texts(made: tuple[HttpCall, list[list[Output]]]) -> None:
    call, outputs = made
    folded = [Completion() for _ in outputs]
    for prompt, event in events(call, outputs):
        inner = event_of(event)
        assert inner is not None
        folded[prompt].add(inner)
    for prompt, row in enumerate(outputs):
        for choice, given_ in zip(folded[prompt].choices, row, strict=True):
            assert (choice.text, choice.reasoning) == ("".join(given_.answer), "".join(given_.reasoning))
            assert len(choice.token_ids) == len(given_.answer) + len(given_.reasoning)
            assert bool(choice.logprobs) == (call.logprobs is not None)


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=1, max_size=5))
def test_usage_is_the_sum_over_prompts(rows: list[tuple[int, int, int, int]]) -> None:
    usages = [pb.Usage(prompt_tokens=p, cached_tokens=c, reasoning_tokens=r, answer_tokens=a) for p, c, r, a in rows]
    found = usage_object(usages)
    assert found["total_tokens"] == found["prompt_tokens"] + found["completion_tokens"]
    assert found["completion_tokens"] == sum(r + a for _, _, r, a in rows)
    assert found["completion_tokens_details"] == {"reasoning_tokens": sum(r for _, _, r, _ in rows)}
    assert found["prompt_tokens_details"]["cached_tokens"] == sum(c for _, c, _, _ in rows)


def test_a_reduced_budget_is_the_smallest_of_them() -> None:
    usages = [pb.Usage(), pb.Usage(reduced_budget_tokens=64, clipped_traces=1), pb.Usage(reduced_budget_tokens=0)]
    details = usage_object(usages)["completion_tokens_details"]
    assert details["reduced_thinking_budget_tokens"] == 0
    assert details["clipped_traces"] == 1


def test_usage_comes_only_where_it_was_asked_for() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    outputs = [[Output([], ["a", "b"], "STOP")]]
    assert all("usage" not in chunk for chunk in streamed(read_chat_call(body), outputs))
    *parts, last = streamed(read_chat_call(body | {"stream_options": {"include_usage": True}}), outputs)
    assert [chunk["usage"] for chunk in parts] == [None, None]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2
    both = {"include_usage": True, "continuous_usage_stats": True}
    running = streamed(read_chat_call(body | {"stream_options": both}), outputs)
    assert [chunk["usage"]["completion_tokens"] for chunk in running] == [1, 2, 2]
    assert {chunk["usage"]["prompt_tokens"] for chunk in running} == {5}


def test_an_error_in_mid_stream_is_one_event_and_the_end() -> None:
    call = read_chat_call({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
    data = Chunks(call, 7).fail(RequestRejected("full", retry_after_s=1))
    assert data.endswith(DONE)
    assert json.loads(data.removesuffix(DONE).removeprefix(b"data: "))["error"]["message"] == "full"


# --- reading --------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_what_json_writes_is_read_back(tree: Any) -> None:
    assert parse_json(json.dumps(tree).encode()) == tree
    assert parse_json(json.dumps(tree, ensure_ascii=False).encode()) == tree


@given(json_values, st.integers(-5, 5), st.integers(0, 10))
def test_an_integer_is_one_of_its_range_or_refused_by_name(value: Any, low: int, span: int) -> None:
    fields = Fields({"n": value}, "outer")
    try:
        found = fields.integer("n", low=low, high=low + span)
    except InvalidRequest as refused:
        assert refused.field == "outer.n"
        assert not (type(value) is int and low <= value <= low + span)
    else:
        assert found is None if value is None else (low <= found <= low + span and found == value)  # type: ignore[operator]
        assert type(value) is not bool


@given(json_values)
def test_a_number_fits_into_a_float_of_the_protocol(value: Any) -> None:
    try:
        found = Fields({"x": value}).number("x")
    except InvalidRequest as refused:
        assert refused.field == "x"
        assert type(value) is bool or not isinstance(value, int | float) or abs(value) > FLOAT32_MAX
    else:
        assert found is None or abs(found) <= FLOAT32_MAX


@pytest.mark.parametrize("key", ["-1", "1.0", "", "x", "٣", str(UINT32_MAX + 1), "00000000001"])
def test_biases_have_token_ids_as_keys(key: str) -> None:
    with pytest.raises(InvalidRequest, match="logit_bias: expected token ids as keys"):
        Fields({"logit_bias": {key: 1}}).biases("logit_bias")


@given(st.dictionaries(st.integers(0, UINT32_MAX), st.floats(-100, 100), max_size=4))
def test_biases_go_round(biases: dict[int, float]) -> None:
    assert Fields({"b": {str(key): value for key, value in biases.items()}}).biases("b") == biases


@given(st.dictionaries(st.sampled_from("abcdef"), json_values, max_size=6), st.sets(st.sampled_from("abcdef")))
def test_a_field_that_nobody_took_is_refused_unless_it_is_null(tree: dict[str, Any], taken: set[str]) -> None:
    fields = Fields(tree)
    for name in taken:
        fields.raw(name)
    left = {name for name, value in tree.items() if name not in taken and value is not None}
    if not left:
        fields.finish()
        return
    with pytest.raises(InvalidRequest, match="unknown field") as refused:
        fields.finish()
    assert refused.value.field in left
