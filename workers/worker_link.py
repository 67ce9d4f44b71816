"""The gateway's connection to one worker: legs out, outputs and load in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

import cluster.errors
from baton.internal.v1 import worker_pb2, worker_pb2_grpc
from cluster.errors import EngineFailed, ServingError, WorkerDied
from cluster.internal_rpc import InternalRpc
from kv_transfer.ticket import HandoffTicket
from workers.messages import CHANNEL_OPTIONS

log = logging.getLogger("baton.gateway")

OutputHandler = Callable[[worker_pb2.LegOutput], None]
TokenHandler = Callable[[int], None]
LostHandler = Callable[[str], None]
LoadHandler = Callable[[worker_pb2.WorkerLoad], None]


def ticket_message(ticket: HandoffTicket, now_s: float) -> worker_pb2.Ticket:
    """The ticket for the wire; its deadline becomes seconds left."""
    return worker_pb2.Ticket(
        ticket_id=ticket.ticket_id,
        source_id=ticket.source_id,
        incarnation=ticket.incarnation,
        num_tokens=ticket.num_tokens,
        expires_in_s=ticket.deadline_s - now_s,
        params_json=ticket.params_json,
    )


def leg_error(output: worker_pb2.LegOutput, worker_id: str) -> ServingError:
    """The error a leg ended with."""
    kind = getattr(cluster.errors, output.error_kind, EngineFailed)
    known = isinstance(kind, type) and issubclass(kind, ServingError)
    try:
        return (kind if known else EngineFailed)(output.error, worker_id=worker_id)
    except TypeError:
        return EngineFailed(output.error, worker_id=worker_id)


class WorkerLink:
    """One stream to one worker incarnation. Owns the connection and the handlers of its legs.

    Args:
        worker_id: Name of the worker.
        address: ``host:port`` of its service.
        on_lost: Called once when the stream ends though it should not.
        on_load: Called with every load report.
        rpc: How the cluster's processes call each other.
    """

    def __init__(
        self,
        worker_id: str,
        address: str,
        *,
        on_lost: LostHandler,
        on_load: LoadHandler,
        rpc: InternalRpc | None = None,
    ) -> None:
        self.worker_id = worker_id
        self._handlers: dict[str, OutputHandler] = {}
        self._token_handlers: dict[int, TokenHandler] = {}
        self._numbers: dict[str, int] = {}
        self._last_number = 0
        self._commands: asyncio.Queue[worker_pb2.WorkerCommand | None] = asyncio.Queue()
        self._on_lost = on_lost
        self._on_load = on_load
        self._rpc = rpc or InternalRpc()
        self._channel = self._rpc.channel(
            address,
            options=[
                *CHANNEL_OPTIONS,
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._task = asyncio.create_task(self._run())
        self.last_event_s = time.monotonic()

    def submit(
        self, message: worker_pb2.SubmitLeg, handler: OutputHandler, on_token: TokenHandler | None = None
    ) -> None:
        """Start a leg; ``handler`` gets each output, the last one with a finish reason.

        With ``on_token``, a single token of which there is nothing else to be said comes there.
        """
        self._handlers[message.leg_id] = handler
        if on_token is not None:
            self._last_number += 1
            message.leg_number = self._numbers[message.leg_id] = self._last_number
            self._token_handlers[message.leg_number] = on_token
        self._commands.put_nowait(worker_pb2.WorkerCommand(submit=message))

    def abort(self, leg_id: str) -> None:
        """Stop a leg. Its handler stays until the worker has ended it, to catch a late ticket."""
        self._commands.put_nowait(worker_pb2.WorkerCommand(abort=worker_pb2.AbortLeg(leg_id=leg_id)))

    def release(self, ticket: HandoffTicket, now_s: float) -> None:
        """Have the ticket's blocks freed at its source."""
        message = worker_pb2.ReleaseTicket(ticket=ticket_message(ticket, now_s))
        self._commands.put_nowait(worker_pb2.WorkerCommand(release=message))

    def silence(self) -> None:
        """Report the stream's end no more; at once, since a successor of the same name may be there."""
        self._on_lost = lambda _: None

    async def close(self) -> None:
        """End the stream; legs on it are aborted by the worker."""
        self.silence()
        self._commands.put_nowait(None)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._channel.close()

    async def _outgoing(self) -> AsyncIterator[worker_pb2.WorkerCommand]:
        while (command := await self._commands.get()) is not None:
            yield command

    async def _run(self) -> None:
        stub = worker_pb2_grpc.WorkerStub(self._channel)
        reason = "the stream ended"
        try:
            call: Any = stub.Connect(self._outgoing(), wait_for_ready=True, metadata=self._rpc.metadata)
            async for events in call:
                self.last_event_s = time.monotonic()
                self._take(events)
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        log.warning("lost worker %s: %s", self.worker_id, reason)
        lost = WorkerDied(reason, worker_id=self.worker_id)
        handlers, self._handlers = self._handlers, {}
        self._token_handlers.clear()
        for leg_id, handler in handlers.items():
            failed = worker_pb2.LegOutput(
                leg_id=leg_id, finish_reason="error", error=lost.message, error_kind=type(lost).__name__
            )
            self._deliver(handler, failed)
        self._on_lost(self.worker_id)

    def _take(self, events: worker_pb2.WorkerEvents) -> None:
        if events.HasField("step"):
            step, handlers = events.step, self._token_handlers
            for number, token_id in zip(step.leg_numbers[:], step.token_ids[:], strict=True):
                on_token = handlers.get(number)
                if on_token is not None:
                    try:
                        on_token(token_id)
                    except Exception:  # one request's fault must not end the stream of all
                        log.exception("a token of leg number %d was lost", number)
        for output in events.outputs:
            handler = self._handlers.get(output.leg_id)
            if handler is not None:
                if output.finish_reason:
                    del self._handlers[output.leg_id]
                    self._token_handlers.pop(self._numbers.pop(output.leg_id, 0), None)
                self._deliver(handler, output)
        if events.HasField("load"):
            self._on_load(events.load)

    def _deliver(self, handler: OutputHandler, output: worker_pb2.LegOutput) -> None:
        try:
            handler(output)
        except Exception:  # one request's fault must not end the stream of all
            log.exception("output of leg %s was lost", output.leg_id)
