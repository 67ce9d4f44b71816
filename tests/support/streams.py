"""Requests of the engine tests, followed as they stream."""

from __future__ import annotations

import asyncio
import random

from baton.v1 import inference_pb2 as pb
from orchestrator.gateway.gateway import Gateway

OUTPUT_TOKENS = 800
"""Enough to run on for some seconds while a `baton` command starts; 400 were sometimes done before it acted."""


def request(isl_tokens: int, **sampling: object) -> pb.GenerateRequest:
    draw = random.Random(f"drain-{isl_tokens}")
    ids = [draw.randrange(5, 60) for _ in range(isl_tokens)]
    options = {"temperature": 0.0, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True} | sampling
    return pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=ids), sampling=pb.Sampling(**options))  # type: ignore[arg-type]


class Stream:
    """One request's tokens as they come."""

    def __init__(self, gateway: Gateway, message: pb.GenerateRequest) -> None:
        self.ids: list[int] = []
        self.finished = pb.Finished()
        self.task = asyncio.create_task(self._read(gateway, message))

    async def _read(self, gateway: Gateway, message: pb.GenerateRequest) -> None:
        async for event in gateway.generate(message):
            if event.HasField("delta"):
                self.ids += event.delta.token_ids
            if event.HasField("finished"):
                self.finished = event.finished

    @property
    def summary(self) -> pb.ChoiceSummary:
        return self.finished.choices[0]

    async def reached(self, count: int) -> None:
        async with asyncio.timeout(120):
            while len(self.ids) < count and not self.task.done():  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def ready(gateway: Gateway, *worker_ids: str) -> None:
    fleet = gateway.model.fleet
    async with asyncio.timeout(300):
        while not all(  # noqa: ASYNC110
            (worker := fleet.workers.get(worker_id)) and worker.view().accepting for worker_id in worker_ids
        ):
            await asyncio.sleep(0.2)
