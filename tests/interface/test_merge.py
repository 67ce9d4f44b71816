"""The streams of several prompts as one: order, cancellation, failures, and a slow reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.v1 import cluster_pb2, inference_pb2
from cluster.errors import EngineFailed, RequestRejected, WorkerDied
from interface.backend import closing
from interface.merge import QUEUED_EVENTS, run_all
from tests.fakes.backend import FakeBackend, Stall, Step, admitted, delta, finished

Request = inference_pb2.GenerateRequest


def prompts(count: int) -> tuple[Request, ...]:
    return tuple(Request(prompt=str(index)) for index in range(count))


def by_prompt(*scripts: list[Step]) -> Callable[[Request], list[Step]]:
    return lambda request: scripts[int(request.prompt)]


async def texts(backend: FakeBackend, count: int) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {index: [] for index in range(count)}
    async with closing(run_all(backend, prompts(count))) as events:
        async for index, event in events:
            found[index].append(event.delta.text or event.WhichOneof("event"))
    return found


@given(st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=6), min_size=1, max_size=5))
def test_each_prompts_events_come_whole_and_in_order(answers: list[list[str]]) -> None:
    backend = FakeBackend(by_prompt(*([*map(delta, answer), finished()] for answer in answers)))
    found = asyncio.run(texts(backend, len(answers)))
    assert found == {index: [*answer, "finished"] for index, answer in enumerate(answers)}
    assert backend.running == 0
    assert not backend.cancelled.is_set()


@pytest.mark.parametrize("count", [1, 3])
async def test_a_stream_that_ends_without_a_result_is_a_failure(count: int) -> None:
    backend = FakeBackend(by_prompt(*([[admitted(), delta("a")]] + [[Stall()]] * (count - 1))))
    with pytest.raises(EngineFailed, match="ended without a result"):
        await texts(backend, count)
    assert backend.running == 0


@pytest.mark.parametrize("count", [1, 3])
async def test_a_result_that_something_follows_is_no_end(count: int) -> None:
    """What counts is that the last event is the result."""
    backend = FakeBackend(by_prompt(*([[finished(), delta("a")]] + [[Stall()]] * (count - 1))))
    with pytest.raises(EngineFailed):
        await texts(backend, count)


@pytest.mark.parametrize("error", [RequestRejected("full", retry_after_s=1), WorkerDied("gone"), ValueError("bug")])
async def test_one_failure_cancels_the_others_and_is_raised_itself(error: Exception) -> None:
    backend = FakeBackend(by_prompt([admitted(), Stall()], [admitted(), error], [Stall()]))
    with pytest.raises(type(error)) as raised:
        await texts(backend, 3)
    assert raised.value is error
    assert backend.running == 0
    assert backend.cancelled.is_set()


async def test_what_came_before_a_failure_is_delivered() -> None:
    backend = FakeBackend(by_prompt([delta("a"), delta("b"), WorkerDied("gone")], [Stall()]))
    seen = []
    with pytest.raises(WorkerDied):
        async for index, event in run_all(backend, prompts(2)):
            seen.append((index, event.delta.text))
    assert seen == [(0, "a"), (0, "b")]


async def test_closing_cancels_all() -> None:
    backend = FakeBackend(by_prompt([delta("a"), Stall()], [delta("b"), Stall()]))
    async with closing(run_all(backend, prompts(2))) as events:
        await anext(events)
        assert backend.running == 2
    assert backend.running == 0


async def test_nothing_runs_before_the_first_event_is_asked_for() -> None:
    backend = FakeBackend()
    async with closing(run_all(backend, prompts(2))):
        await asyncio.sleep(0)
    assert not backend.requests


class Endless:
    """Events as fast as they are taken; counts those that were."""

    def __init__(self) -> None:
        self.sent = 0

    async def generate(self, request: Request, sink: object = None) -> AsyncIterator[inference_pb2.GenerateResponse]:
        while True:
            self.sent += 1
            yield delta("a")

    def models(self) -> list[inference_pb2.Model]:
        return []

    def status(self) -> cluster_pb2.Status:
        return cluster_pb2.Status()


@pytest.mark.parametrize(("count", "ahead"), [(1, 1), (4, QUEUED_EVENTS + 1 + 4)])
async def test_a_slow_reader_holds_the_streams_back(count: int, ahead: int) -> None:
    """No more is kept than fits the queue, and one in the hand of each prompt."""
    backend = Endless()
    async with closing(run_all(backend, prompts(count))) as events:
        await anext(events)
        for _ in range(10 * QUEUED_EVENTS):
            await asyncio.sleep(0)
        assert backend.sent <= ahead
        before = backend.sent
        for _ in range(2 * QUEUED_EVENTS):
            await anext(events)
        assert backend.sent >= before + QUEUED_EVENTS
