"""The engine of a worker that runs elsewhere, under the engine protocol; so its service is tested along with it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np

from baton.internal.v1 import registry_pb2, registry_pb2_grpc, worker_pb2
from cluster.engine.protocol import (
    EngineInfo,
    EngineLeg,
    EngineLoad,
    EngineOutput,
    PromptScores,
    TokenAlternatives,
    TransferFigures,
)
from workers.worker_link import WorkerLink, leg_error

_names = itertools.count()


class RemoteEngine:
    """Speaks `Engine` to a test and `baton.internal.v1.Worker` to a worker."""

    def __init__(self, member: registry_pb2.Member) -> None:
        self._member = member
        self._load = worker_pb2.WorkerLoad()
        self._link = WorkerLink(member.worker_id, member.address, on_lost=lambda _: None, on_load=self._take_load)
        self._reported = asyncio.Event()

    def _take_load(self, load: worker_pb2.WorkerLoad) -> None:
        self._load = load
        self._reported.set()

    async def start(self) -> EngineInfo:
        await asyncio.wait_for(self._reported.wait(), 20)
        member = self._member
        return EngineInfo(member.incarnation, member.total_blocks, member.block_size_tokens, 2048, 0)

    async def generate(self, leg: EngineLeg) -> AsyncIterator[EngineOutput]:
        message = worker_pb2.SubmitLeg(
            leg_id=leg.leg_id,
            token_ids=np.asarray(leg.token_ids, dtype="<u4").tobytes(),
            sampling=leg.sampling,
            max_tokens=leg.max_tokens,
            min_tokens=leg.min_tokens,
            cache_salt=leg.cache_salt,
            reasoning_ended=leg.reasoning_ended,
            reasoning_end_ids=leg.reasoning_end_ids,
        )
        params = leg.transfer_params or {}
        message.export = bool(params.get("do_remote_decode"))
        if params.get("do_remote_prefill"):
            message.ticket.CopyFrom(_ticket(params))
        outputs: asyncio.Queue[worker_pb2.LegOutput] = asyncio.Queue()
        self._link.submit(message, outputs.put_nowait)
        while True:
            output = await outputs.get()
            if output.finish_reason == "error":
                raise leg_error(output, self._member.worker_id)
            yield _output(output)
            if output.finish_reason:
                # The worker's news of freed blocks and made tokens come with its next report.
                self._reported.clear()
                await asyncio.wait_for(self._reported.wait(), 10)
                return

    async def abort(self, leg_id: str) -> None:
        self._link.abort(leg_id)

    async def release(self, transfer_params: dict[str, Any]) -> None:
        release = worker_pb2.ReleaseTicket(ticket=_ticket(transfer_params))
        self._link._commands.put_nowait(worker_pb2.WorkerCommand(release=release))

    def load(self) -> EngineLoad:
        load = self._load
        return EngineLoad(
            load.running_requests, load.waiting_requests, load.used_blocks, load.steps,
            load.prompt_tokens, load.output_tokens, load.prefill_tokens_per_s,
        )  # fmt: skip

    async def check_health(self) -> None:
        assert time.monotonic() - self._link.last_event_s < 5

    async def stop(self) -> None:
        await self._link.close()


def _ticket(params: dict[str, Any]) -> worker_pb2.Ticket:
    return worker_pb2.Ticket(ticket_id=f"test-{next(_names)}", expires_in_s=20, params_json=json.dumps(params))


def _output(message: worker_pb2.LegOutput) -> EngineOutput:
    output = EngineOutput(
        message.leg_id, list(message.token_ids), message.finish_reason, message.stop_reason, message.cached_tokens
    )
    if message.transfer_params_json:
        output.transfer_params = json.loads(message.transfer_params_json)
    if message.HasField("transfer"):
        figures = message.transfer
        output.transfer = TransferFigures(figures.bytes, figures.duration_s, figures.start_unix_s, figures.descriptors)
    if message.HasField("prompt_scores"):
        output.prompt_scores = _prompt_scores(message.prompt_scores)
    output.logprobs = [
        TokenAlternatives([(one.token_id, one.logprob, one.rank) for one in (entry.chosen, *entry.top)])
        for entry in message.logprobs
    ]
    return output


def _prompt_scores(message: worker_pb2.PromptScores) -> PromptScores:
    ranks = np.frombuffer(message.ranks, dtype="<u4")
    columns = len(message.token_ids) // max(1, len(message.ranks))
    token_ids = np.frombuffer(message.token_ids, dtype="<u4").reshape(len(ranks), columns)
    return PromptScores(token_ids, np.frombuffer(message.logprobs, dtype="<f4").reshape(len(ranks), columns), ranks)


@contextlib.asynccontextmanager
async def remote_engines(registry: str) -> AsyncIterator[dict[str, tuple[RemoteEngine, EngineInfo]]]:
    """The engines of a running cluster, by worker id."""
    async with grpc.aio.insecure_channel(registry) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        call = stub.WatchMembers(registry_pb2.WatchMembersRequest(), wait_for_ready=True)
        members = (await call.read()).members
        call.cancel()
    engines = {member.worker_id: RemoteEngine(member) for member in members}
    try:
        yield {worker_id: (engine, await engine.start()) for worker_id, engine in engines.items()}
    finally:
        for engine in engines.values():
            await engine.stop()
