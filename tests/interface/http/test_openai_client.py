"""The real `openai` client against the HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from baton.v1 import inference_pb2
from cluster.errors import DeadlineExceeded, ModelNotFound, RequestRejected, WorkerDied
from tests.fakes.backend import MODEL, Stall, admitted, delta, reply, script
from tests.interface.conftest import Edge

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("org/other")


async def test_chat(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = reply(answer=("Hel", "lo"), reasoning=("Let me", " think"))
    answer = await client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=0.5, reasoning_effort="low", user="me", extra_body={"top_k": 3}
    )
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", "Hello")
    assert message.reasoning_content == message.reasoning == "Let me think"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 4, 9)
    request = edge.backend.requests[0]
    assert request.reasoning.effort == inference_pb2.EFFORT_LOW
    assert (request.sampling.top_k, request.tenant) == (3, "me")
    assert answer.id == f"chatcmpl-{request.request_id}"


async def test_a_reply_can_be_sent_back_as_history(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = reply(reasoning=("Hm",))
    first = await client.chat.completions.create(model=MODEL, messages=HELLO)
    history = [*HELLO, first.choices[0].message, first.choices[0].message.model_dump(), *HELLO]
    await client.chat.completions.create(model=MODEL, messages=history)
    messages = edge.backend.requests[-1].chat.messages
    assert [message.content for message in messages] == ["Hi", "Hello", "Hello", "Hi"]


async def test_chat_streamed(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = reply(answer=("Hel", "lo"), reasoning=("Hm",))
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.reasoning_content == "Hm"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 1
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_clients_own_stream_accumulator(edge: Edge, client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model=MODEL, messages=HELLO, n=2, logprobs=True) as stream:
        final = await stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["Hello", "Hello"]
    # Of later choices the client counts the first chunk's log-probabilities twice; a fault of its own.
    assert len(final.choices[0].logprobs.content) == 2


async def test_completions(edge: Edge, client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt=["One", "Two"], n=2, echo=True, max_tokens=9)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "OneHello"),
        (1, "OneHello"),
        (2, "TwoHello"),
        (3, "TwoHello"),
    ]
    assert answer.usage.prompt_tokens == 10
    assert [request.prompt for request in edge.backend.requests] == ["One", "Two"]
    assert len({request.request_id for request in edge.backend.requests}) == 2


async def test_completions_streamed(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(model=MODEL, prompt=[1, 2, 3], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModelNotFound("no such model"), openai.NotFoundError),
        (RequestRejected("full", retry_after_s=3), openai.RateLimitError),
        (DeadlineExceeded("late"), openai.InternalServerError),
        (WorkerDied("gone"), openai.InternalServerError),
    ],
)
async def test_errors(edge: Edge, client: openai.AsyncOpenAI, error: Exception, kind: type[Exception]) -> None:
    edge.backend.script = script(error)
    with pytest.raises(kind, match=str(error)) as caught:
        await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.body["message"] == str(error)


async def test_an_error_in_mid_stream_is_raised(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = script(admitted(), delta("Hel"), WorkerDied("no worker is left"))
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    seen = []
    with pytest.raises(openai.APIError, match="no worker is left"):
        async for chunk in stream:
            seen.append(chunk.choices[0].delta.content)
    assert seen == ["Hel"]


async def test_the_client_waits_as_hinted_and_tries_again(edge: Edge) -> None:
    tries = iter([script(RequestRejected("full", retry_after_s=0.02)), reply()])
    edge.backend.script = lambda request: next(tries)(request)
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=1) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "Hello"


async def test_closing_the_stream_cancels(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = script(admitted(), delta("Hel"), Stall())
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert (await anext(aiter(stream))).choices[0].delta.content == "Hel"
    await stream.close()
    await asyncio.wait_for(edge.backend.cancelled.wait(), 2)


async def test_a_client_that_times_out_cancels(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = script(admitted(), Stall())
    with pytest.raises(openai.APITimeoutError):
        await client.chat.completions.create(model=MODEL, messages=HELLO, timeout=0.2)
    await asyncio.wait_for(edge.backend.cancelled.wait(), 2)
