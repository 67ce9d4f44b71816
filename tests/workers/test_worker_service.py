"""The service between a gateway's stream and the worker's kinds of legs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from baton.internal.v1 import worker_pb2
from baton.v1.inference_pb2 import Sampling
from cluster.errors import EngineFailed, WorkerDied
from decode_workers.decode_legs import DecodeLegs
from prefill_workers.prefill_legs import PrefillLegs
from tests.fakes.engine import FakeEngine, continuation
from tests.fakes.live_cluster import eventually
from workers.leg_run import LegKind
from workers.worker_service import WorkerService

PROMPT = list(range(65, 105))


class Gateway:
    """One gateway's stream, without gRPC."""

    def __init__(self, service: WorkerService) -> None:
        self._commands: asyncio.Queue[worker_pb2.WorkerCommand | None] = asyncio.Queue()
        self._events = service.Connect(self._outgoing(), None)
        self.loads: list[worker_pb2.WorkerLoad] = []
        self.outputs: dict[str, list[worker_pb2.LegOutput]] = {}
        self._task = asyncio.create_task(self._read())

    async def _outgoing(self) -> AsyncIterator[worker_pb2.WorkerCommand]:
        while (command := await self._commands.get()) is not None:
            yield command

    async def _read(self) -> None:
        async for events in self._events:
            for output in events.outputs:
                self.outputs.setdefault(output.leg_id, []).append(output)
            if events.HasField("load"):
                self.loads.append(events.load)

    def send(self, **command: Any) -> None:
        self._commands.put_nowait(worker_pb2.WorkerCommand(**command))

    def submit(self, leg_id: str, **fields: Any) -> None:
        ids = np.asarray(fields.pop("ids", PROMPT), dtype="<u4").tobytes()
        message = {"leg_id": leg_id, "token_ids": ids, "sampling": Sampling(temperature=0.0), "max_tokens": 4, **fields}
        self.send(submit=worker_pb2.SubmitLeg(**message))

    def reason(self, leg_id: str) -> str:
        outputs = self.outputs.get(leg_id)
        return outputs[-1].finish_reason if outputs else ""

    async def ended(self, leg_id: str) -> worker_pb2.LegOutput:
        await eventually(lambda: bool(self.reason(leg_id)), leg_id)
        return self.outputs[leg_id][-1]

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._events.aclose()


class Worker:
    def __init__(self, engine: FakeEngine, service: WorkerService) -> None:
        self.engine, self.service = engine, service
        self.gateways: list[Gateway] = []

    async def gateway(self) -> Gateway:
        made = Gateway(self.service)
        self.gateways.append(made)
        await eventually(lambda: bool(made.loads), "the first report")
        return made


@contextlib.asynccontextmanager
async def worker_of(kinds: list[LegKind] | None = None, **settings: Any) -> AsyncIterator[Worker]:
    engine = FakeEngine(**settings)
    info = await engine.start()
    worker = Worker(engine, WorkerService("w-0", engine, info, kinds or [PrefillLegs(), DecodeLegs(engine)]))
    try:
        yield worker
    finally:
        for gateway in worker.gateways:
            await gateway.close()


async def test_a_worker_reports_before_it_is_asked() -> None:
    async with worker_of() as worker:
        gateway = await worker.gateway()
        assert gateway.loads[0].incarnation == worker.engine.incarnation
        assert not gateway.loads[0].draining


async def test_each_leg_goes_to_the_kind_that_takes_it() -> None:
    async with worker_of() as worker:
        gateway = await worker.gateway()
        gateway.submit("read", export=True, max_tokens=1)
        gateway.submit("made")
        last = await gateway.ended("read")
        assert json.loads(last.transfer_params_json)["remote_num_tokens"] == len(PROMPT)
        await gateway.ended("made")
        tokens = [token for output in gateway.outputs["made"] for token in output.token_ids]
        assert tokens == continuation(PROMPT, 4)


async def test_a_leg_that_no_kind_takes_is_refused_by_name() -> None:
    async with worker_of([PrefillLegs()]) as worker:
        gateway = await worker.gateway()
        gateway.submit("made")
        refused = await gateway.ended("made")
        assert (refused.finish_reason, refused.error_kind) == ("error", "InvalidRequest")
        assert not worker.engine.started


async def test_a_worker_that_drains_takes_what_was_on_its_way_and_then_only_what_moves_away() -> None:
    async with worker_of() as worker:
        gateway = await worker.gateway()
        worker.service.drain(grace_s=3600.0)
        await eventually(lambda: gateway.loads[-1].draining, "the drain is reported at once")
        gateway.submit("late")
        assert (await gateway.ended("late")).finish_reason == "length"
        worker.service.drain(grace_s=0.0)  # asked twice: the first grace holds
        gateway.submit("later")
        assert (await gateway.ended("later")).finish_reason == "length"
    async with worker_of() as worker:
        gateway = await worker.gateway()
        worker.service.drain(grace_s=0.0)
        for leg_id, fields in (("read", {"export": True}), ("made", {})):
            gateway.submit(leg_id, **fields)
            assert (await gateway.ended(leg_id)).error_kind == "WorkerDraining"
        gateway.submit("moved", export=True, moves_away=True, max_tokens=1)
        assert (await gateway.ended("moved")).transfer_params_json


async def test_an_abort_ends_its_leg_alone() -> None:
    async with worker_of() as worker:
        gateway = await worker.gateway()
        hold = worker.engine.hold(2)
        gateway.submit("a", max_tokens=50)
        gateway.submit("b", ids=[70, *PROMPT], max_tokens=5)
        await asyncio.wait_for(hold.reached.wait(), 20)
        gateway.send(abort=worker_pb2.AbortLeg(leg_id="a"))
        gateway.send(abort=worker_pb2.AbortLeg(leg_id="unknown"))
        assert (await gateway.ended("a")).finish_reason == "abort"
        hold.open()
        assert (await gateway.ended("b")).finish_reason == "length"


async def test_a_gateway_that_goes_takes_its_own_legs_with_it() -> None:
    async with worker_of() as worker:
        first, second = await worker.gateway(), await worker.gateway()
        hold = worker.engine.hold(2)
        first.submit("a", max_tokens=50)
        second.submit("b", max_tokens=5)
        await eventually(lambda: worker.service.legs == 2, "both run")
        await asyncio.wait_for(hold.reached.wait(), 20)
        await first.close()
        await eventually(lambda: worker.service.legs == 1, "one is left")
        hold.open()
        assert (await second.ended("b")).finish_reason == "length"


async def test_an_engine_that_died_is_reported_with_the_leg_that_saw_it() -> None:
    async with worker_of() as worker:
        gateway = await worker.gateway()
        worker.engine.fail_next = WorkerDied("the engine core died")
        gateway.submit("a")
        assert (await gateway.ended("a")).error_kind == "WorkerDied"
        await eventually(lambda: gateway.loads[-1].hung, "hung is reported")
        assert worker.service.hung


@pytest.mark.parametrize("failure", [EngineFailed("out of order"), KeyError("a fault of ours")])
async def test_a_failed_leg_harms_no_other_and_leaves_nothing(failure: Exception) -> None:
    async with worker_of() as worker:
        gateway = await worker.gateway()
        worker.engine.fail_next = failure
        gateway.submit("a")
        failed = await gateway.ended("a")
        assert (failed.finish_reason, failed.error_kind) == ("error", "EngineFailed")
        gateway.submit("b")
        assert (await gateway.ended("b")).finish_reason == "length"
        await eventually(lambda: worker.service.legs == 0, "no leg is left")
        assert not worker.service.hung


async def test_a_ticket_that_cannot_be_released_does_not_end_the_stream() -> None:
    async with worker_of() as worker:
        gateway = await worker.gateway()
        for params in ("{", "{}"):  # no JSON, and nothing that an engine could release
            ticket = worker_pb2.Ticket(ticket_id=f"t{params}", expires_in_s=9, params_json=params)
            gateway.send(release=worker_pb2.ReleaseTicket(ticket=ticket))
        late = worker_pb2.Ticket(ticket_id="late", expires_in_s=-1, params_json="{}")
        gateway.send(release=worker_pb2.ReleaseTicket(ticket=late))
        gateway.submit("a")
        assert (await gateway.ended("a")).finish_reason == "length"
