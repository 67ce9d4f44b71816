"""Server-sent events, byte by byte and by vLLM's own benchmark client."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import sys
from types import ModuleType
from typing import Any

import pytest

from cluster.errors import WorkerDied
from tests.fakes.backend import MODEL, Stall, admitted, delta, finished, first_token, reply, script
from tests.interface.conftest import Edge

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "request_id": "mine"}
PROMPT = {"model": MODEL, "prompt": "Hi", "request_id": "mine"}


def golden(events: list[bytes]) -> list[str]:
    return [re.sub(r'"created":\d+', '"created":0', event.decode()) for event in events]


async def test_chat_golden(edge: Edge) -> None:
    edge.backend.script = script(
        admitted(),
        first_token(),
        delta('a "quoted" thought', reasoning=True),
        delta("ans\nwer ☃"),
        delta("!", finish="STOP", stop_matched="2"),
        finished(reasoning=1, answer=2),
    )
    head = 'data: {"id":"chatcmpl-mine","object":"chat.completion.chunk","created":0,"model":"tiny-thinker","choices":['
    thought = '"a \\"quoted\\" thought"'
    assert golden(await edge.stream(CHAT, **BODY, stream_options={"include_usage": True})) == [
        head + f'{{"index":0,"delta":{{"role":"assistant","reasoning_content":{thought},"reasoning":{thought}}},'
        '"logprobs":null,"finish_reason":null}],"usage":null}',
        head
        + '{"index":0,"delta":{"content":"ans\\nwer \\u2603"},"logprobs":null,"finish_reason":null}],"usage":null}',
        head + '{"index":0,"delta":{"content":"!"},"logprobs":null,"finish_reason":"stop","stop_reason":2}],'
        '"usage":null}',
        head + '],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,'
        '"prompt_tokens_details":{"cached_tokens":2},"completion_tokens_details":{"reasoning_tokens":1}}}',
        "data: [DONE]",
    ]


async def test_completion_golden(edge: Edge) -> None:
    edge.backend.script = script(
        admitted(),
        delta("hm", reasoning=True),
        delta("Hel"),
        delta("lo", finish="LENGTH"),
        finished(reasoning=1, answer=2, finish="LENGTH"),
    )
    head = 'data: {"id":"cmpl-mine","object":"text_completion","created":0,"model":"tiny-thinker","choices":['
    assert golden(await edge.stream(TEXT, **PROMPT, echo=True)) == [
        head
        + '{"index":0,"text":"Hi","reasoning_content":"hm","reasoning":"hm","logprobs":null,"finish_reason":null}]}',
        head + '{"index":0,"text":"Hel","logprobs":null,"finish_reason":null}]}',
        head + '{"index":0,"text":"lo","logprobs":null,"finish_reason":"length","stop_reason":null}]}',
        "data: [DONE]",
    ]


async def test_headers_of_a_stream(edge: Edge) -> None:
    async with edge.session.post(f"{edge.url}{CHAT}", json={**BODY, "stream": True}) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["X-Request-Id"] == "mine"


async def test_usage_with_every_chunk(edge: Edge) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = [json.loads(event[6:]) for event in (await edge.stream(TEXT, **PROMPT, stream_options=options))[:-1]]
    counts = [(event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"]) for event in events]
    assert counts == [(5, 1), (5, 2), (5, 2)]
    assert events[-1]["choices"] == []
    assert {event["usage"]["prompt_tokens_details"]["cached_tokens"] for event in events} == {2}


async def test_usage_with_every_chunk_counts_the_reasoning(edge: Edge) -> None:
    edge.backend.script = reply(reasoning=("Hm", "m"), answer=("4", "2"))
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = [json.loads(event[6:]) for event in (await edge.stream(CHAT, **BODY, n=2, stream_options=options))[:-1]]
    for index in (0, 1):
        usages = [event["usage"] for event in events[:-1] if event["choices"][0]["index"] == index]
        assert [usage["completion_tokens"] for usage in usages] == [1, 2, 3, 4]
        assert [usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages] == [1, 2, 2, 2]
        assert {usage["total_tokens"] - usage["completion_tokens"] for usage in usages} == {5}
        assert all(usage.keys() == events[-1]["usage"].keys() for usage in usages)
    assert events[-1]["usage"]["completion_tokens"] == 8


async def test_several_choices_are_distinguished(edge: Edge) -> None:
    events = [json.loads(event[6:]) for event in (await edge.stream(CHAT, **BODY, n=2))[:-1]]
    texts = {0: "", 1: ""}
    roles = []
    for event in events:
        [choice] = event["choices"]
        texts[choice["index"]] += choice["delta"]["content"]
        roles += [choice["index"]] if "role" in choice["delta"] else []
    assert texts == {0: "Hello", 1: "Hello"}
    assert roles == [0, 1]


async def test_several_prompts_are_distinguished(edge: Edge) -> None:
    body = {**PROMPT, "prompt": ["One", "Two"], "n": 2, "stream_options": {"include_usage": True}}
    events = [json.loads(event[6:]) for event in (await edge.stream(TEXT, **body))[:-1]]
    texts = dict.fromkeys(range(4), "")
    for event in events[:-1]:
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == dict.fromkeys(range(4), "Hello")
    assert events[-1]["usage"]["completion_tokens"] == 8


async def test_token_ids(edge: Edge) -> None:
    body = {**PROMPT, "prompt": [1, 2], "return_token_ids": True}
    events = [json.loads(event[6:]) for event in (await edge.stream(TEXT, **body))[:-1]]
    choices = [event["choices"][0] for event in events]
    assert [choice["token_ids"] for choice in choices] == [[100], [101]]
    assert [choice.get("prompt_token_ids") for choice in choices] == [[1, 2], None]
    [choice] = (await edge.complete(return_token_ids=True))[1]["choices"]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([100, 101], None)


async def test_an_error_in_mid_stream_ends_it(edge: Edge) -> None:
    edge.backend.script = script(admitted(), delta("Hel"), WorkerDied("no worker is left"))
    events = await edge.stream(CHAT, **BODY)
    assert json.loads(events[1][6:])["error"]["code"] == "worker_died"
    assert events[2:] == [b"data: [DONE]"]


async def test_a_stream_that_just_ends_is_an_error(edge: Edge) -> None:
    edge.backend.script = script(admitted(), delta("Hel"))
    assert json.loads((await edge.stream(CHAT, **BODY))[1][6:])["error"]["code"] == "engine_failed"
    assert (await edge.chat())[0] == 500


async def test_an_answer_without_a_token_is_still_a_stream(edge: Edge) -> None:
    edge.backend.script = script(admitted(), finished(answer=0))
    assert await edge.stream(CHAT, **BODY) == [b"data: [DONE]"]


async def test_one_of_several_prompts_fails(edge: Edge) -> None:
    def play(request: Any) -> Any:
        if request.prompt == "Two":
            return [admitted(), WorkerDied("gone")]
        return [admitted(), delta("Hel"), Stall()]

    edge.backend.script = play
    status, answer = await edge.complete(prompt=["One", "Two"])
    assert (status, answer["error"]["code"]) == (503, "worker_died")
    assert edge.backend.cancelled.is_set()
    assert edge.backend.running == 0


@pytest.mark.parametrize("prompt", ["One", ["One", "Two"]])
async def test_leaving_cancels_all_prompts(edge: Edge, prompt: Any) -> None:
    edge.backend.script = script(admitted(), delta("Hel"), Stall())
    async with edge.session.post(f"{edge.url}{TEXT}", json={**PROMPT, "prompt": prompt, "stream": True}) as answer:
        await answer.content.readuntil(b"\n\n")
        answer.close()
    await asyncio.wait_for(edge.backend.idle.wait(), 2)
    assert edge.backend.cancelled.is_set()


async def test_leaving_a_whole_reply_cancels(edge: Edge) -> None:
    edge.backend.script = script(admitted(), Stall())
    task = asyncio.create_task(edge.complete())
    await edge.backend.started.wait()
    task.cancel()
    await asyncio.wait_for(edge.backend.cancelled.wait(), 2)


async def test_a_reader_that_does_not_read_stops_the_backend(edge: Edge) -> None:
    """Back-pressure: what the socket does not take stays with the gateway, which merges it."""
    taken = 0

    def endless(_: object) -> Any:
        nonlocal taken
        yield admitted()
        while True:
            taken += 1
            yield delta("x" * 10_000)

    edge.backend.script = endless
    async with edge.session.post(f"{edge.url}{TEXT}", json={**PROMPT, "stream": True}) as answer:
        await answer.content.readuntil(b"\n\n")
        before = -1
        while taken != before:
            before = taken
            await asyncio.sleep(0.05)
        assert taken < 5_000
        answer.close()
    await asyncio.wait_for(edge.backend.cancelled.wait(), 2)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """vLLM's benchmark client, loaded from its file: importing the package would take seconds."""
    package = importlib.util.find_spec("vllm")
    if package is None or not package.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    path = f"{package.submodule_search_locations[0]}/benchmarks/lib/endpoint_request_func.py"
    spec = importlib.util.spec_from_file_location("vllm_bench_requests", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("path", "name"), [(TEXT, "completions"), (CHAT, "chat_completions")])
async def test_vllms_own_benchmark_client(edge: Edge, bench: ModuleType, path: str, name: str) -> None:
    edge.backend.script = reply(answer=("One", " two", " three"))
    given = bench.RequestFuncInput(
        prompt="Hi", api_url=f"{edge.url}{path}", prompt_len=1, output_len=3, model=MODEL, ignore_eos=True
    )
    output = await getattr(bench, f"async_request_openai_{name}")(given, edge.session)
    assert output.success, output.error
    assert output.generated_text == "One two three"
    assert (output.output_tokens, output.prompt_len, len(output.itl)) == (3, 5, 2)
    sampling = edge.backend.requests[0].sampling
    assert (sampling.max_tokens, sampling.ignore_eos) == (3, True)
