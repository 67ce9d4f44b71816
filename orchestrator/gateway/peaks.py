"""The forecast peak of KV of each decode worker, for the router; computed again a few times a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.run_view import RunView
from orchestrator.policy.peak import peak_tokens

FRESH_S = 0.25
"""Thousands of requests take milliseconds to add up, and placements come by the hundred a second."""


class PeaksFleet(Protocol):
    """What peaks are computed from, beside the runs."""

    def decode_used_blocks(self) -> dict[str, int]:
        """Blocks in use on each decode worker."""
        ...


class Peaks:
    """Owns the peaks of one gateway's view. What other gateways have on a worker is taken to stay as it is.

    Args:
        fleet: The workers.
        runs: All runs, by number; read alone.
        forecast: Output still to come.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        fleet: PeaksFleet,
        runs: Mapping[int, RunView],
        forecast: OutputForecast,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._runs = runs
        self._forecast = forecast
        self._clock = clock
        self._blocks: dict[str, int] = {}
        self._since_s = -1e9

    def add(self, worker_id: str, blocks: int) -> None:
        """A request was placed; it counts in full until the peaks are computed again."""
        if worker_id in self._blocks:
            self._blocks[worker_id] += blocks

    def blocks(self) -> dict[str, int]:
        """Most blocks that each decode worker will hold at once with what it has."""
        now_s = self._clock()
        if now_s - self._since_s < FRESH_S:
            return self._blocks
        self._since_s = now_s
        block = self._forecast.block_size_tokens
        loads: dict[str, list[tuple[int, int]]] = {}
        prompts: set[tuple[str, str]] = set()
        for run in self._runs.values():
            if run.life.decode_id is not None and not run.life.ended:
                own = loads.setdefault(run.life.decode_id, [])
                prompt = run.sibling.prompt
                counted = (run.life.decode_id, prompt.name) in prompts  # with a sibling there
                prompts.add((run.life.decode_id, prompt.name))
                context_tokens = run.life.context_tokens - (prompt.tokens if counted else 0)
                own.append((context_tokens, self._forecast.remaining_tokens(run)))
        self._blocks = {}
        for worker_id, used_blocks in self._fleet.decode_used_blocks().items():
            own = loads.get(worker_id, [])
            held = sum(-(-context // block) for context, _ in own)
            self._blocks[worker_id] = max(0, used_blocks - held) + -(-peak_tokens(own) // block)
        return self._blocks
