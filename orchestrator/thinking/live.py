"""Runs a strategy on live branches: does what `orchestrator.policy.thinking.run` answers, and reports what happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

from baton.v1 import inference_pb2 as pb
from cluster.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NoReadyWorker,
    RequestAborted,
    RequestError,
    ServingError,
)
from orchestrator.policy.thinking.budget import TICK_S
from orchestrator.policy.thinking.run import Answer, Cancel, Close, CutOff, Start, ThinkingRun
from orchestrator.policy.thinking.state import End, Trace
from orchestrator.thinking.ask import ThinkingAsk
from orchestrator.thinking.branches import Branch, Branches
from orchestrator.thinking.record import TraceRecord
from orchestrator.thinking.report import progress

QUEUED_EVENTS = 64
"""Events held before the branches wait."""

_Item = tuple[int, pb.GenerateResponse | Exception | None]


class LiveThinking:
    """Owns the branches of one request while they run. Iterate over `stream`; closing that cancels them all.

    Args:
        ask: What was asked for.
        run: Decides.
        branches: Makes branches.
        keeps_logprobs: Whether the caller gets the log-probabilities.
    """

    def __init__(self, ask: ThinkingAsk, run: ThinkingRun, branches: Branches, *, keeps_logprobs: bool = False) -> None:
        self.run = run
        self.records: dict[int, TraceRecord] = {}
        self._ask = ask
        self._makes = branches
        self._keeps_logprobs = keeps_logprobs
        self._branches: dict[int, Branch] = {}
        self._made: list[int] = []
        """Branches that are yet to be started."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """Of branches that run."""
        self._queue: asyncio.Queue[_Item] = asyncio.Queue(QUEUED_EVENTS)
        self._live = run.strategy.cap == 1
        """There is one branch, so its tokens go out as they come."""
        self._admitted = False
        self._error: ServingError | None = None

    async def stream(self) -> AsyncGenerator[pb.GenerateResponse]:
        """Yield what the caller gets, until an answer is given and every branch has ended.

        Raises:
            ServingError: the deadline passed, or no branch made an answer.
        """
        tick_s = time.monotonic() + TICK_S
        try:
            self._launch()
            while not self.run.over:
                item = await self._next(tick_s)
                if item is None:
                    tick_s = time.monotonic() + TICK_S
                    messages = await self._advance([])
                    if self._ask.progress:
                        messages.insert(0, self._progress())
                else:
                    messages = await self._take(*item)
                for message in messages:
                    yield message
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            for number in self._tasks:
                self._branches[number].over()

    def begin(self) -> None:
        """Make the branches of the first wave; `stream` starts them."""
        for action in self.run.advance(self._makes.meters()):
            if isinstance(action, Start):
                self._start(action)
            else:
                raise RequestAborted("no branch may start within the budget")

    # --- what happens ---------------------------------------------------------------------------------------

    async def _next(self, tick_s: float) -> _Item | None:
        """The next event; None when a tick is due."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, tick_s - time.monotonic())):
                return await self._queue.get()
        return None

    async def _take(self, number: int, event: pb.GenerateResponse | Exception | None) -> list[pb.GenerateResponse]:
        if number not in self._tasks:
            return []  # it was cancelled, with this on the way
        if isinstance(event, pb.GenerateResponse):
            return self._message(number, event)
        if event is not None and not isinstance(event, ServingError):
            raise event
        if event is not None and self._is_of_all(event):
            raise event
        del self._tasks[number]
        self._branches[number].over()
        record = self.records[number]
        if event is not None:
            self._error = event
        end = End.FAILED if event is not None else record.end()
        messages = await self._advance([record.trace(self._branches[number].tokens, end)])
        return [self._progress(), *messages] if self._ask.progress else messages

    def _is_of_all(self, error: ServingError) -> bool:
        """Whether an error is the request's, not one branch's: another branch would meet it, too, or jump the queue."""
        if isinstance(error, DeadlineExceeded | InvalidRequest):
            return True
        return not self._admitted and isinstance(error, RequestError | NoReadyWorker)

    def _message(self, number: int, event: pb.GenerateResponse) -> list[pb.GenerateResponse]:
        if event.HasField("admitted"):
            if self._admitted:
                return []
            self._admitted, event.admitted.choice = True, 0
            return [event]
        sent = event
        if self._live:
            sent = pb.GenerateResponse()
            sent.CopyFrom(event)  # the record merges what it keeps
        self.records[number].take(event)
        return [sent] if self._live else []

    # --- what is done ---------------------------------------------------------------------------------------

    async def _advance(self, ended: list[Trace]) -> list[pb.GenerateResponse]:
        """Have the run decide, until it has nothing more to do; returns what the caller gets."""
        messages: list[pb.GenerateResponse] = []
        while True:
            running = [self.records[number].trace(self._branches[number].tokens) for number in self._tasks]
            actions = self.run.advance(self._makes.meters(), ended=ended, running=running)
            ended = []
            for action in actions:
                match action:
                    case Start():
                        ended += self._start(action)
                    case Cancel():
                        ended += await self._cancel(action.branch)
                    case Close():
                        self._branches[action.branch].close()
                    case CutOff():
                        self._branches[action.branch].cut_off()
                    case Answer():
                        messages += self._answer(action)
            self._launch()
            if not ended:
                return messages

    def _start(self, action: Start) -> list[Trace]:
        """Make a branch; its trace, if it failed at once."""
        number = action.branch
        try:
            if action.of is None:
                branch = self._makes.start(number, action.limit_tokens)
            else:
                answer = self.records[action.of].answer_text
                branch = self._makes.fork(number, action.limit_tokens, action.of, answer, action.text)
        except ServingError as error:
            self._error = error
            return [Trace(number, 0, End.FAILED)]
        self._branches[number] = branch
        self._made.append(number)
        extract = self._ask.extract if self.run.strategy.extracts else None
        self.records[number] = TraceRecord(number, extract, keeps_logprobs=self._keeps_logprobs)
        return []

    def _launch(self) -> None:
        """Let branches run that were made."""
        for number in self._made:
            self._tasks[number] = asyncio.create_task(self._pump(number, self._branches[number]))
        self._made.clear()

    async def _pump(self, number: int, branch: Branch) -> None:
        try:
            async with contextlib.aclosing(branch.run()) as stream:
                async for message in stream:
                    await self._queue.put((number, message))
        except Exception as error:  # of any kind, or the reader would wait for ever
            await self._queue.put((number, error))
        else:
            await self._queue.put((number, None))

    async def _cancel(self, number: int) -> list[Trace]:
        """Stop a branch; its trace, unless it had ended."""
        task = self._tasks.pop(number, None)
        if task is None:
            return []
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        branch = self._branches[number]
        branch.over()
        return [self.records[number].trace(branch.tokens, End.CANCELLED)]

    def _answer(self, action: Answer) -> list[pb.GenerateResponse]:
        """The winner's messages, as those of the request's one choice."""
        if action.choice is None:
            raise self._error or RequestAborted("no branch made an answer within the budget")
        if self._live:
            return []
        messages = self.records[action.choice.branch].messages
        for message in messages:
            if message.HasField("delta"):
                message.delta.choice = 0
            elif message.HasField("first_token"):
                message.first_token.choice = 0
        return messages

    def _progress(self) -> pb.GenerateResponse:
        tokens = {number: branch.tokens for number, branch in self._branches.items()}
        return pb.GenerateResponse(progress=progress(self.run, tokens, self._makes.meters()))
