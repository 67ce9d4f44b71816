"""Moves requests with their KV: off workers that drain, or decode no more, and off those that will run out of KV.

What moves and where is decided by `orchestrator.policy.drain_moves` and, where the cluster is scaled, by
`orchestrator.policy.peak`; here the moves are begun and followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Protocol

from cluster.spec.config import Role
from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.run_view import RunView
from orchestrator.policy.drain_moves import HeldRequest, Hold, next_moves
from orchestrator.policy.peak import shifts
from orchestrator.policy.router import WorkerView, is_batch
from orchestrator.request.lifecycle import Moved, State

log = logging.getLogger("baton.gateway")

TICK_S = 0.05
"""While a worker drains: a move takes some 0.1 s on two cores, so the next one begins soon after."""
IDLE_TICK_S = 1.0


class MovesFleet(Protocol):
    """What moves ask of a fleet."""

    def views(self) -> list[WorkerView]:
        """The router's view of all workers."""
        ...

    def to_empty(self) -> list[str]:
        """Workers to be emptied."""
        ...

    def role(self, worker_id: str) -> Role | None:
        """Role of a worker; None if it is gone."""
        ...

    def reserve(self, request_id: str, worker_id: str, blocks: int) -> None:
        """Reserve a request blocks of a worker."""
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
        metrics: GatewayMetrics,
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
        self._begun: dict[str, str] = {}
        """Target of each move under way, by request."""
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

    def is_moving(self, request_id: str) -> bool:
        """Whether the request is on its way to another worker, or about to be."""
        return request_id in self._begun

    def tick(self) -> bool:
        """Begin what may begin; whether a worker that is to be emptied still has anything of ours."""
        busy = False
        for worker_id in self._fleet.to_empty():
            busy |= self._empty(worker_id)
        if not busy and self._rebalances:
            self._rebalance()
        return busy

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            if self.tick():
                await asyncio.sleep(TICK_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_TICK_S):
                    await self._wake.wait()

    def _empty(self, worker_id: str) -> bool:
        """Begin moves off a worker; whether it still has anything of ours."""
        role = self._fleet.role(worker_id)
        runs = {run.life.request_id: run for run in self._runs.values() if self._concerned(run, worker_id)}
        self._forget_landed()
        if role is None or not runs:
            return False
        if role is Role.COLOCATED or all(run.life.decode_id != worker_id for run in runs.values()):
            return True  # prefills end by themselves; a colocated engine cannot export
        for move in next_moves(
            [self._held(run, worker_id) for run in runs.values()],
            self._fleet.views(),
            source_id=worker_id,
            block_size_tokens=self._forecast.block_size_tokens,
            moves_at_once=self._moves_at_once,
        ):
            run = runs[move.request_id]
            if run.life.state is State.DECODING:
                self._metrics.moves.inc()
            self._begin(run, worker_id, move.target_id, move.reserve_blocks)
        return True

    def _rebalance(self) -> None:
        """Move requests off decode workers that would run out of KV before those they have end."""
        self._forget_landed()
        held: dict[str, list[HeldRequest]] = {}
        runs = {run.life.request_id: run for run in self._runs.values() if run.life.decode_id is not None}
        for run in runs.values():
            worker_id = str(run.life.decode_id)
            held.setdefault(worker_id, []).append(self._held(run, worker_id))
        for shift in shifts(
            held,
            self._fleet.views(),
            block_size_tokens=self._forecast.block_size_tokens,
            moves_at_once=self._moves_at_once,
        ):
            self._metrics.rebalanced.inc()
            self._begin(runs[shift.request_id], shift.source_id, shift.target_id, shift.reserve_blocks)

    def _begin(self, run: RunView, source_id: str, target_id: str, reserve_blocks: int) -> None:
        request_id = run.life.request_id
        if run.life.state is State.DECODING:
            self._begun[request_id] = target_id
        self._fleet.reserve(request_id, target_id, reserve_blocks)
        log.info("request %s moves from %s to %s", request_id, source_id, target_id)
        run.post(Moved(target_id))

    def _forget_landed(self) -> None:
        """Drop the moves whose requests decode where they were to go, or are over."""
        live = {run.life.request_id: run.life for run in self._runs.values()}
        self._begun = {
            key: target
            for key, target in self._begun.items()
            if (life := live.get(key)) is not None and not (life.decode_id == target and life.has_output)
        }

    def _concerned(self, run: RunView, worker_id: str) -> bool:
        """Whether the run has anything on the worker, or is still on its way off it."""
        life = run.life
        if life.decode_id == worker_id:
            return True
        return life.prefill_id == worker_id and (life.state is State.PREFILLING or not self._landed(run))

    def _landed(self, run: RunView) -> bool:
        life = run.life
        return life.request_id not in self._begun or life.state is not State.DECODING or life.has_output

    def _held(self, run: RunView, worker_id: str) -> HeldRequest:
        life = run.life
        if life.request_id in self._begun:
            hold = Hold.MOVING
        elif life.state is State.PREFILLING:
            hold = Hold.RESERVED if life.decode_id == worker_id else Hold.BUSY
        elif not run.movable:
            hold = Hold.STAYS
        else:
            hold = Hold.DECODING if life.settled else Hold.BUSY
        remaining_tokens = self._forecast.remaining_tokens(run)
        return HeldRequest(life.request_id, hold, life.context_tokens, remaining_tokens, is_batch(run.request.priority))
