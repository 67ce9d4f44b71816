"""The client goes on at another gateway by itself. Servers here are scripted; real ones are in test_gateway_death."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc
from cluster.errors import InvalidRequest, NoReadyWorker, ServingError, WorkerDied
from interface.client.client import AsyncClient
from interface.client.resumption import Resumption, is_lost
from interface.grpc_server import serve_grpc
from tests.fakes.backend import (
    FakeBackend,
    admitted,
    delta,
    finished,
    first_token,
    prompt_logprobs,
    reply,
    script,
)
from tests.interface.conftest import SETTINGS


class Falling(inference_pb2_grpc.InferenceServicer):
    """A gateway that sends what it is given and is gone: its end names no error."""

    def __init__(
        self, *events: pb.GenerateResponse, code: grpc.StatusCode | None = grpc.StatusCode.UNAVAILABLE
    ) -> None:
        self.events, self.code = events, code
        self.requests: list[pb.GenerateRequest] = []

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        for event in self.events:
            yield event
        if self.code is not None:
            await context.abort(self.code, "Socket closed")


@contextlib.asynccontextmanager
async def two(falling: Falling, backend: FakeBackend) -> AsyncIterator[str]:
    """A gateway that falls and one that stands; yields both addresses."""
    first = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(falling, first)
    first_port = first.add_insecure_port("127.0.0.1:0")
    await first.start()
    second, second_port = await serve_grpc(backend, SETTINGS)
    try:
        yield f"127.0.0.1:{first_port},127.0.0.1:{second_port}"
    finally:
        await first.stop(0)
        await second.stop(0)


ADMITTED = pb.GenerateResponse(admitted=pb.Admitted(request_id="r", prompt_fingerprint=77))


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, None])
async def test_the_stream_goes_on_with_no_event_twice(code: grpc.StatusCode | None) -> None:
    falling = Falling(ADMITTED, first_token(), delta("Hel", ids=(5, 6)), code=code)
    backend = FakeBackend(script(admitted(), first_token(), delta("lo", ids=(7,), finish="STOP"), finished()))
    async with two(falling, backend) as address, AsyncClient(address) as client:
        events = [event async for event in client.generate(prompt="Hi", temperature=0.0)]
    assert [type(event).__name__ for event in events] == ["Admitted", "FirstToken", "Delta", "Delta", "Finished"]
    assert "".join(event.text for event in events if isinstance(event, pb.Delta)) == "Hello"
    (again,) = backend.requests
    assert list(again.resume.token_ids) == [5, 6]
    assert again.resume.prompt_fingerprint == 77
    assert (again.prompt, again.sampling.HasField("temperature")) == ("Hi", True)


async def test_before_the_first_token_the_request_is_sent_anew() -> None:
    backend = FakeBackend(reply())
    async with two(Falling(ADMITTED), backend) as address, AsyncClient(address) as client:
        assert (await client.complete(prompt="Hi", n=2)).text == "Hello"
    assert not backend.requests[0].HasField("resume")


async def test_the_end_is_reported_if_only_the_summary_is_missing() -> None:
    falling = Falling(ADMITTED, delta("Hello", ids=(5,), finish="STOP", stop_matched="END"))
    backend = FakeBackend(script(finished()))
    async with two(falling, backend) as address, AsyncClient(address) as client:
        done = await client.complete(prompt="Hi")
    assert done.text == "Hello"
    assert backend.requests[0].resume.finish_reason == pb.FINISH_REASON_STOP
    assert backend.requests[0].resume.stop_matched == "END"


async def test_several_choices_are_not_mixed_up() -> None:
    falling = Falling(ADMITTED, delta("Hel", ids=(5,)))
    async with two(falling, FakeBackend()) as address, AsyncClient(address) as client:
        with pytest.raises(NoReadyWorker, match="Socket closed"):
            await client.complete(prompt="Hi", n=2)


async def test_an_error_that_the_gateway_names_is_no_loss() -> None:
    backend = FakeBackend(script(admitted(), WorkerDied("all of them")))
    server, port = await serve_grpc(backend, SETTINGS)
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(WorkerDied):
            await client.complete(prompt="Hi")
    assert len(backend.requests) == 1
    await server.stop(0)


async def test_a_refusal_to_resume_reaches_the_caller() -> None:
    backend = FakeBackend(script(InvalidRequest("resume: seed counts over the output", field="resume")))
    async with two(Falling(ADMITTED, delta("a", ids=(5,))), backend) as address, AsyncClient(address) as client:
        with pytest.raises(InvalidRequest, match="seed"):
            await client.complete(prompt="Hi", seed=3)


async def test_one_gateway_that_comes_back_is_enough_and_patience_ends() -> None:
    falling = Falling(ADMITTED, code=grpc.StatusCode.UNAVAILABLE)
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(falling, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(ServingError, match="Socket closed"):
            await client.complete(prompt="Hi")
        falls = len(falling.requests)
        assert 2 <= falls <= 10_000
        falling.events, falling.code = (ADMITTED, delta("Hi", ids=(5,), finish="STOP"), finished()), None
        assert (await client.complete(prompt="Hi")).text == "Hi"
    await server.stop(0)


async def test_short_calls_find_the_gateway_that_stands() -> None:
    backend = FakeBackend()
    server, port = await serve_grpc(backend, SETTINGS)
    async with AsyncClient(["127.0.0.1:1", f"127.0.0.1:{port}"]) as client:
        assert await client.list_models() == backend.models()
        assert await client.get_status() == backend.status()
    await server.stop(0)


def test_no_address_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match="address"):
        AsyncClient(" , ")


def test_what_counts_as_a_loss() -> None:
    assert is_lost(grpc.StatusCode.UNAVAILABLE, None)
    assert not is_lost(grpc.StatusCode.UNAVAILABLE, [("baton-error-kind", "NoReadyWorker")])
    assert not is_lost(grpc.StatusCode.DEADLINE_EXCEEDED, None)
    assert not is_lost(grpc.StatusCode.UNAUTHENTICATED, None)


def test_the_request_itself_is_left_alone() -> None:
    request = pb.GenerateRequest(prompt="Hi")
    state = Resumption(request)
    state.take(delta("a", ids=(5,)))
    assert state.request().HasField("resume")
    assert not request.HasField("resume")


async def test_pieces_of_a_scored_prompt_come_once() -> None:
    pieces = prompt_logprobs([1, 2, 3, 4], 1)
    assert len(pieces) == 2
    falling = Falling(ADMITTED, pieces[0])
    backend = FakeBackend(script(admitted(), *pieces, delta("", ids=(), finish="LENGTH"), finished(answer=0)))
    async with two(falling, backend) as address, AsyncClient(address) as client:
        done = await client.complete(prompt="Hi", max_tokens=0, prompt_logprobs=1)
    assert [row.chosen.token_id for row in done.prompt_logprobs] == [1, 2, 3, 4]
