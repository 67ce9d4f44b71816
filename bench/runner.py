"""Runs a plan against a target: closed loop, or open loop by arrival times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.cpu import CpuMeter
from bench.record import RequestRecord
from bench.target import RequestStyle, Target
from bench.workload import PlannedRequest


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """Records in order of sending, the wall time from first send to last end, and CPU seconds."""

    records: list[RequestRecord]
    duration_s: float
    server_cpu_s: float | None
    client_cpu_s: float


async def run(
    target: Target,
    plan: Sequence[PlannedRequest],
    style: RequestStyle,
    *,
    concurrency: int | None,
    meter: CpuMeter,
    duration_s: float | None = None,
    on_done: Callable[[RequestRecord], None] = lambda record: None,
) -> RunOutcome:
    """Send a plan.

    Args:
        target: Where to.
        plan: Requests; with arrival times they are sent at those times whatever the server does (open loop).
        style: What they have in common.
        concurrency: Clients of a closed loop; None for an open loop.
        meter: Reads CPU times around the run.
        duration_s: Stop sending after so long; what is under way is waited for.
        on_done: Called with each record.
    """
    meter.start()
    sender = _Sender(target, plan, style, duration_s, on_done)
    async with asyncio.TaskGroup() as group:
        if concurrency is not None:
            for _ in range(min(concurrency, len(plan))):
                group.create_task(sender.client())
        else:
            await sender.arrivals(group)
    server_cpu_s, client_cpu_s = meter.stop()
    records = sorted(sender.records, key=lambda record: record.start_s)
    first_s = records[0].start_s if records else 0.0
    last_s = max((record.start_s + record.end_s for record in records), default=0.0)
    return RunOutcome(records, last_s - first_s, server_cpu_s, client_cpu_s)


class _Sender:
    """Owns what of a plan is still to be sent, and the records of what has ended."""

    def __init__(
        self,
        target: Target,
        plan: Sequence[PlannedRequest],
        style: RequestStyle,
        duration_s: float | None,
        on_done: Callable[[RequestRecord], None],
    ) -> None:
        self.records: list[RequestRecord] = []
        self._target = target
        self._waiting = iter(plan)
        self._style = style
        self._duration_s = duration_s
        self._on_done = on_done
        self._epoch_s = time.perf_counter()

    async def client(self) -> None:
        """One client of a closed loop: the next request once the last one has ended."""
        for request in self._waiting:
            if self._late():
                return
            await self._session(request)

    async def arrivals(self, group: asyncio.TaskGroup) -> None:
        """An open loop: each request at its time, whatever the server does."""
        for request in self._waiting:
            await asyncio.sleep(max(0.0, self._epoch_s + (request.arrival_s or 0.0) - time.perf_counter()))
            if self._late():
                return
            group.create_task(self._session(request))

    async def _session(self, request: PlannedRequest) -> None:
        """A request, and the turns that come after its answer."""
        turn: PlannedRequest | None = request
        while turn is not None:
            record = await self._target.send(turn, self._style, self._epoch_s)
            if turn.arrival_s is not None:
                record.lag_s = max(0.0, record.start_s - turn.arrival_s)
            self.records.append(record)
            self._on_done(record)
            turn = turn.then
            if turn is not None:
                await asyncio.sleep(turn.think_s)
                if self._late():
                    return

    def _late(self) -> bool:
        return self._duration_s is not None and time.perf_counter() - self._epoch_s >= self._duration_s
