"""The gRPC service through which gateways reach a worker.

Commands come and outputs go on one stream per gateway; one message carries the tokens that all requests of an engine
step made.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from baton.internal.v1 import worker_pb2, worker_pb2_grpc
from cluster.engine.protocol import Engine, EngineInfo
from cluster.errors import EngineFailed, InvalidRequest, ServingError, WorkerDraining
from workers.connection import Connection
from workers.engine_health import EngineHealth
from workers.leg_run import LegKind, LegRun
from workers.messages import error_message, events_message, load_message

log = logging.getLogger("baton.worker")

LOAD_INTERVAL_S = 0.5
IDLE_LOAD_INTERVAL_S = 1.0
DRAIN_GRACE_S = 1.0
"""Work that gateways sent before they learned of the drain is still taken; refused, it would be prefilled again."""


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """`baton.internal.v1.Worker` over one engine. Owns the gateways' connections, and whether the worker drains.

    Args:
        worker_id: Name in the cluster.
        engine: Started.
        info: What it said at its start.
        kinds: What the worker can do; the first one that takes a leg runs it.
        stall_timeout_s: As in the spec's ``health``.
    """

    def __init__(
        self,
        worker_id: str,
        engine: Engine,
        info: EngineInfo,
        kinds: Sequence[LegKind],
        *,
        stall_timeout_s: float = 30.0,
    ) -> None:
        self.worker_id = worker_id
        self.draining = False
        self._engine = engine
        self._info = info
        self._kinds = kinds
        self._refuses_from_s = math.inf
        self._connections: set[Connection] = set()
        self.health = EngineHealth(stall_timeout_s)
        self._tasks: set[asyncio.Task[None]] = set()

    def drain(self, grace_s: float = DRAIN_GRACE_S) -> None:
        """Have the gateways move what they have here; after ``grace_s`` refuse new work."""
        if not self.draining:
            self.draining = True
            self._refuses_from_s = time.monotonic() + grace_s
            for connection in self._connections:
                connection.report()

    @property
    def hung(self) -> bool:
        """Whether the engine has work and makes no step, or is gone though this process lives."""
        return self.health.hung(self._engine.load().steps, time.monotonic())

    @property
    def legs(self) -> int:
        """Legs that run here, of all gateways."""
        return sum(len(connection.legs) for connection in self._connections)

    def load(self) -> worker_pb2.WorkerLoad:
        """The worker's load as a message."""
        return load_message(self.worker_id, self._info, self._engine.load(), draining=self.draining, hung=self.hung)

    async def Connect(  # noqa: N802, D102
        self, request_iterator: AsyncIterator[worker_pb2.WorkerCommand], context: Any
    ) -> AsyncIterator[worker_pb2.WorkerEvents]:
        connection = Connection()
        self._connections.add(connection)
        reader = asyncio.create_task(self._read(connection, request_iterator))
        loaded_s = time.monotonic()
        try:
            # At once: a gateway sends nothing before the worker has reported.
            yield worker_pb2.WorkerEvents(load=self.load())
            while not reader.done() or connection.legs:
                outputs = await connection.take(LOAD_INTERVAL_S if connection.legs else IDLE_LOAD_INTERVAL_S)
                events = events_message(outputs, connection.numbers)
                now = time.monotonic()
                if now - loaded_s >= LOAD_INTERVAL_S or not outputs or connection.report_load:
                    connection.report_load = False
                    events.load.CopyFrom(self.load())
                    loaded_s = now
                yield events
        finally:
            self._connections.discard(connection)
            reader.cancel()
            legs = list(connection.legs.values())
            for leg in legs:
                leg.aborted = True  # all of them, before the first abort is awaited
            for leg in legs:
                await leg.abort()

    async def _read(self, connection: Connection, commands: AsyncIterator[worker_pb2.WorkerCommand]) -> None:
        async for command in commands:
            match command.WhichOneof("command"):
                case "submit":
                    self._submit(connection, command.submit)
                case "abort":
                    if (leg := connection.legs.get(command.abort.leg_id)) is not None:
                        await leg.abort()
                case "release":
                    await self._release(command.release.ticket)

    def _submit(self, connection: Connection, submit: worker_pb2.SubmitLeg) -> None:
        leg = LegRun(submit, self._engine, self.health, put=connection.put, admit=self._admit)
        connection.legs[submit.leg_id] = leg
        connection.numbers[submit.leg_id] = submit.leg_number
        task = asyncio.create_task(self._run(connection, leg))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if connection.legs.get(submit.leg_id) is leg:
                del connection.legs[submit.leg_id], connection.numbers[submit.leg_id]

        task.add_done_callback(ended)

    def _admit(self) -> None:
        if time.monotonic() >= self._refuses_from_s:
            raise WorkerDraining("the worker takes no new work", worker_id=self.worker_id)

    async def _run(self, connection: Connection, leg: LegRun) -> None:
        leg_id = leg.submit.leg_id
        try:
            kind = next((kind for kind in self._kinds if kind.takes(leg.submit)), None)
            if kind is None:
                raise InvalidRequest("the worker runs no leg of this kind", worker_id=self.worker_id)
            await kind.run(leg)
        except ServingError as error:
            self.health.leg_failed(error)
            connection.put(error_message(leg_id, error))
            if self.health.died:
                connection.report()
        except Exception as error:
            log.exception("leg %s failed", leg_id)
            connection.put(error_message(leg_id, EngineFailed(f"{type(error).__name__}: {error}")))
        finally:
            self.health.leg_ended(leg_id)

    async def _release(self, ticket: worker_pb2.Ticket) -> None:
        try:
            for kind in self._kinds:
                await kind.release(ticket)
        except ServingError as error:
            log.info("ticket not released: %s", error)
        except Exception:  # one bad ticket must not end the gateway's stream
            log.exception("ticket %s not released", ticket.ticket_id)
