"""What a worker of a live cluster takes, from what its engines are seen to do. Pure.

The cost models know GPUs; what an engine really does on this machine, its load reports tell: seconds of a step against
the requests in it, and prompt tokens a second. Until enough has been seen, the objectives themselves stand in for a
speed: a worker is then sized by its KV and its batch limit alone, which grows the pools rather late than for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.policy.worker_capacity import WorkerCapacity

HALF_LIFE_STEPS = 2000.0
"""Steps after which an observation counts half: some ten seconds of a busy engine on CPU, a minute on a GPU."""
ENOUGH_STEPS = 50
DEFAULT_PREFILL_TOKENS_PER_S = 10_000.0


@dataclass(slots=True)
class StepTimes:
    """Seconds of a decode step as ``a + b * batch``, fitted to what was seen; old steps fade.

    Example:
        >>> times = StepTimes(0.05)
        >>> for batch in (1, 4, 8, 16):
        ...     times.observe(batch, 0.004 + 0.001 * batch, steps=100)
        >>> round(times.step_s(10), 4)
        0.014
    """

    assumed_s: float
    """What a step takes until enough have been seen."""
    _weight: float = 0.0
    _batch: float = 0.0
    _batch2: float = 0.0
    _step: float = 0.0
    _both: float = 0.0
    seen: float = 0.0

    def observe(self, batch: float, step_s: float, steps: int) -> None:
        """``steps`` steps of a mean batch took ``step_s`` seconds each."""
        if steps <= 0 or step_s <= 0 or batch <= 0:
            return
        keep = 0.5 ** (steps / HALF_LIFE_STEPS)
        self._weight = self._weight * keep + steps
        self._batch = self._batch * keep + steps * batch
        self._batch2 = self._batch2 * keep + steps * batch * batch
        self._step = self._step * keep + steps * step_s
        self._both = self._both * keep + steps * batch * step_s
        self.seen += steps

    def step_s(self, batch: float) -> float:
        """Seconds of a step with so many requests; never less for more of them."""
        if self.seen < ENOUGH_STEPS:
            return self.assumed_s
        mean_batch, mean_step = self._batch / self._weight, self._step / self._weight
        spread = self._batch2 / self._weight - mean_batch**2
        # With all batches alike there is no slope to be seen; half of a step is then laid to the batch.
        slope = 0.5 * mean_step / mean_batch
        if spread > 0.05 * mean_batch**2:
            slope = (self._both / self._weight - mean_batch * mean_step) / spread
        slope = min(max(0.0, slope), mean_step / mean_batch)
        return max(1e-4, mean_step + slope * (batch - mean_batch))


@dataclass(frozen=True, slots=True)
class LoadReading:
    """An engine's counters at one time."""

    time_s: float
    steps: int
    output_tokens: int
    running_requests: int
    held_tokens: int = 0
    """KV in use."""
    prefill_tokens_per_s: float = 0.0
    timed_steps: int = 0
    """Steps that the engine timed itself, from one to the next while it had work, in ``timed_s``; 0 if it does not."""
    timed_s: float = 0.0


@dataclass(slots=True)
class MeasuredCapacity(WorkerCapacity):
    """`WorkerCapacity` of engines that are watched. Feed `read` with each worker's load at each tick.

    Example:
        >>> capacity = measured_capacity(100_000, itl_s=0.05, max_num_seqs=16)
        >>> round(capacity.kv_tokens(500.0) / 500.0, 1)
        16.5
    """

    context_memory_s: float = 150.0
    """That of the length forecast's middle memory: forgotten before those lengths are, a batch-bound worker would count
    as small, and demand as that of the long traces of before."""
    times: StepTimes = field(default_factory=lambda: StepTimes(0.0))
    modelled_step_s: Callable[[int, int], float] | None = None
    _last: dict[str, LoadReading] = field(default_factory=dict)
    _prefill_tokens_per_s: dict[str, float] = field(default_factory=dict)

    def read(self, incarnation: str, load: LoadReading, *, decodes: bool) -> None:
        """Take one worker's counters.

        Where the engine times its steps, those count. Elsewhere it must have been busy at both readings, and is taken
        to have been so between them: a light load, idle between its requests, then looks like slow steps.
        """
        before = self._last.get(incarnation)
        self._last[incarnation] = load
        if load.prefill_tokens_per_s > 0:
            self._prefill_tokens_per_s[incarnation] = load.prefill_tokens_per_s
        if before is None or not decodes:
            return
        steps, seconds = load.steps - before.steps, load.time_s - before.time_s
        if steps <= 0 or seconds <= 0:
            return
        batch = (load.output_tokens - before.output_tokens) / steps
        if load.timed_steps:
            steps, seconds = load.timed_steps - before.timed_steps, load.timed_s - before.timed_s
            if steps <= 0 or seconds <= 0:
                return
        elif not (before.running_requests and load.running_requests):
            return
        step_s = seconds / steps
        if self.modelled_step_s is not None:
            WorkerCapacity.observe_step(
                self, max(1, round(batch)), (load.held_tokens + before.held_tokens) // 2, step_s
            )
        self.times.observe(batch, step_s, steps)

    def forget(self, incarnations: set[str]) -> None:
        """Drop what is known of workers other than these."""
        for table in (self._last, self._prefill_tokens_per_s):
            for gone in set(table) - incarnations:
                del table[gone]

    def observe_step(self, batch_size: int, context_tokens: int, step_s: float) -> None:
        """Ignored: the engines' own counters show it better than the requests' progress, which waiting distorts."""

    def prefill_s(self, isl_tokens: int) -> float:
        """Seconds of one prefill worker for a prompt, at the mean rate engines have shown; before that, modelled."""
        rates = self._prefill_tokens_per_s.values()
        return isl_tokens * len(rates) / sum(rates) if rates else WorkerCapacity.prefill_s(self, isl_tokens)


def measured_capacity(
    total_kv_tokens: int,
    *,
    itl_s: float,
    max_num_seqs: int | None = None,
    modelled_step_s: Callable[[int, int], float] | None = None,
    modelled_prompt_s: Callable[[int], float] | None = None,
) -> MeasuredCapacity:
    """Capacity of a worker of which nothing has been seen yet.

    Args:
        total_kv_tokens: KV that a decode worker holds.
        itl_s: Objective.
        max_num_seqs: Requests in one step, where the engine bounds them.
        modelled_step_s: Seconds of a step for batch and context by the cost model, for hardware that it knows.
        modelled_prompt_s: Seconds of a prompt, likewise.
    """
    times = StepTimes(assumed_s=0.5 * itl_s)

    def step_s(batch: int, context_tokens: int) -> float:
        if modelled_step_s is not None:
            return modelled_step_s(batch, context_tokens)
        return times.step_s(batch)

    def prompt_s(tokens: int) -> float:
        return modelled_prompt_s(tokens) if modelled_prompt_s is not None else tokens / DEFAULT_PREFILL_TOKENS_PER_S

    return MeasuredCapacity(
        total_kv_tokens, step_s, prompt_s, itl_s,
        max_num_seqs=max_num_seqs or 1 << 30, times=times, modelled_step_s=modelled_step_s,
    )  # fmt: skip
