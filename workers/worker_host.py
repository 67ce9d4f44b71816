"""The body of every worker: an engine, and the gRPC service through which gateways reach it.

Commands come and outputs go on one stream per gateway; one message carries the tokens that all requests of an engine
step made. While the stream is busy, tokens of the same leg are merged into one entry, so that a slow reader costs
memory for tokens, not for messages.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import psutil
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from baton.internal.v1 import worker_pb2, worker_pb2_grpc
from baton.v1 import inference_pb2
from cluster.engine.protocol import Engine, EngineInfo, EngineLeg, EngineOutput
from cluster.errors import EngineFailed, InvalidRequest, ServingError, TicketRefused, WorkerDied, WorkerDraining
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import SecuritySettings
from kv_transfer.main_thread import run_in_main_thread
from kv_transfer.progress import ProgressWatch

log = logging.getLogger("baton.worker")

LOAD_INTERVAL_S = 0.5
IDLE_LOAD_INTERVAL_S = 1.0
DRAIN_GRACE_S = 1.0
"""Work that gateways sent before they heard of the drain is still taken; refused, it would be prefilled again."""
IMPORT_GRACE_S = 30.0
"""A leg that waits for its KV need not make the engine step; after this long it should have failed or begun."""
MAX_MESSAGE_BYTES = 64 << 20
"""Between gateway and worker. A 128k-token prompt is 512 KiB; the rest is room for batches."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a started worker tells the controller."""

    worker_id: str
    role: str
    address: str
    metrics_address: str
    pid: int
    processes: list[tuple[int, float]]
    """The worker and its children, the engine core among them, each with its start time."""
    engine: EngineInfo

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the way through Ray."""
        return asdict(self)


def free_port(host: str) -> int:
    """A TCP port that is free on ``host`` at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def reserved_port(host: str) -> socket.socket:
    """A socket that keeps a free port for whom it is told.

    It does not listen, so another process may bind the port if it sets SO_REUSEADDR, as ZeroMQ does; the kernel gives
    it to nobody else. An engine takes its port half a minute after it was chosen: others had it by then (seen).
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind((host, 0))
    return keeper


class _Connection:
    """One gateway's stream: its legs, and the outputs not yet sent."""

    def __init__(self) -> None:
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.aborted: set[str] = set()
        self.report_load = False
        self._pending: list[worker_pb2.LegOutput] = []
        self._open_entry: dict[str, worker_pb2.LegOutput] = {}
        self._wake = asyncio.Event()

    def forget(self, leg_id: str, _: asyncio.Task[None]) -> None:
        self.tasks.pop(leg_id, None)
        self.aborted.discard(leg_id)

    def put(self, output: worker_pb2.LegOutput) -> None:
        entry = self._open_entry.get(output.leg_id)
        if entry is None:
            self._pending.append(output)
            self._open_entry[output.leg_id] = output
        else:
            entry.MergeFrom(output)
        self._wake.set()

    def report(self) -> None:
        """Tell the load at once."""
        self.report_load = True
        self._wake.set()

    async def take(self, timeout_s: float) -> list[worker_pb2.LegOutput]:
        if not self._pending and not self.report_load:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return []
        outputs, self._pending = self._pending, []
        self._open_entry.clear()
        self._wake.clear()
        return outputs


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """`baton.internal.v1.Worker` over one engine."""

    def __init__(
        self, worker_id: str, engine: Engine, info: EngineInfo, *, role: str = "", stall_timeout_s: float = 30.0
    ) -> None:
        self.worker_id = worker_id
        self.role = role
        """For metrics alone: the service does what gateways ask of it."""
        self.draining = False
        self._engine = engine
        self._info = info
        self._redeemed: OrderedDict[str, None] = OrderedDict()
        self._refuses_from_s = math.inf
        self._connections: set[_Connection] = set()
        self._watch = ProgressWatch(stall_timeout_s)
        self._engine_died = False
        self._must_step_from_s: dict[str, float] = {}
        """By running leg, when it counts as work that makes the engine step."""

    def drain(self, grace_s: float = DRAIN_GRACE_S) -> None:
        """Tell the gateways to move what they have here; after ``grace_s`` refuse new work."""
        if not self.draining:
            self.draining = True
            self._refuses_from_s = time.monotonic() + grace_s
            for connection in self._connections:
                connection.report()

    @property
    def hung(self) -> bool:
        """Whether the engine has work and makes no step, or is gone though this process lives."""
        if self._engine_died:
            return True
        now = time.monotonic()
        busy = any(since_s <= now for since_s in self._must_step_from_s.values())
        return self._watch.hung(self._engine.load().steps, busy, now)

    @property
    def legs(self) -> int:
        """Legs that run here, of all gateways."""
        return sum(len(connection.tasks) for connection in self._connections)

    async def Connect(  # noqa: N802, D102
        self, request_iterator: AsyncIterator[worker_pb2.WorkerCommand], context: Any
    ) -> AsyncIterator[worker_pb2.WorkerEvents]:
        connection = _Connection()
        self._connections.add(connection)
        reader = asyncio.create_task(self._read(connection, request_iterator))
        loaded_s = time.monotonic()
        try:
            # At once: a gateway sends nothing before the worker has reported.
            yield worker_pb2.WorkerEvents(load=self.load())
            while not reader.done() or connection.tasks:
                outputs = await connection.take(LOAD_INTERVAL_S if connection.tasks else IDLE_LOAD_INTERVAL_S)
                events = worker_pb2.WorkerEvents(outputs=outputs)
                now = time.monotonic()
                if now - loaded_s >= LOAD_INTERVAL_S or not outputs or connection.report_load:
                    connection.report_load = False
                    events.load.CopyFrom(self.load())
                    loaded_s = now
                yield events
        finally:
            self._connections.discard(connection)
            reader.cancel()
            # Legs that the engine has not heard of are stopped by this mark, the others by the abort.
            connection.aborted.update(connection.tasks)
            for leg_id in list(connection.tasks):
                await self._engine.abort(leg_id)

    async def _read(self, connection: _Connection, commands: AsyncIterator[worker_pb2.WorkerCommand]) -> None:
        async for command in commands:
            match command.WhichOneof("command"):
                case "submit":
                    leg_id = command.submit.leg_id
                    task = asyncio.create_task(self._run_leg(connection, command.submit))
                    connection.tasks[leg_id] = task
                    task.add_done_callback(partial(connection.forget, leg_id))
                case "abort":
                    if command.abort.leg_id in connection.tasks:
                        connection.aborted.add(command.abort.leg_id)
                        await self._engine.abort(command.abort.leg_id)
                case "release":
                    try:
                        await self._engine.release(self._redeem(command.release.ticket))
                    except ServingError as error:
                        log.info("ticket not released: %s", error)
                    except Exception:  # one bad ticket must not end the gateway's stream
                        log.exception("ticket %s not released", command.release.ticket.ticket_id)

    def _redeem(self, ticket: worker_pb2.Ticket) -> dict[str, Any]:
        """Use a ticket up. The gateway checks it too; this stands against a replay from another one."""
        if ticket.expires_in_s <= 0:
            raise TicketRefused("the ticket is past its deadline", ticket_id=ticket.ticket_id)
        if ticket.ticket_id in self._redeemed:
            raise TicketRefused("the ticket was used before", ticket_id=ticket.ticket_id)
        self._redeemed[ticket.ticket_id] = None
        while len(self._redeemed) > 65536:
            self._redeemed.popitem(last=False)
        params: dict[str, Any] = json.loads(ticket.params_json)
        return params

    async def _run_leg(self, connection: _Connection, submit: worker_pb2.SubmitLeg) -> None:
        unread: dict[str, Any] | None = None
        try:
            params = self._redeem(submit.ticket) if submit.HasField("ticket") else None
            unread = params
            if time.monotonic() >= self._refuses_from_s and not submit.moves_away:
                raise WorkerDraining("the worker takes no new work", worker_id=self.worker_id)
            if submit.export:
                params = {"do_remote_prefill": False, **(params or {}), "do_remote_decode": True}
            leg = EngineLeg(
                leg_id=submit.leg_id,
                token_ids=np.frombuffer(submit.token_ids, dtype="<u4").tolist(),
                sampling=submit.sampling,
                max_tokens=submit.max_tokens,
                min_tokens=submit.min_tokens,
                reasoning_ended=submit.reasoning_ended if submit.HasField("reasoning_ended") else None,
                reasoning_end_ids=list(submit.reasoning_end_ids),
                transfer_params=params,
                priority=submit.priority,
                cache_salt=submit.cache_salt,
            )
            if leg.leg_id in connection.aborted:  # before the engine heard of it
                await self._release_unread(unread)
                connection.put(worker_pb2.LegOutput(leg_id=leg.leg_id, finish_reason="abort"))
                return
            now = time.monotonic()
            self._must_step_from_s[leg.leg_id] = now + IMPORT_GRACE_S if unread else now
            async for output in self._engine.generate(leg):
                self._must_step_from_s[leg.leg_id] = now
                connection.put(_to_message(output))
                if not output.finish_reason and leg.leg_id in connection.aborted:
                    # The first abort came while the engine was taking the leg in, and found nothing.
                    await self._engine.abort(leg.leg_id)
        except ServingError as error:
            if isinstance(error, InvalidRequest | WorkerDraining):  # refused before any KV was read
                await self._release_unread(unread)
            self._engine_died |= isinstance(error, WorkerDied)
            self._report(connection, submit.leg_id, error)
            if self._engine_died:
                connection.report()
        except Exception as error:
            log.exception("leg %s failed", submit.leg_id)
            self._report(connection, submit.leg_id, EngineFailed(f"{type(error).__name__}: {error}"))
        finally:
            self._must_step_from_s.pop(submit.leg_id, None)

    async def _release_unread(self, params: dict[str, Any] | None) -> None:
        """The source keeps the blocks of a redeemed ticket until its lease ends, unless it is told."""
        if params is None:
            return
        try:
            await self._engine.release(params)
        except Exception:
            log.exception("ticket not released")

    def _report(self, connection: _Connection, leg_id: str, error: ServingError) -> None:
        connection.put(
            worker_pb2.LegOutput(
                leg_id=leg_id, finish_reason="error", error=error.message, error_kind=type(error).__name__
            )
        )

    def load(self) -> worker_pb2.WorkerLoad:
        """The engine's load as a message."""
        load = self._engine.load()
        return worker_pb2.WorkerLoad(
            worker_id=self.worker_id,
            incarnation=self._info.incarnation,
            running_requests=load.running_requests,
            waiting_requests=load.waiting_requests,
            used_blocks=load.used_blocks,
            total_blocks=self._info.total_blocks,
            steps=load.steps,
            prompt_tokens=load.prompt_tokens,
            output_tokens=load.output_tokens,
            prefill_tokens_per_s=load.prefill_tokens_per_s,
            draining=self.draining,
            hung=self.hung,
            preemptions=load.preemptions,
        )


def _to_message(output: EngineOutput) -> worker_pb2.LegOutput:
    message = worker_pb2.LegOutput(
        leg_id=output.leg_id,
        token_ids=output.token_ids,
        finish_reason=output.finish_reason,
        stop_reason=output.stop_reason,
        cached_tokens=output.cached_tokens,
    )
    if output.transfer_params is not None:
        message.transfer_params_json = json.dumps(output.transfer_params)
    if output.transfer is not None:
        figures = output.transfer
        message.transfer.CopyFrom(
            worker_pb2.Transfer(
                bytes=figures.kv_bytes,
                duration_s=figures.duration_s,
                start_unix_s=figures.start_unix_s,
                descriptors=figures.descriptors,
            )
        )
    for position in output.logprobs:
        chosen, *top = (
            inference_pb2.Logprob(token_id=token, logprob=logprob, rank=rank) for token, logprob, rank in position.rows
        )
        message.logprobs.append(inference_pb2.TokenLogprobs(chosen=chosen, top=top))
    return message


class WorkerHost:
    """A worker as Ray starts it: `start`, then requests over gRPC, then `stop`.

    Args:
        worker_id: Name in the cluster, such as ``decode-0``.
        role: ``prefill``, ``decode`` or ``colocated``.
        host: Address to listen on; other workers and gateways reach it there.
        make_engine: Builds the engine, inside the worker's process.
        security: Who may call the worker; the files it names are read in the worker's process.
        stall_timeout_s: As in the spec's ``health``.
    """

    def __init__(
        self,
        worker_id: str,
        role: str,
        host: str,
        make_engine: Callable[[], Engine],
        security: SecuritySettings | None = None,
        *,
        stall_timeout_s: float = 30.0,
    ) -> None:
        self._rpc = InternalRpc(security)
        self._open_metrics = security is not None and security.open_metrics
        self._worker_id = worker_id
        self._role = role
        self._host = host
        self._make_engine = make_engine
        self._stall_timeout_s = stall_timeout_s
        self._engine: Engine | None = None
        self._service: WorkerService | None = None
        self._server: Any = None
        self._metrics: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: Any = None
        self._side_channel: socket.socket | None = None
        run_in_main_thread(self._take_sigterm)

    def _take_sigterm(self) -> None:
        self._before = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        """Drain if there is anything to move; the controller ends the process once it is empty. Else end as before."""
        service, engine, loop = self._service, self._engine, self._loop
        if service is not None and engine is not None and loop is not None:
            held = service.legs or engine.load().used_blocks
            if held and not service.draining:
                loop.call_soon_threadsafe(service.drain)
                return
        if callable(self._before):
            self._before(signum, frame)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    async def start(self) -> dict[str, Any]:
        """Start engine and service; returns `WorkerFacts` as plain data."""
        from workers.worker_metrics import serve_metrics

        self._loop = asyncio.get_running_loop()
        # Fixed before vLLM is imported: the connector reads it from the environment.
        os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] = self._host
        self._side_channel = reserved_port(self._host)
        os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(self._side_channel.getsockname()[1])
        os.environ["BATON_WORKER_ID"] = self._worker_id  # `cluster.fault_injection`, in tests
        self._engine = self._make_engine()
        info = await self._engine.start()
        self._service = WorkerService(
            self._worker_id, self._engine, info, role=self._role, stall_timeout_s=self._stall_timeout_s
        )
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self._server = self._rpc.server(options)
        worker_pb2_grpc.add_WorkerServicer_to_server(self._service, self._server)
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        port = self._rpc.bind(self._server, f"{self._host}:0")
        await self._server.start()
        self._metrics, metrics_port = await serve_metrics(
            self._host,
            self._worker_id,
            self._service,
            check=None if self._open_metrics else self._rpc.check_header,
        )
        own = psutil.Process()
        facts = WorkerFacts(
            worker_id=self._worker_id,
            role=self._role,
            address=f"{self._host}:{port}",
            metrics_address=f"{self._host}:{metrics_port}",
            pid=os.getpid(),
            processes=[(each.pid, each.create_time()) for each in (own, *own.children(recursive=True))],
            engine=info,
        )
        return facts.to_dict()

    async def check_health(self) -> dict[str, Any]:
        """Raise if the engine is gone or hangs; else its load, ``legs`` (of all gateways) and ``draining``."""
        assert self._engine is not None
        assert self._service is not None
        await self._engine.check_health()
        if self._service.hung:
            raise EngineFailed("the engine has work and makes no step", worker_id=self._worker_id)
        return {**asdict(self._engine.load()), "legs": self._service.legs, "draining": self._service.draining}

    async def read_weights(self, first: int, budget_s: float) -> dict[str, Any]:
        """`WeightSums` of the engine, as plain data."""
        assert self._engine is not None
        return asdict(await self._engine.read_weights(first, budget_s))

    async def forget_kv(self) -> None:
        """Have the engine drop cached KV: some of it came from a worker that computes wrongly."""
        assert self._engine is not None
        await self._engine.forget_kv()

    async def drain(self) -> None:
        """Take no new work, and have the gateways move what is here."""
        if self._service is not None:
            self._service.drain()

    async def change_role(self, role: str) -> None:
        """Be of another pool from here on. The engine does either work as it is; only metrics tell."""
        if self._service is not None:
            self._service.role = role

    async def stop(self) -> None:
        """Stop taking work, end the engine, close the ports."""
        if self._service is not None:
            self._service.drain(grace_s=0)
        if self._server is not None:
            await self._server.stop(grace=1)
        if self._metrics is not None:
            await self._metrics.cleanup()
        if self._engine is not None:
            await self._engine.stop()
        if self._side_channel is not None:
            self._side_channel.close()
