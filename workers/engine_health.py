"""Whether a worker's engine does what it should: judged by its steps and by the errors of its legs. Pure."""

from __future__ import annotations

from cluster.errors import WorkerDied
from workers.progress import ProgressWatch


class EngineHealth:
    """Owns the verdict on one engine, and since when each running leg must make it step."""

    def __init__(self, stall_timeout_s: float) -> None:
        self.watch = ProgressWatch(stall_timeout_s)
        self._must_step_from_s: dict[str, float] = {}
        self.died = False
        """The engine core is gone, though this process lives."""

    def leg_failed(self, error: Exception) -> None:
        """A leg ended with an error; some errors say that the engine core is gone."""
        self.died |= isinstance(error, WorkerDied)

    def must_step(self, leg_id: str, from_s: float) -> None:
        """From this time on the leg is work that makes the engine step."""
        self._must_step_from_s[leg_id] = from_s

    def leg_ended(self, leg_id: str) -> None:
        """The leg is no work any more."""
        self._must_step_from_s.pop(leg_id, None)

    def hung(self, steps: int, now_s: float) -> bool:
        """Whether the engine is gone, or has work and makes no step; ``steps`` is its counter of them."""
        if self.died:
            return True
        busy = any(since_s <= now_s for since_s in self._must_step_from_s.values())
        return self.watch.hung(steps, busy, now_s)
