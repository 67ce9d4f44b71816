"""Stub workers for `benchmarks.gateway_load`: every leg gets a token each step, in one message, as an engine's would.

They note when a leg came and when each of its tokens left, on the clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from baton.internal.v1 import registry_pb2, registry_pb2_grpc, worker_pb2, worker_pb2_grpc
from orchestrator.registry import RegistryService

BLOCK_SIZE_TOKENS = 32
TOTAL_BLOCKS = 1_000_000
LOAD_INTERVAL_S = 0.5
SILENT_PRIORITY = -7
"""Over HTTP, where a lower number goes first, it is 7."""


@dataclass(slots=True)
class Leg:
    """What a leg is yet to say, and when it came and spoke."""

    left_tokens: int
    number: int
    exports: bool
    prompt_tokens: int
    came_s: float
    silent: bool
    """It came with `SILENT_PRIORITY`: it says its first token, and then nothing."""
    left_s: list[float] = field(default_factory=list)


class StubWorker(worker_pb2_grpc.WorkerServicer):
    """Serves legs at a fixed pace, without an engine.

    Args:
        worker_id: Name in the cluster.
        step_s: Seconds between two tokens of a leg.
        legs: Where each leg is noted, by request id and the leg's number.
        offset_s: Its steps come so much after the others': engines do not step together.
    """

    def __init__(self, worker_id: str, step_s: float, legs: dict[str, Leg], offset_s: float) -> None:
        self.worker_id = worker_id
        self.step_s = step_s
        self._offset_s = offset_s
        self._noted = legs
        self._steps = 0

    async def Connect(self, commands: Any, context: Any) -> AsyncIterator[worker_pb2.WorkerEvents]:  # noqa: N802
        running: dict[str, Leg] = {}
        reader = asyncio.create_task(self._read(commands, running))
        reported_s = next_s = 0.0
        await asyncio.sleep(self._offset_s)
        try:
            while True:
                now_s = time.monotonic()
                next_s = max(next_s + self.step_s, now_s)
                message = self._step(running, now_s)
                if now_s - reported_s > LOAD_INTERVAL_S:
                    reported_s = now_s
                    message.load.CopyFrom(self._load(len(running)))
                if message.ByteSize():
                    yield message
                await asyncio.sleep(next_s - time.monotonic())
        finally:
            reader.cancel()

    async def _read(self, commands: Any, running: dict[str, Leg]) -> None:
        async for command in commands:
            if command.WhichOneof("command") == "submit":
                submit = command.submit
                silent = submit.priority == SILENT_PRIORITY
                came_s, prompt_tokens = time.monotonic(), len(submit.token_ids) // 4
                leg = Leg(submit.max_tokens, submit.leg_number, submit.export, prompt_tokens, came_s, silent)
                running[submit.leg_id] = self._noted[submit.leg_id] = leg
            elif command.WhichOneof("command") == "abort":
                running.pop(command.abort.leg_id, None)

    def _step(self, running: dict[str, Leg], now_s: float) -> worker_pb2.WorkerEvents:
        """A token for each leg: a letter, which every tokeniser has as one token."""
        self._steps += 1
        message = worker_pb2.WorkerEvents()
        token_id = 65 + self._steps % 26
        for leg_id, leg in list(running.items()):
            if leg.silent and leg.left_s:
                continue
            leg.left_tokens -= 1
            leg.left_s.append(now_s)
            if leg.left_tokens and leg.number:
                message.step.leg_numbers.append(leg.number)
                message.step.token_ids.append(token_id)
                continue
            output = message.outputs.add(leg_id=leg_id, token_ids=[token_id])
            if not leg.left_tokens:
                output.finish_reason = "length"
                del running[leg_id]
                if leg.exports:
                    output.transfer_params_json = json.dumps(_transfer_params(leg_id, leg.prompt_tokens))
        return message

    def _load(self, running: int) -> worker_pb2.WorkerLoad:
        return worker_pb2.WorkerLoad(
            worker_id=self.worker_id,
            incarnation=f"i-{self.worker_id}",
            running_requests=running,
            total_blocks=TOTAL_BLOCKS,
            steps=self._steps,
            prefill_tokens_per_s=1e6,
        )


def _transfer_params(leg_id: str, prompt_tokens: int) -> dict[str, Any]:
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [[1]],
        "remote_engine_id": "e",
        "remote_request_id": leg_id,
        "remote_host": "127.0.0.1",
        "remote_port": 1,
        "tp_size": 1,
        "remote_num_tokens": prompt_tokens,
    }


async def start_stubs(count: int, step_s: float) -> tuple[list[StubWorker], dict[str, Leg], str, list[Any]]:
    """Start stub workers and a registry that names them.

    Returns the workers, the legs they note, the registry's address and the servers, to be stopped.
    """
    legs: dict[str, Leg] = {}
    workers = [StubWorker(f"colocated-{index}", step_s, legs, index * step_s / count) for index in range(count)]
    members, servers = [], []
    for worker in workers:
        server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        members.append(
            registry_pb2.Member(
                worker_id=worker.worker_id,
                role="colocated",
                state="ready",
                address=f"127.0.0.1:{port}",
                incarnation=f"i-{worker.worker_id}",
                total_blocks=TOTAL_BLOCKS,
                block_size_tokens=BLOCK_SIZE_TOKENS,
                cpus=1,
            )
        )
    registry = RegistryService()
    await registry.publish("", members, [])
    server = grpc.aio.server()
    registry_pb2_grpc.add_RegistryServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return workers, legs, f"127.0.0.1:{port}", [*servers, server]
