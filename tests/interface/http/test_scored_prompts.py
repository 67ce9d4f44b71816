"""Log-probabilities of prompts over HTTP: `echo` with `logprobs`, and vLLM's `prompt_logprobs`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from baton.v1 import inference_pb2
from interface.http.completions.prompt_text import PromptText
from tests.fakes.backend import Script, prompt_logprobs, reply
from tests.interface.conftest import Edge


def check_columns(columns: dict[str, Any], prompt: str, output: int) -> None:
    """The prompt's columns are those that the backend gave, and the output's follow on."""
    assert columns["tokens"][: len(prompt)] == list(prompt)
    assert len({len(column) for column in columns.values()}) == 1
    assert len(columns["tokens"]) == len(prompt) + output
    assert columns["token_logprobs"][0] is None
    assert columns["top_logprobs"][0] is None
    inner = columns["token_logprobs"][1 : len(prompt) - 1]
    assert inner == [-place / 4 for place in range(1, len(prompt) - 1)]
    assert columns["token_logprobs"][len(prompt) - 1] == -9999.0  # JSON knows no infinity
    assert columns["top_logprobs"][1] == {prompt[1]: -0.25, "p0": -0.125, "p1": -0.25}
    offset = 0
    for text, at in zip(columns["tokens"], columns["text_offset"], strict=True):
        assert at == offset
        offset += len(text)


async def test_echo_with_logprobs_as_evaluation_harnesses_send_it(edge: Edge) -> None:
    edge.backend.script = reply(answer=("lo",))
    ids = [list(b"Hello"), list(b"Baton")]
    status, answer = await edge.complete(prompt=ids, echo=True, logprobs=2, max_tokens=1, temperature=0, seed=1)
    assert status == 200
    assert [choice["text"] for choice in answer["choices"]] == ["Hellolo", "Batonlo"]
    for choice, prompt in zip(answer["choices"], ("Hello", "Baton"), strict=True):
        check_columns(choice["logprobs"], prompt, 1)
        assert "prompt_logprobs" not in choice
    assert [request.sampling.prompt_logprobs for request in edge.backend.requests] == [2, 2]


async def test_a_prompt_alone(edge: Edge) -> None:
    status, answer = await edge.complete(prompt="Hello", echo=True, logprobs=2, max_tokens=0)
    assert status == 200
    (choice,) = answer["choices"]
    check_columns(choice["logprobs"], "Hello", 0)
    assert (choice["text"], choice["finish_reason"]) == ("Hello", "length")
    assert answer["usage"]["completion_tokens"] == 0
    status, answer = await edge.complete(prompt="Hello", echo=True, max_tokens=0)
    assert (status, answer["choices"][0]["text"], answer["choices"][0]["logprobs"]) == (200, "Hello", None)


async def test_prompt_logprobs_in_both_forms_of_request(edge: Edge) -> None:
    _, answer = await edge.complete(prompt="Hello", prompt_logprobs=1)
    rows = answer["choices"][0]["prompt_logprobs"]
    assert rows[0] is None
    assert rows[1] == {
        str(ord("e")): {"logprob": -0.25, "rank": 2, "decoded_token": "e"},
        "1000": {"logprob": -0.125, "rank": 1, "decoded_token": "p0"},
    }
    assert len(rows) == 5
    assert answer["choices"][0]["logprobs"] is None
    _, answer = await edge.chat(prompt_logprobs=0)
    assert [None if row is None else list(row) for row in answer["prompt_logprobs"]] == [None, ["105"]]
    assert answer["choices"][0]["message"]["content"] == "Hello"
    _, answer = await edge.complete(prompt="Hello", echo=True, logprobs=1, prompt_logprobs=2, max_tokens=0)
    assert edge.backend.requests[-1].sampling.prompt_logprobs == 2
    assert [len(row or ()) for row in answer["choices"][0]["prompt_logprobs"]] == [0, 3, 3, 3, 3]
    assert len(answer["choices"][0]["logprobs"]["top_logprobs"][1]) == 2


@pytest.mark.parametrize("script", [reply(answer=("l", "o")), reply(answer=("o",), reasoning=("Hm",))])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_says_what_the_whole_reply_does(edge: Edge, script: Script, n: int) -> None:
    edge.backend.script = script
    body = {"model": "m", "prompt": "Hello", "echo": True, "logprobs": 2, "n": n}
    _, whole = await edge.complete(**body)
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in (await edge.stream("/v1/completions", **body))[:-1]]
    for index, choice in enumerate(whole["choices"]):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in mine) == choice["text"]
        for name, column in choice["logprobs"].items():
            if name != "reasoning_content":
                assert [value for part in mine for value in part["logprobs"].get(name, ())] == column


async def test_a_stream_has_no_prompt_logprobs(edge: Edge) -> None:
    status, answer = await edge.complete(prompt="Hello", prompt_logprobs=1, stream=True)
    assert (status, answer["error"]["param"]) == (400, "prompt_logprobs")


async def test_ids_are_echoed_as_text_and_those_that_are_none_refused(edge: Edge) -> None:
    status, answer = await edge.complete(prompt=[72, 105], echo=True)
    assert (status, answer["choices"][0]["text"]) == (200, "HiHello")
    lines = await edge.stream("/v1/completions", model="tiny-thinker", prompt=[72, 105], echo=True)
    assert json.loads(lines[0].removeprefix(b"data: "))["choices"][0]["text"] == "HiHel"
    status, answer = await edge.complete(model="other", prompt=[72, 105], echo=True)
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_a_long_prompt_is_written_as_it_comes() -> None:
    """All pieces are text by then: what is joined in the end is bytes alone."""
    text = PromptText(1, 1)
    pieces = prompt_logprobs([65 + index % 20 for index in range(3000)], 1)
    for piece in pieces:
        text.add(piece.prompt_logprobs)
    assert text.chars == 3000
    whole = json.loads(text.with_output({"tokens": ["x"], "token_logprobs": [-1.0]}))
    assert whole["tokens"][-2:] == [chr(65 + 2999 % 20), "x"]
    assert len(whole["token_logprobs"]) == 3001
    assert len(json.loads(b"{" + text.listed()[1:] + b"}")["prompt_logprobs"]) == 3000


def test_what_no_prompt_asks_for_is_not_written() -> None:
    text = PromptText(None, None)
    text.add(inference_pb2.PromptLogprobs(tokens=[inference_pb2.TokenLogprobs()]))
    assert (text.listed(), text.with_output({"tokens": []})) == (b"", b'{"tokens":[]}')
