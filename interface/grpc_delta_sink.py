"""Deltas straight to a gRPC call: `orchestrator.gateway.delta_sink` for a stream of `GenerateResponse`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from baton.v1 import inference_pb2
from interface.slow_reader import not_read, reading_within
from orchestrator.policy.phases import Phase

MAX_PENDING_TOKENS = 256
"""Taken while a message is on its way; more wait in the run, as they do for any slow reader."""

_PHASES = {True: inference_pb2.PHASE_REASONING, False: inference_pb2.PHASE_ANSWER}


class CallSink:
    """Writes a call's deltas one message at a time, as gRPC wants it; what comes meanwhile goes into the next one.

    Use it as a context within the call's handler, which a reader that takes nothing for ``slow_reader_timeout_s`` ends
    with `RequestAborted`.
    """

    def __init__(self, context: Any, slow_reader_timeout_s: float) -> None:
        self._context = context
        self._timeout_s = slow_reader_timeout_s
        self._loop = asyncio.get_running_loop()
        self._handler = asyncio.current_task()
        self._response = inference_pb2.GenerateResponse()
        self._pending: list[tuple[int, bool, list[str], list[int]]] = []
        self._pending_tokens = 0
        self._writing: asyncio.Task[None] | None = None
        self._written_s = 0.0
        """When the message on its way was given to gRPC."""
        self._timer: asyncio.TimerHandle | None = None
        self._late = False

    async def __aenter__(self) -> CallSink:
        self._timer = self._loop.call_later(self._timeout_s, self._watch)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            self._writing.cancel()
        if self._late and kind is asyncio.CancelledError and self._handler is not None:
            self._handler.uncancel()
            raise not_read(self._timeout_s) from error

    @property
    def ready(self) -> bool:
        """Whether the reader keeps up."""
        return self._pending_tokens < MAX_PENDING_TOKENS

    def take(self, choice: int, phase: Phase, text: str, token_ids: Sequence[int]) -> None:
        """Write a delta, or put it to those that wait for the message on its way."""
        thinks = phase is Phase.REASONING
        pending = self._pending
        if pending and pending[-1][0] == choice and pending[-1][1] is thinks:
            pending[-1][2].append(text)
            pending[-1][3].extend(token_ids)
        else:
            pending.append((choice, thinks, [text], list(token_ids)))
        self._pending_tokens += len(token_ids)
        if self._writing is None:
            self._writing = self._loop.create_task(self._write())

    async def write(self, event: inference_pb2.GenerateResponse) -> None:
        """Write an event behind all that was taken.

        Raises:
            RequestAborted: the reader takes nothing.
        """
        async with reading_within(self._timeout_s):
            if self._writing is not None:
                await self._writing
            await self._context.write(event)

    async def _write(self) -> None:
        try:
            while self._pending:
                pending, self._pending, self._pending_tokens = self._pending, [], 0
                for choice, thinks, texts, token_ids in pending:
                    delta = self._response.delta
                    delta.choice, delta.phase, delta.text = choice, _PHASES[thinks], "".join(texts)
                    delta.token_ids[:] = token_ids
                    self._written_s = self._loop.time()
                    await self._context.write(self._response)
        except Exception:  # the caller disconnected, and gRPC cancels the handler
            self._pending_tokens = MAX_PENDING_TOKENS
        finally:
            self._writing = None

    def _watch(self) -> None:
        """End the handler if the message on its way has been there for too long."""
        waited_s = self._loop.time() - self._written_s if self._writing is not None else 0.0
        if waited_s >= self._timeout_s and self._handler is not None:
            self._late = True
            self._handler.cancel()
        else:
            self._timer = self._loop.call_later(self._timeout_s - waited_s, self._watch)
