"""Legs on a fake engine, with no service around them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from baton.internal.v1 import worker_pb2
from baton.v1.inference_pb2 import Sampling
from cluster.errors import WorkerDraining
from kv_transfer.ticket import issue
from tests.fakes.engine import BLOCK_SIZE_TOKENS, FakeEngine
from workers.engine_health import EngineHealth
from workers.leg_run import LegKind, LegRun
from workers.worker_link import ticket_message


@dataclass
class Bench:
    """One engine, and the legs run on it. ``draining``: it admits no new work."""

    engine: FakeEngine
    kind: LegKind
    draining: bool = False
    health: EngineHealth = field(default_factory=lambda: EngineHealth(30.0))
    outputs: list[worker_pb2.LegOutput] = field(default_factory=list)

    def leg(self, ids: Sequence[int], *, ticket: worker_pb2.Ticket | None = None, **fields: Any) -> LegRun:
        submit = worker_pb2.SubmitLeg(
            token_ids=np.asarray(ids, dtype="<u4").tobytes(),
            **{"leg_id": "leg", "sampling": Sampling(temperature=0.0), "max_tokens": 4, **fields},
        )
        if ticket is not None:
            submit.ticket.CopyFrom(ticket)
        return LegRun(submit, self.engine, self.health, put=self.outputs.append, admit=self._admit)

    def _admit(self) -> None:
        if self.draining:
            raise WorkerDraining("the worker takes no new work")

    async def run(self, ids: Sequence[int], **fields: Any) -> list[int]:
        """Run a leg to its end; its tokens."""
        self.outputs.clear()
        await self.kind.run(self.leg(ids, **fields))
        return [token for output in self.outputs for token in output.token_ids]

    def ticket(self) -> worker_pb2.Ticket:
        """Of what the last leg exported."""
        held = issue(
            json.loads(self.outputs[-1].transfer_params_json),
            source_id="source",
            incarnation=self.engine.incarnation,
            block_size_tokens=BLOCK_SIZE_TOKENS,
            deadline_s=time.monotonic() + 20,
        )
        return ticket_message(held, time.monotonic())
