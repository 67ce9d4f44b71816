"""Moves requests with their KV: off workers that drain, or decode no more, and off those that will run out of KV.

What moves and where is decided by `orchestrator.policy.drain_moves` and, where the cluster is scaled, by
`orchestrator.policy.peak`; here the moves are begun and followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.metrics import ModelMetrics
from orchestrator.gateway.run_view import RunView
from orchestrator.policy.drain_moves import DRAIN_TICK_S, HeldRequest, Hold, Move, empty_workers
from orchestrator.policy.peak import shifts
from orchestrator.policy.router import WorkerView, is_batch
from orchestrator.request.lifecycle import Lifecycle, Moved, State
from orchestrator.request.moving import Moves, hold_of

log = logging.getLogger("baton.gateway")

IDLE_TICK_S = 1.0


class MovesFleet(Protocol):
    """What moves ask of a fleet."""

    def views(self) -> list[WorkerView]:
        """The router's view of all workers."""
        ...

    def to_empty(self) -> list[str]:
        """Workers to be emptied."""
        ...

    def reserve(self, request_id: str, worker_id: str, blocks: int) -> None:
        """Reserve a request blocks of a worker."""
        ...

    def holds(self, request_id: str, worker_id: str) -> bool:
        """Whether a request has blocks reserved on a worker."""
        ...


class RequestMoves:
    """Owns the moves under way. Runs beside a gateway until closed.

    Args:
        fleet: The workers.
        runs: All runs, by number; read alone.
        forecast: Output still to come.
        metrics: Where moves are counted.
        moves_at_once: Most requests on their way at a time.
        rebalances: Whether requests leave workers that will run out of KV.
    """

    def __init__(
        self,
        fleet: MovesFleet,
        runs: Mapping[int, RunView],
        forecast: OutputForecast,
        metrics: ModelMetrics,
        *,
        moves_at_once: int,
        rebalances: bool,
    ) -> None:
        self._fleet = fleet
        self._runs = runs
        self._forecast = forecast
        self._metrics = metrics
        self._moves_at_once = moves_at_once
        self._rebalances = rebalances
        self._begun = Moves()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """The fleet changed: go on at once if a worker drains. Starts the loop on first use."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        if self._fleet.to_empty():
            self._wake.set()

    async def close(self) -> None:
        """End the loop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def is_moving(self, life: Lifecycle) -> bool:
        """Whether the request is on its way to another worker, or about to be."""
        return self._begun.under_way(life)

    def tick(self) -> bool:
        """Begin what may begin; whether a worker that is to be emptied still has anything of ours."""
        runs = {run.life.request_id: run for run in self._runs.values()}
        self._begun.forget_over({name: run.life for name, run in runs.items()}, self._fleet.holds)
        busy = empty_workers(
            self._fleet.to_empty(),
            held=lambda worker_id: self._held_by(runs.values(), worker_id),
            views=self._fleet.views,
            begin=lambda worker_id, move: self._empty(runs[move.request_id], worker_id, move),
            block_size_tokens=self._forecast.block_size_tokens,
            moves_at_once=self._moves_at_once,
        )
        if not busy and self._rebalances:
            self._rebalance()
        return busy

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            if self.tick():
                await asyncio.sleep(DRAIN_TICK_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_TICK_S):
                    await self._wake.wait()

    def _empty(self, run: RunView, worker_id: str, move: Move) -> None:
        if run.life.state is State.DECODING:
            self._metrics.moves.inc()
        self._begin(run, worker_id, move.target_id, move.reserve_blocks)

    def _rebalance(self) -> None:
        """Move requests off decode workers that would run out of KV before those they have end."""
        runs = {run.life.request_id: run for run in self._runs.values()}
        held: dict[str, list[HeldRequest]] = {}
        for run in runs.values():
            worker_id = run.life.decode_id
            if worker_id is not None and (one := self._held(run, worker_id)) is not None:
                held.setdefault(worker_id, []).append(one)
        for shift in shifts(
            held,
            self._fleet.views(),
            block_size_tokens=self._forecast.block_size_tokens,
            moves_at_once=self._moves_at_once,
        ):
            self._metrics.rebalanced.inc()
            self._begin(runs[shift.request_id], shift.source_id, shift.target_id, shift.reserve_blocks)

    def _begin(self, run: RunView, source_id: str, target_id: str, reserve_blocks: int) -> None:
        self._begun.begin(run.life, target_id)
        self._fleet.reserve(run.life.request_id, target_id, reserve_blocks)
        log.info("request %s moves from %s to %s", run.life.request_id, source_id, target_id)
        run.post(Moved(target_id))

    def _held_by(self, runs: Iterable[RunView], worker_id: str) -> list[HeldRequest]:
        return [one for run in runs if (one := self._held(run, worker_id)) is not None]

    def _held(self, run: RunView, worker_id: str) -> HeldRequest | None:
        """What the run has on the worker; None if nothing."""
        life = run.life
        hold = hold_of(life, worker_id, moving=self._begun.under_way(life))
        if hold is None:
            return None
        remaining_tokens, batch = self._forecast.remaining_tokens(run), is_batch(run.request.priority)
        prefill_id = life.prefill_id if hold is Hold.RESERVED else None
        return HeldRequest(life.request_id, hold, life.context_tokens, remaining_tokens, batch, prefill_id)
