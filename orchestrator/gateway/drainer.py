"""Empties workers that drain, or decode no more, of this gateway's requests, and gives up workers that fell silent.

Where the autoscaler is on, it also moves requests off decode workers whose forecast exceeds their KV. What moves and
where is decided by `orchestrator.policy.drain_moves` and `peak`; here the moves are begun and followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from cluster.spec.config import Role
from orchestrator.policy.drain_moves import HeldRequest, Hold, next_moves
from orchestrator.policy.peak import shifts
from orchestrator.policy.router import is_batch
from orchestrator.request.lifecycle import Moved, State

if TYPE_CHECKING:
    from orchestrator.gateway.choice_run import ChoiceRun
    from orchestrator.gateway.gateway import Gateway

log = logging.getLogger("baton.gateway")

TICK_S = 0.05
"""While a worker drains: a move takes some 0.1 s on two cores, so the next one begins soon after."""
IDLE_TICK_S = 1.0


class Drainer:
    """Runs beside a gateway until cancelled."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._begun: dict[str, str] = {}
        """Target of each move under way, by request."""
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def nudge(self) -> None:
        """Something changed; look at once if a worker drains. Starts the loop on first use."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        if self._draining():
            self._wake.set()

    async def close(self) -> None:
        """End the loop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def is_moving(self, run: ChoiceRun) -> bool:
        """Whether the run is on its way to another worker, or about to be."""
        return run.life.request_id in self._begun

    def _draining(self) -> list[str]:
        """Workers to be emptied: those that drain, and prefill workers that were decode workers a moment ago."""
        return [
            worker_id
            for worker_id, worker in self._gateway.fleet.workers.items()
            if worker.draining or (worker.role is Role.PREFILL and worker.reserved)
        ]

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            self._gateway.fleet.drop_silent(time.monotonic())
            busy = False
            for worker_id in self._draining():
                busy |= self._step(worker_id)
            if busy:
                await asyncio.sleep(TICK_S)
                continue
            if self._gateway.spec.autoscaling.enabled:
                self._rebalance()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_TICK_S):
                    await self._wake.wait()

    def _step(self, worker_id: str) -> bool:
        """Begin what may begin; whether the worker still has anything of ours."""
        gateway = self._gateway
        worker = gateway.fleet.workers.get(worker_id)
        runs = {run.life.request_id: run for run in gateway.runs() if self._concerned(run, worker_id)}
        self._forget_landed()
        if worker is None or not runs:
            return False
        if worker.role is Role.COLOCATED or all(run.life.decode_id != worker_id for run in runs.values()):
            return True  # prefills end by themselves; a colocated engine cannot export
        held = [self._held(run, worker_id) for run in runs.values()]
        for move in next_moves(
            held,
            gateway.fleet.views(),
            source_id=worker_id,
            block_size_tokens=gateway.block_size_tokens,
            moves_at_once=gateway.spec.drain.moves_at_once,
        ):
            run = runs[move.request_id]
            if run.life.state is State.DECODING:
                gateway.metrics.moves.inc()
            self._begin(run, worker_id, move.target_id, move.reserve_blocks)
        return True

    def _begin(self, run: ChoiceRun, source_id: str, target_id: str, reserve_blocks: int) -> None:
        request_id = run.life.request_id
        if run.life.state is State.DECODING:
            self._begun[request_id] = target_id
        self._gateway.fleet.workers[target_id].reserved[request_id] = reserve_blocks
        log.info("request %s moves from %s to %s", request_id, source_id, target_id)
        run.post(Moved(target_id))

    def _forget_landed(self) -> None:
        """Drop the moves whose requests decode where they were to go, or are over."""
        live = {run.life.request_id: run.life for run in self._gateway.runs()}
        self._begun = {
            key: target
            for key, target in self._begun.items()
            if (life := live.get(key)) is not None and not (life.decode_id == target and life.has_output)
        }

    def _rebalance(self) -> None:
        """Move requests off decode workers that would run out of KV before those they have end."""
        gateway = self._gateway
        self._forget_landed()
        held: dict[str, list[HeldRequest]] = {}
        runs = {run.life.request_id: run for run in gateway.runs() if run.life.decode_id is not None}
        for run in runs.values():
            worker_id = str(run.life.decode_id)
            held.setdefault(worker_id, []).append(self._held(run, worker_id))
        for shift in shifts(
            held,
            gateway.fleet.views(),
            block_size_tokens=gateway.block_size_tokens,
            moves_at_once=gateway.spec.drain.moves_at_once,
        ):
            gateway.metrics.rebalanced.inc()
            self._begin(runs[shift.request_id], shift.source_id, shift.target_id, shift.reserve_blocks)

    def _concerned(self, run: ChoiceRun, worker_id: str) -> bool:
        """Whether the run has anything on the worker, or is still on its way off it."""
        life = run.life
        if life.decode_id == worker_id:
            return True
        return life.prefill_id == worker_id and (life.state is State.PREFILLING or not self._landed(run))

    def _landed(self, run: ChoiceRun) -> bool:
        life = run.life
        return life.request_id not in self._begun or life.state is not State.DECODING or life.has_output

    def _held(self, run: ChoiceRun, worker_id: str) -> HeldRequest:
        life, gateway = run.life, self._gateway
        if life.request_id in self._begun:
            hold = Hold.MOVING
        elif life.state is State.PREFILLING:
            hold = Hold.RESERVED if life.decode_id == worker_id else Hold.BUSY
        elif not run.movable:
            hold = Hold.STAYS
        else:
            hold = Hold.DECODING if life.settled else Hold.BUSY
        batch = is_batch(run.request.priority)
        return HeldRequest(life.request_id, hold, life.context_tokens, gateway.remaining_tokens(run), batch)
