"""Responses that run without their caller: polled, followed, cancelled, deleted, and ended with the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from cluster.errors import RequestRejected, WorkerDied
from interface.http.server import serve_http
from tests.fakes.backend import MODEL, FakeBackend, Stall, admitted, delta, finished, first_token, script
from tests.interface.conftest import SETTINGS, Edge

ASK: dict[str, Any] = {"model": MODEL, "input": "Hi", "background": True}


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def until(client: openai.AsyncOpenAI, response_id: str, status: str) -> Any:
    async with asyncio.timeout(10):
        while (response := await client.responses.retrieve(response_id)).status != status:
            pass
    return response


async def test_it_is_queued_then_runs_then_has_ended(edge: Edge, client: openai.AsyncOpenAI) -> None:
    admit, go_on = asyncio.Event(), asyncio.Event()
    edge.backend.script = script(
        admit, admitted(), first_token(), delta("Hel"), go_on, delta("lo", finish="STOP"), finished()
    )
    made = await client.responses.create(**ASK)
    assert (made.status, made.background, made.output) == ("queued", True, [])
    assert (await client.responses.retrieve(made.id)).status == "queued"
    admit.set()
    running = await until(client, made.id, "in_progress")
    assert [item.content[0].text for item in (await client.responses.input_items.list(made.id)).data] == ["Hi"]
    go_on.set()
    ended = await until(client, made.id, "completed")
    assert ended.output_text == "Hello"
    assert {running.created_at, ended.created_at} == {made.created_at}
    more = await client.responses.create(model=MODEL, input="On", previous_response_id=made.id)
    assert more.previous_response_id == made.id


async def test_a_response_that_runs_has_no_answer_to_go_on_from(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = script(admitted(), Stall())
    made = await client.responses.create(**ASK)
    with pytest.raises(openai.BadRequestError, match="not stored here"):
        await client.responses.create(model=MODEL, input="On", previous_response_id=made.id)
    await client.responses.cancel(made.id)
    with pytest.raises(openai.BadRequestError, match="cancelled; it has no answer"):
        await client.responses.create(model=MODEL, input="On", previous_response_id=made.id)


async def test_it_is_followed_and_a_follower_that_disconnects_ends_nothing(
    edge: Edge, client: openai.AsyncOpenAI
) -> None:
    go_on = asyncio.Event()
    edge.backend.script = script(admitted(), first_token(), delta("Hel"), go_on, delta("lo", finish="STOP"), finished())
    stream = await client.responses.create(**ASK, stream=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    assert [event.type for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    response_id = seen[0].response.id
    again = await client.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)
    go_on.set()
    rest = [event async for event in again]
    assert [event.sequence_number for event in [*seen, *rest]] == list(range(len(seen) + len(rest)))
    assert rest[-1].type == "response.completed"
    assert rest[-1].response.output_text == "Hello"
    assert not edge.backend.cancelled.is_set()
    # And once more, when it has ended.
    whole = [event async for event in await client.responses.retrieve(response_id, stream=True)]
    assert [event.type for event in whole] == [event.type for event in [*seen, *rest]]


async def test_only_what_was_created_as_a_stream_can_be_followed(edge: Edge, client: openai.AsyncOpenAI) -> None:
    plain = await client.responses.create(model=MODEL, input="Hi")
    queued = await client.responses.create(**ASK)
    for response_id in (plain.id, queued.id):
        with pytest.raises(openai.BadRequestError, match="created as a stream"):
            await client.responses.retrieve(response_id, stream=True)
    with pytest.raises(openai.BadRequestError, match="can be cancelled"):
        await client.responses.cancel(plain.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.cancel("resp_nobody")
    await until(client, queued.id, "completed")


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_ends_the_backends_stream(edge: Edge, client: openai.AsyncOpenAI, stream: bool) -> None:
    edge.backend.script = script(admitted(), first_token(), delta("Hel"), Stall())
    if stream:
        events = await client.responses.create(**ASK, stream=True)
        response_id = (await anext(aiter(events))).response.id
    else:
        response_id = (await client.responses.create(**ASK)).id
    await until(client, response_id, "in_progress")
    cancelled = await client.responses.cancel(response_id)
    assert cancelled.status == "cancelled"
    assert edge.backend.cancelled.is_set()
    assert (await client.responses.retrieve(response_id)).status == "cancelled"
    assert await client.responses.cancel(response_id) == cancelled
    if stream:
        assert [event async for event in events][-1].response.status == "cancelled"


async def test_deleting_ends_it_too(edge: Edge, client: openai.AsyncOpenAI) -> None:
    edge.backend.script = script(admitted(), Stall())
    made = await client.responses.create(**ASK)
    await edge.backend.started.wait()
    await client.responses.delete(made.id)
    assert edge.backend.cancelled.is_set()
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)


@pytest.mark.parametrize(
    ("error", "code"),
    [(RequestRejected("full", retry_after_s=1), "rate_limit_exceeded"), (WorkerDied("gone"), "server_error")],
)
async def test_an_error_is_the_responses_own(
    edge: Edge, client: openai.AsyncOpenAI, error: Exception, code: str
) -> None:
    edge.backend.script = script(error)
    made = await client.responses.create(**ASK)
    failed = await until(client, made.id, "failed")
    assert (failed.error.code, failed.error.message) == (code, str(error))


async def test_what_runs_ends_with_the_gateway() -> None:
    backend = FakeBackend(script(admitted(), Stall()))
    runner, port = await serve_http(backend, SETTINGS)
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client:
        await client.responses.create(**ASK)
        await backend.started.wait()
        # One that has not begun, too.
        await client.responses.create(**ASK)
    await asyncio.wait_for(runner.cleanup(), 10)
    assert backend.running == 0
