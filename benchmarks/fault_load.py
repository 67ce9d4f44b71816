"""The load of the fault harness: greedy requests whose every token is known beforehand."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton.v1 import inference_pb2 as pb
from cluster.errors import RequestError, ServingError
from interface.client.client import AsyncClient

VOCABULARY = (5, 60)
"""Token ids of prompts: the reasoner's digits, letters and signs."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the most tokens to ask for."""

    prompt_ids: tuple[int, ...]
    max_tokens: int


def draw_questions(rng: random.Random, count: int, *, isl: tuple[int, int], osl: tuple[int, int]) -> list[Question]:
    """Questions of mixed lengths, long ones rarer: lengths are drawn evenly on a logarithmic scale."""

    def length(low: int, high: int) -> int:
        return round(low * (high / low) ** rng.random())

    return [
        Question(tuple(rng.randrange(*VOCABULARY) for _ in range(length(*isl))), length(*osl)) for _ in range(count)
    ]


@dataclass(slots=True)
class Tally:
    """What became of the requests.

    ``wrong`` are answers that differ from the undisturbed ones in any token, missing and repeated ones included;
    ``proper`` are errors of the tree in `cluster.errors` that a caller can act on, by class; ``improper`` is all else.
    """

    requests: int = 0
    completed: int = 0
    cancelled: int = 0
    wrong: int = 0
    retries: int = 0
    moves: int = 0
    recomputed_tokens: int = 0
    proper: Counter[str] = field(default_factory=Counter)
    improper: Counter[str] = field(default_factory=Counter)
    longest_gap_s: float = 0.0
    tokens: int = 0

    def row(self) -> dict[str, object]:
        """Plain values for a table or JSON."""
        return {
            "requests": self.requests,
            "completed": self.completed,
            "cancelled": self.cancelled,
            "failed_properly": dict(self.proper),
            "failed_otherwise": dict(self.improper),
            "wrong_answers": self.wrong,
            "retries": self.retries,
            "moves": self.moves,
            "recomputed_tokens": self.recomputed_tokens,
            "longest_gap_s": round(self.longest_gap_s, 2),
            "output_tokens": self.tokens,
        }


@dataclass(slots=True)
class Trace:
    """One stream as its caller saw it. ``times_s`` has the time of each token, monotonic."""

    question: Question
    ids: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    summary: pb.ChoiceSummary | None = None
    error: Exception | None = None

    def longest_gap_s(self, since_s: float = 0.0, until_s: float = math.inf) -> float:
        """Longest pause between two tokens, of those that end after ``since_s`` and begin before ``until_s``."""
        pairs = zip(self.times_s, self.times_s[1:], strict=False)
        return max((after - before for before, after in pairs if after >= since_s and before <= until_s), default=0.0)


async def follow(
    client: AsyncClient, question: Question, *, deadline_s: float = 600.0, trace: Trace | None = None
) -> Trace:
    """Stream one question to its end, or to its error."""
    trace = trace or Trace(question)
    try:
        async for event in client.generate(
            prompt_token_ids=question.prompt_ids,
            max_tokens=question.max_tokens,
            temperature=0.0,
            ignore_eos=True,
            deadline_s=deadline_s,
        ):
            if isinstance(event, pb.Delta):
                trace.ids += event.token_ids
                trace.times_s += [time.monotonic()] * len(event.token_ids)
            elif isinstance(event, pb.Finished):
                trace.summary = event.choices[0]
    except Exception as error:
        trace.error = error
    return trace


def count(tally: Tally, trace: Trace, expected: Sequence[int]) -> None:
    """Add a stream that ended."""
    tally.requests += 1
    tally.tokens += len(trace.ids)
    tally.longest_gap_s = max(tally.longest_gap_s, trace.longest_gap_s())
    wanted = list(expected[: trace.question.max_tokens])
    if trace.error is None and trace.summary is not None:
        tally.completed += 1
        tally.wrong += trace.ids != wanted
        tally.retries += trace.summary.retries
        tally.moves += trace.summary.moves
        tally.recomputed_tokens += trace.summary.moved_recomputed_tokens
        return
    tally.wrong += trace.ids != wanted[: len(trace.ids)]
    error = trace.error
    proper = isinstance(error, ServingError) and type(error) not in (ServingError, RequestError) and error.message
    (tally.proper if proper else tally.improper)[type(error).__name__] += 1


class Answers:
    """The undisturbed answers, asked for once and kept."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], list[int]] = {}

    async def learn(self, client: AsyncClient, questions: Sequence[Question], *, clients: int = 8) -> None:
        """Ask each question while nothing is wrong.

        Raises:
            RuntimeError: one was not answered.
        """
        gate = asyncio.Semaphore(clients)

        async def one(question: Question) -> None:
            async with gate:
                trace = await follow(client, question)
            if trace.error is not None:
                raise RuntimeError(f"the undisturbed run failed: {trace.error}") from trace.error
            self._known[question.prompt_ids] = trace.ids

        async with asyncio.TaskGroup() as group:
            for question in questions:
                group.create_task(one(question))

    def of(self, question: Question) -> list[int]:
        """Tokens of the answer."""
        return self._known[question.prompt_ids]


async def run_load(
    pick_client: Callable[[], AsyncClient],
    questions: Sequence[Question],
    answers: Answers,
    *,
    requests: int | None,
    clients: int,
    rng: random.Random,
    over: asyncio.Event | None = None,
    cancel_share: float = 0.0,
    tally: Tally | None = None,
) -> Tally:
    """A closed loop over the questions until ``requests`` were sent or ``over`` is set.

    ``cancel_share`` of them are cancelled at a random moment of their life, queue and prefill included.
    """
    tally = tally if tally is not None else Tally()
    sent = 0

    async def caller() -> None:
        nonlocal sent
        while (requests is None or sent < requests) and not (over is not None and over.is_set()):
            sent += 1
            asked = rng.choice(questions)
            question = Question(asked.prompt_ids, rng.randint(1, asked.max_tokens))
            if rng.random() < cancel_share:
                await _cancelled(tally, pick_client(), asked, answers, rng)
            else:
                count(tally, await follow(pick_client(), question), answers.of(question))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(caller())
    return tally


async def open_load(
    pick_client: Callable[[], AsyncClient],
    questions: Sequence[Question],
    answers: Answers,
    *,
    rate_per_s: float,
    over: asyncio.Event,
    rng: random.Random,
    most_in_flight: int,
    tally: Tally,
) -> int:
    """Requests at random times, ``rate_per_s`` on average, until ``over`` is set; returns how many were held back.

    Arrivals are held back while ``most_in_flight`` run: on a machine that others slow down, the load would else grow.
    """
    held_back = 0
    running: set[asyncio.Task[None]] = set()

    async def one(question: Question) -> None:
        count(tally, await follow(pick_client(), question), answers.of(question))

    async with asyncio.TaskGroup() as group:
        while not over.is_set():
            await asyncio.sleep(rng.expovariate(rate_per_s))
            if len(running) >= most_in_flight:
                held_back += 1
                continue
            asked = rng.choice(questions)
            task = group.create_task(one(Question(asked.prompt_ids, rng.randint(1, asked.max_tokens))))
            running.add(task)
            task.add_done_callback(running.discard)
    return held_back


async def _cancelled(
    tally: Tally, client: AsyncClient, question: Question, answers: Answers, rng: random.Random
) -> None:
    trace = Trace(question)
    task = asyncio.create_task(follow(client, question, trace=trace))
    # From before it is queued to well into decode: most phases take milliseconds, so the times are drawn by magnitude.
    await asyncio.wait([task], timeout=10 ** rng.uniform(-3, 0.5))
    if task.done():
        count(tally, trace, answers.of(question))
        return
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    tally.requests += 1
    tally.cancelled += 1
    tally.tokens += len(trace.ids)
    tally.wrong += trace.ids != answers.of(question)[: len(trace.ids)]
