"""The forecast peak of KV of each decode worker, for the router; reckoned anew a few times a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cluster.spec.config import Role
from orchestrator.policy.peak import peak_tokens

if TYPE_CHECKING:
    from orchestrator.gateway.gateway import Gateway

FRESH_S = 0.25
"""Thousands of requests take milliseconds to add up, and placements come by the hundred a second."""


class Peaks:
    """Peaks of one gateway's view of the workers. What other gateways have there is taken to stay as it is."""

    def __init__(self) -> None:
        self._blocks: dict[str, int] = {}
        self._since_s = -1e9

    def of(self, gateway: Gateway) -> dict[str, int]:
        """Blocks by decode worker; the caller adds what it places."""
        now_s = time.monotonic()
        if now_s - self._since_s < FRESH_S:
            return self._blocks
        self._since_s = now_s
        block = gateway.block_size_tokens
        loads: dict[str, list[tuple[int, int]]] = {}
        for run in gateway.runs():
            if run.life.decode_id is not None and not run.life.ended:
                loads.setdefault(run.life.decode_id, []).append(
                    (run.life.context_tokens, gateway.remaining_tokens(run))
                )
        self._blocks = {}
        for worker_id, worker in gateway.fleet.workers.items():
            if worker.role is not Role.DECODE:
                continue
            own = loads.get(worker_id, [])
            held = sum(-(-context // block) for context, _ in own)
            others = max(0, worker.load.used_blocks - held)
            self._blocks[worker_id] = others + -(-peak_tokens(own) // block)
        return self._blocks
