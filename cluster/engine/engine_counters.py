"""What an engine does, added up from vLLM's statistics of each step."""

from __future__ import annotations

import time
from typing import Any

from cluster.engine.protocol import HANDOFFS, EngineLoad, TransferFigures

RATE_TOKENS = 64
"""Uncached prompt tokens below which a prefill's time is mostly overhead and gives no rate."""


class EngineCounters:
    """Owns the running totals of one engine, fed by vLLM's statistics after every engine step."""

    def __init__(self) -> None:
        self.running = self.waiting = self.steps = self.prompt_tokens = self.output_tokens = 0
        self.kv_usage = 0.0
        self.transfers: dict[str, TransferFigures] = {}
        self.prefill_tokens_per_s = 0.0
        self.preemptions = 0
        self.timed_steps = 0
        self.timed_s = 0.0
        self._step_began_s: float | None = None

    def record(self, scheduler: Any, iteration: Any) -> None:
        """Take one step's statistics."""
        if scheduler is not None:
            now_s = time.monotonic()
            if self._step_began_s is not None:
                self.timed_steps += 1
                self.timed_s += now_s - self._step_began_s
            # Idle engines wait for their next request: that is no step.
            self._step_began_s = now_s if scheduler.num_running_reqs else None
            self.running = scheduler.num_running_reqs
            self.waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            self.kv_usage = scheduler.kv_cache_usage
            self.steps += 1
            for row in (scheduler.kv_connector_stats or {}).get(HANDOFFS, ()):
                self._record_transfer(*row)
        if iteration is not None:
            self.prompt_tokens += iteration.num_prompt_tokens
            self.output_tokens += iteration.num_generation_tokens
            self.preemptions += iteration.num_preempted_reqs

    @property
    def idle(self) -> bool:
        """Whether no request was in the engine after its last step."""
        return self.running + self.waiting == 0

    def record_prefill(self, tokens: int, duration_s: float) -> None:
        """A prompt was computed by an engine that had nothing else to do: the rate a queue will move at."""
        if tokens >= RATE_TOKENS and duration_s > 0:
            rate, known = tokens / duration_s, self.prefill_tokens_per_s
            self.prefill_tokens_per_s = 0.8 * known + 0.2 * rate if known else rate

    def _record_transfer(self, engine_id: str, kv_bytes: int, duration_s: float, start: float, descs: int) -> None:
        leg_id = engine_id.rsplit("-", 1)[0]  # vLLM appends a random part to the id it was given
        old = self.transfers.pop(leg_id, None)
        if old is not None:  # another tensor-parallel rank's share of the same request
            kv_bytes, descs = kv_bytes + old.kv_bytes, descs + old.descriptors
            duration_s, start = max(duration_s, old.duration_s), min(start, old.start_unix_s)
        self.transfers[leg_id] = TransferFigures(kv_bytes, duration_s, start, descs)
        while len(self.transfers) > 4096:
            self.transfers.pop(next(iter(self.transfers)))

    def load(self, total_blocks: int) -> EngineLoad:
        """The totals, of an engine with so many blocks."""
        return EngineLoad(
            running_requests=self.running,
            waiting_requests=self.waiting,
            used_blocks=round(self.kv_usage * total_blocks),
            steps=self.steps,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            preemptions=self.preemptions,
            timed_steps=self.timed_steps,
            timed_s=self.timed_s,
        )
