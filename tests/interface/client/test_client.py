from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from baton.v1 import inference_pb2
from cluster.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NoReadyWorker,
    RequestAborted,
    RequestRejected,
)
from interface.client.client import AsyncClient, Client
from interface.client.client_request import build_request
from tests.fakes.backend import FakeBackend, Stall, admitted, delta, finished, reply, script
from tests.interface.conftest import Edge


async def test_streams_typed_events(edge: Edge) -> None:
    async with AsyncClient(edge.grpc_address) as client:
        kinds = [type(event) async for event in client.generate(prompt="Hi")]
    pb = inference_pb2
    assert kinds == [pb.Admitted, pb.FirstToken, pb.Delta, pb.Delta, pb.Finished]


async def test_completes(edge: Edge) -> None:
    edge.backend.script = reply(answer=("Hel", "lo"), reasoning=("Hm",))
    async with AsyncClient(edge.grpc_address) as client:
        done = await client.complete(
            messages=[{"role": "user", "content": "Hi"}],
            n=2,
            stop="END",
            temperature=0.5,
            logprobs=0,
            logit_bias={3: 1.5},
            reasoning_effort="low",
            deadline_s=5,
        )
    assert (done.text, done.reasoning, done.token_ids) == ("Hello", "Hm", [100, 101, 102])
    assert [choice.text for choice in done.choices] == ["Hello", "Hello"]
    assert len(done.choices[1].logprobs) == 3
    assert (done.usage.reasoning_tokens, done.usage.answer_tokens, done.cost_usd) == (2, 4, 0.25)
    assert (done.timings.first_token_s, done.handoff.transport, done.workers.decode) == (0.01, "tcp", "decode-0")
    assert done.finish_reason == inference_pb2.FINISH_REASON_STOP
    request = edge.backend.requests[0]
    assert list(request.sampling.stop) == ["END"]
    assert request.sampling.logit_bias == {3: 1.5}
    assert request.reasoning.effort == inference_pb2.EFFORT_LOW
    assert request.deadline_s <= 5.5


async def test_a_prompt_is_scored(edge: Edge) -> None:
    async with AsyncClient(edge.grpc_address) as client:
        done = await client.complete(prompt="Hello", max_tokens=0, prompt_logprobs=2)
    assert [row.chosen.text for row in done.prompt_logprobs] == list("Hello")
    assert [len(row.top) for row in done.prompt_logprobs] == [0, 2, 2, 2, 2]
    assert (done.text, done.finish_reason) == ("", inference_pb2.FINISH_REASON_LENGTH)


async def test_tokens_and_text(edge: Edge) -> None:
    async with AsyncClient(edge.grpc_address) as client:
        assert await client.tokenize(prompt="Hi") == [256, 72, 105]
        assert await client.tokenize(prompt="Hi", special_tokens=False) == [72, 105]
        assert await client.tokenize(messages=[{"role": "user", "content": "Hi"}]) == [256, 72, 105]
        assert await client.detokenize([72, 105]) == "Hi"
        with pytest.raises(ModelNotFound):
            await client.tokenize(prompt="Hi", model="other")
        with pytest.raises(InvalidRequest):
            await client.tokenize(prompt_token_ids=[72])
    assert edge.backend.requests == []


async def test_every_call_has_a_deadline(edge: Edge) -> None:
    edge.backend.script = script(admitted(), Stall())
    async with AsyncClient(edge.grpc_address) as client:
        with pytest.raises(DeadlineExceeded):
            await client.complete(prompt="Hi", deadline_s=0.2)
        await asyncio.wait_for(edge.backend.cancelled.wait(), 2)
        edge.backend.script = reply()
        await client.complete(prompt="Hi")
    assert 500 < edge.backend.requests[-1].deadline_s <= 601


async def test_leaving_the_stream_cancels(edge: Edge) -> None:
    edge.backend.script = script(admitted(), delta("Hel"), Stall())
    async with AsyncClient(edge.grpc_address) as client:
        events = client.generate(prompt="Hi")
        assert isinstance(await anext(events), inference_pb2.Admitted)
        await events.aclose()
        await asyncio.wait_for(edge.backend.cancelled.wait(), 2)


async def test_cancelling_the_task_cancels(edge: Edge) -> None:
    edge.backend.script = script(admitted(), Stall())
    async with AsyncClient(edge.grpc_address) as client:
        task = asyncio.create_task(client.complete(prompt="Hi"))
        await edge.backend.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(edge.backend.cancelled.wait(), 2)


async def test_errors_carry_what_a_caller_needs(edge: Edge) -> None:
    edge.backend.script = script(RequestRejected("full", retry_after_s=2.5))
    async with AsyncClient(edge.grpc_address) as client:
        with pytest.raises(RequestRejected, match="full") as caught:
            await client.complete(prompt="Hi")
    assert caught.value.retry_after_s == 2.5


async def test_nobody_listens() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(NoReadyWorker):
            await client.list_models()


async def test_models_and_status(edge: Edge) -> None:
    async with AsyncClient(edge.grpc_address) as client:
        assert await client.list_models() == edge.backend.models()
        assert await client.get_status() == edge.backend.status()
        seen = []
        async for status in client.watch_status(0.1):
            seen.append(status)
            if len(seen) == 2:
                break
    assert seen == [edge.backend.status()] * 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "Hi", "prompt_token_ids": [1]},
        {"prompt": "Hi", "temprature": 1},
        {"prompt": "Hi", "temperature": "hot"},
        {"prompt": "Hi", "max_tokens": -1},
        {"prompt": "\ud800"},
        {"prompt": "Hi", "reasoning_effort": "much"},
        {"prompt": "Hi", "tools": [{}]},
        {"messages": [{"role": "user", "colour": "red"}]},
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(options: Any) -> None:
    with pytest.raises(InvalidRequest):
        build_request(options)


def test_builds_the_other_inputs() -> None:
    assert list(build_request({"prompt_token_ids": [1, 2]}).prompt_token_ids.ids) == [1, 2]
    calls = [{"id": "1"}]
    request = build_request(
        {
            "messages": [{"role": "assistant", "content": None, "tool_calls": calls}],
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
            ],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "reasoning_budget_tokens": 0,
        }
    )
    assert request.chat.messages[0].tool_calls_json == '[{"id": "1"}]'
    tool = inference_pb2.Tool(name="f", parameters_json='{"type": "object"}', strict=True)
    assert list(request.chat.tools) == [tool]
    assert request.chat.tool_choice == inference_pb2.ToolChoice(mode=inference_pb2.ToolChoice.MODE_REQUIRED)
    assert request.chat.parallel_tool_calls is False
    assert request.reasoning.HasField("budget_tokens")


def wait_until_cancelled(backend: FakeBackend) -> None:
    until_s = time.monotonic() + 2
    while not backend.cancelled.is_set():
        assert time.monotonic() < until_s
        time.sleep(0.005)
    backend.cancelled.clear()


def test_sync(served: tuple[FakeBackend, str]) -> None:
    backend, address = served
    backend.script = reply()
    with Client(address) as client:
        assert client.complete(prompt="Hi").text == "Hello"
        assert client.list_models() == backend.models()
        assert client.get_status() == backend.status()
        watch = client.watch_status(0.1)
        assert [next(watch), next(watch)] == [backend.status()] * 2


def test_sync_tokens_and_text(served: tuple[FakeBackend, str]) -> None:
    with Client(served[1]) as client:
        assert client.tokenize(prompt="Hi") == [256, 72, 105]
        assert client.detokenize([72, 105]) == "Hi"


def test_sync_failures(served: tuple[FakeBackend, str]) -> None:
    backend, address = served
    with Client(address) as client:
        backend.script = script(RequestRejected("full", retry_after_s=2.5))
        with pytest.raises(RequestRejected, match="full"):
            client.complete(prompt="Hi")
        backend.script = script(admitted(), Stall())
        with pytest.raises(DeadlineExceeded):
            client.complete(prompt="Hi", deadline_s=0.2)
        wait_until_cancelled(backend)


def test_sync_leaving_cancels(served: tuple[FakeBackend, str]) -> None:
    backend, address = served
    backend.script = script(admitted(), delta("Hel"), Stall())
    with Client(address) as client:
        events = client.generate(prompt="Hi")
        next(events)
        events.close()
        wait_until_cancelled(backend)
        events = client.generate(prompt="Hi")
        next(events)
    with pytest.raises(RequestAborted):
        list(events)
    wait_until_cancelled(backend)


async def test_a_closed_async_client_ends_its_streams(edge: Edge) -> None:
    edge.backend.script = script(admitted(), Stall(), finished())
    client = AsyncClient(edge.grpc_address)
    events = client.generate(prompt="Hi")
    await anext(events)
    await client.close()
    with pytest.raises(RequestAborted):
        await anext(events)
    await asyncio.wait_for(edge.backend.cancelled.wait(), 2)
