"""The verdicts of the fault harness: what counts as wrong, lost, proper and late. A blind harness finds nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.v1 import inference_pb2 as pb
from benchmarks.fault_load import (
    VOCABULARY,
    Answers,
    Question,
    Tally,
    Trace,
    count,
    draw_questions,
    follow,
    open_load,
    run_load,
)
from cluster.errors import NoReadyWorker, RequestError, ServingError, WorkerDied
from interface.client.client import AsyncClient

RIGHT = [3, 1, 4, 1, 5, 9]
QUESTION = Question((7, 8), 6)


def trace(ids: Sequence[int], error: Exception | None = None, *, max_tokens: int = 6, **summary: int) -> Trace:
    ended = None if error is not None else pb.ChoiceSummary(**summary)
    return Trace(Question((7, 8), max_tokens), list(ids), [0.1 * i for i in range(len(ids))], ended, error)


def judged(*traces: Trace) -> Tally:
    tally = Tally()
    for each in traces:
        count(tally, each, RIGHT)
    return tally


# --- what is wrong --------------------------------------------------------------------------------------------------


@given(st.integers(1, 6))
def test_the_undisturbed_answer_up_to_the_tokens_asked_for_is_right(asked: int) -> None:
    tally = judged(trace(RIGHT[:asked], max_tokens=asked))
    assert (tally.completed, tally.wrong, tally.tokens) == (1, 0, asked)


@given(st.sampled_from(["drop", "repeat", "swap", "more"]), st.integers(0, 5))
def test_one_token_lost_repeated_changed_or_too_many_is_wrong(change: str, at: int) -> None:
    ids = list(RIGHT)
    match change:
        case "drop":
            del ids[at]
        case "repeat":
            ids.insert(at, ids[at])
        case "swap":
            ids[at] += 1
        case "more":
            ids.append(0)
    assert judged(trace(ids)).wrong == 1


@given(st.integers(0, 6), st.integers(0, 5))
def test_a_stream_that_failed_is_wrong_only_in_what_it_said(said: int, at: int) -> None:
    ids = RIGHT[:said]
    assert judged(trace(ids, WorkerDied("gone"))).wrong == 0
    if at < said:
        ids = [*ids[:at], ids[at] + 1, *ids[at + 1 :]]
        assert judged(trace(ids, WorkerDied("gone"))).wrong == 1


@pytest.mark.parametrize(
    ("error", "proper"),
    [
        (WorkerDied("decode-0 is gone"), True),
        (NoReadyWorker("none"), True),
        (WorkerDied(""), False),  # a caller learns nothing from it
        (ServingError("internal error"), False),
        (RequestError("odd"), False),
        (ConnectionResetError("reset"), False),
        (KeyError("bug"), False),
    ],
)
def test_only_an_error_that_a_caller_can_act_on_is_proper(error: Exception, proper: bool) -> None:
    tally = judged(trace([], error))
    name = type(error).__name__
    assert dict(tally.proper) == ({name: 1} if proper else {})
    assert dict(tally.improper) == ({} if proper else {name: 1})
    assert tally.completed == 0


def test_a_stream_that_just_ends_is_improper() -> None:
    ended = Trace(QUESTION, list(RIGHT))
    assert dict(judged(ended).improper) == {"NoneType": 1}


def test_retries_and_moves_are_summed_over_what_completed() -> None:
    tally = judged(
        trace(RIGHT, retries=2, moves=1, moved_recomputed_tokens=5), trace(RIGHT, retries=1), trace([], WorkerDied("x"))
    )
    assert (tally.retries, tally.moves, tally.recomputed_tokens) == (3, 1, 5)
    assert tally.row()["requests"] == 3
    assert tally.row()["failed_properly"] == {"WorkerDied": 1}


# --- pauses ---------------------------------------------------------------------------------------------------------


def test_the_longest_gap_is_of_the_span_that_is_asked_about() -> None:
    spaced = Trace(QUESTION, times_s=[0.0, 1.0, 5.0, 5.5, 8.0])
    assert spaced.longest_gap_s() == 4.0
    assert spaced.longest_gap_s(since_s=5.2) == 2.5
    assert spaced.longest_gap_s(until_s=0.5) == 1.0
    assert spaced.longest_gap_s(since_s=2.0, until_s=3.0) == 4.0  # it goes on through the whole span
    assert Trace(QUESTION, times_s=[1.0]).longest_gap_s() == 0.0


# --- questions ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.integers(1, 20), st.integers(20, 900))
def test_questions_follow_from_the_seed_within_their_lengths(seed: int, low: int, high: int) -> None:
    first, again = (draw_questions(random.Random(seed), 12, isl=(low, high), osl=(low, high)) for _ in range(2))
    assert first == again
    for question in first:
        assert low <= len(question.prompt_ids) <= high
        assert low <= question.max_tokens <= high
        assert all(VOCABULARY[0] <= token < VOCABULARY[1] for token in question.prompt_ids)


# --- loads ----------------------------------------------------------------------------------------------------------


class Client:
    """Answers with ``RIGHT`` as far as it is asked, or as ``disturb`` says; counts what runs."""

    def __init__(self, disturb: Callable[[int], Exception | None] = lambda number: None, stall: bool = False) -> None:
        self.disturb, self.stall = disturb, stall
        self.asked = self.running = self.most = 0
        self.three = asyncio.Event()

    async def generate(self, *, max_tokens: int, **options: Any) -> AsyncIterator[Any]:
        assert options["temperature"] == 0.0
        assert options["ignore_eos"]
        self.asked += 1
        error = self.disturb(self.asked)
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == 3:
            self.three.set()
        try:
            for token in RIGHT[:max_tokens]:
                await asyncio.sleep(0)
                yield pb.Delta(token_ids=[token])
            if self.stall:
                await asyncio.Event().wait()
            if error is not None:
                raise error
            yield pb.Finished(choices=[pb.ChoiceSummary(retries=1)])
        finally:
            self.running -= 1


def client_of(client: Client) -> AsyncClient:
    return cast(AsyncClient, client)


async def learned(client: Client) -> Answers:
    answers = Answers()
    await answers.learn(client_of(client), [QUESTION])
    return answers


async def test_a_closed_loop_asks_so_many_and_judges_each() -> None:
    client = Client(lambda number: WorkerDied("gone") if number % 4 == 0 else None)
    answers = await learned(client)
    assert answers.of(QUESTION) == RIGHT
    tally = await run_load(lambda: client_of(client), [QUESTION], answers, requests=20, clients=3, rng=random.Random(0))
    assert tally.requests == 20
    assert (tally.completed, tally.proper["WorkerDied"], tally.wrong) == (15, 5, 0)
    assert tally.retries == 15
    assert client.most <= 3


async def test_a_loop_ends_when_it_is_over() -> None:
    client, over = Client(), asyncio.Event()
    answers = await learned(client)
    over.set()
    tally = await run_load(
        lambda: client_of(client), [QUESTION], answers, requests=None, clients=2, rng=random.Random(0), over=over
    )
    assert tally.requests == 0


async def test_an_undisturbed_run_that_fails_is_no_reference() -> None:
    with pytest.raises(BaseExceptionGroup) as failed:
        await learned(Client(lambda number: WorkerDied("gone")))
    assert "the undisturbed run failed" in str(failed.value.exceptions[0])


async def test_an_open_load_holds_arrivals_back_above_its_most() -> None:
    client, over, tally = Client(stall=True), asyncio.Event(), Tally()
    answers = Answers()
    answers._known[QUESTION.prompt_ids] = RIGHT
    load = asyncio.create_task(
        open_load(
            lambda: client_of(client), [QUESTION], answers, rate_per_s=1e5, over=over, rng=random.Random(0),
            most_in_flight=3, tally=tally,
        )
    )  # fmt: skip
    await asyncio.wait_for(client.three.wait(), 20)
    for _ in range(200):
        await asyncio.sleep(0)
    assert client.most == 3
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    assert client.running == 0


async def test_what_a_cancelled_stream_had_said_is_judged_too() -> None:
    found = await follow(client_of(Client(lambda number: KeyError("bug"))), QUESTION)
    assert found.ids == RIGHT
    assert isinstance(found.error, KeyError)
    assert len(found.times_s) == len(RIGHT)
