"""Which workers have been silent for too long, unless it was the gateway that was away. Pure: time is an argument."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.policy.silence import CutOff


@dataclass(frozen=True, slots=True)
class Verdict:
    """``silent`` workers are to be given up; with ``renew`` nobody is, and each has its time again."""

    silent: tuple[str, ...] = ()
    renew: bool = False
    cut_off: bool = False
    """Nobody at all is heard, since this check: it is likely the gateway that is away."""


class SilenceWatch:
    """Owns what a gateway concludes from its workers' silence.

    After a pause of its own (a stopped or starved gateway, a host that was cut off) each worker has its time again,
    since what they reported meanwhile was not read.

    Args:
        timeout_s: Silence after which a worker is given up: a stopped process keeps its connections open.

    Example:
        >>> watch = SilenceWatch(15.0)
        >>> watch.check(100.0, {"a": 80.0, "b": 100.0}).renew
        True
        >>> watch.check(101.0, {"a": 80.0, "b": 100.0}).silent
        ('a',)
    """

    def __init__(self, timeout_s: float) -> None:
        self.every_s = min(1.0, timeout_s / 10)
        """Seconds between two checks: several in a third of the time-out, or each would look like a pause."""
        self._timeout_s = timeout_s
        self._cut_off = CutOff(timeout_s)
        self._was_cut_off = False
        self._checked_s = -math.inf

    def check(self, now_s: float, heard_s: Mapping[str, float]) -> Verdict:
        """Judge by when each connected worker was last heard. To be called every ``every_s``."""
        paused = now_s - self._checked_s > self._timeout_s / 3
        self._checked_s = now_s
        heard = not heard_s or now_s - max(heard_s.values()) < self._timeout_s / 3
        if self._cut_off.observe(now_s, heard=heard, silent=len(heard_s)):
            first, self._was_cut_off = not self._was_cut_off, True
            return Verdict(cut_off=first)
        if paused or self._was_cut_off:
            self._was_cut_off = False
            return Verdict(renew=True)
        return Verdict(tuple(name for name, last_s in heard_s.items() if now_s - last_s >= self._timeout_s))
