"""Whether an engine makes progress. Pure: time is an argument."""

from __future__ import annotations


class ProgressWatch:
    """Distinguishes an engine that hangs from one that has nothing to do. Owns the last progress seen.

    A process that lives may hold an engine that does not step: stopped, or stuck in a read. Once found hung it stays
    so until it steps again, since an engine whose work was aborted has the figures of an idle one.

    Example:
        >>> watch = ProgressWatch(stall_timeout_s=20)
        >>> watch.hung(steps=7, busy=True, now_s=0), watch.hung(7, True, 19), watch.hung(7, True, 20)
        (False, False, True)
        >>> watch.hung(7, False, 21), watch.hung(8, True, 22)
        (True, False)
    """

    def __init__(self, stall_timeout_s: float) -> None:
        self.stall_timeout_s = stall_timeout_s
        self._steps = -1
        self._since_s: float | None = None
        self._hung = False

    def hung(self, steps: int, busy: bool, now_s: float) -> bool:
        """Sample the engine: its step counter, and whether it has work that must make it step."""
        if steps != self._steps:
            self._steps, self._since_s, self._hung = steps, None, False
        if not busy:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        elif now_s - self._since_s >= self.stall_timeout_s:
            self._hung = True
        return self._hung
