"""What one worker can take, by the cost models, corrected by what is measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

_LOG_GRID = math.log(1.05)


@dataclass(slots=True)
class WorkerCapacity:
    """KV capacity and speed of one decode and one prefill worker.

    Args:
        total_kv_tokens: KV that a decode worker holds.
        step_s: Seconds of a decode step for a batch size and its summed context.
        prompt_s: Seconds to prefill a prompt.
        itl_s: Objective for the gap between tokens.
        fill: Share of the KV that is in use on average where its 95th percentile just fits; speed is planned for it.
        max_num_seqs: Requests that one engine has in a step; more of them wait inside it.
    """

    total_kv_tokens: int
    step_s: Callable[[int, int], float]
    prompt_s: Callable[[int], float]
    itl_s: float
    fill: float = 0.85
    correction: float = 1.0
    """Measured over modelled time of a step."""
    max_num_seqs: int = 1 << 30
    context_memory_s: float = 15.0
    """Half-life of what is remembered of contexts."""
    _contexts: tuple[float, float] = (0.0, 0.0)
    """Tokens and requests of the last ticks, older ones fading."""
    _prompt_at: dict[int, float] = field(default_factory=dict)

    def observe(self, context_tokens: int, requests: int, seconds: float) -> None:
        """So many requests are in flight with so many tokens, ``seconds`` after the last tick.

        How large one is must not hang on one idle moment: without a context a worker counts as small, and the few
        requests to come as many workers.
        """
        keep = 0.5 ** (seconds / self.context_memory_s)
        tokens, count = self._contexts
        self._contexts = (keep * tokens + context_tokens, keep * count + requests)

    def kv_tokens(self, mean_context_tokens: float) -> float:
        """Tokens a decode worker may hold so that its steps stay within the objective; at most all its KV.

        The context is that of the last ticks; the one given counts where none was taken.
        """
        mean_context_tokens = self._mean_context(mean_context_tokens)
        low, high = 0.0, float(self.total_kv_tokens)
        if self._planned_step_s(high, mean_context_tokens) <= self.itl_s:
            return high
        for _ in range(30):
            middle = (low + high) / 2
            fits = self._planned_step_s(middle, mean_context_tokens) <= self.itl_s
            low, high = (middle, high) if fits else (low, middle)
        return max(1.0, low)

    def tokens_per_s(self, mean_context_tokens: float) -> float:
        """Speed of one request on a worker filled as planned."""
        held = self.fill * self.kv_tokens(mean_context_tokens)
        return 1.0 / max(1e-6, self._planned_step_s(held, self._mean_context(mean_context_tokens)))

    def observe_step(self, batch_size: int, context_tokens: int, step_s: float) -> None:
        """A step of this load was seen to take so long."""
        modelled = self.step_s(max(1, batch_size), context_tokens)
        if modelled > 0 and step_s > 0:
            ratio = min(4.0, max(0.25, step_s / modelled))
            self.correction *= (ratio / self.correction) ** 0.05

    def prefill_s(self, isl_tokens: int) -> float:
        """Seconds of one prefill worker for a prompt, read off a grid of lengths 5 % apart."""
        step = math.ceil(math.log(max(1, isl_tokens)) / _LOG_GRID)
        found = self._prompt_at.get(step)
        if found is None:
            found = self._prompt_at[step] = self.prompt_s(max(1, round(1.05**step)))
        return found

    def _planned_step_s(self, held_tokens: float, mean_context_tokens: float) -> float:
        batch = max(1, round(held_tokens / max(1.0, mean_context_tokens)))
        if batch > self.max_num_seqs:
            return math.inf  # the engine holds no more in a step: the others wait in it
        return self.correction * self.step_s(batch, int(held_tokens))

    def _mean_context(self, otherwise_tokens: float) -> float:
        tokens, count = self._contexts
        return tokens / count if count >= 1e-6 else otherwise_tokens
