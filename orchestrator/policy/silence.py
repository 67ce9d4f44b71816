"""Which side is away when nothing arrives: the workers, or the one that listens. Pure.

A worker that is silent while others speak has stopped. When all fall silent at once, the network of the listener's own
host is the likelier cause, and to give all of them up would lose what they still have.
"""

from __future__ import annotations

HOLD = 4.0
"""Times of the silence timeout for which a common silence is tolerated: with 15 s a minute, as long as with Ray."""


class CutOff:
    """Whether the listener is cut off.

    Args:
        timeout_s: Silence after which a worker alone is given up.

    Example:
        >>> cut = CutOff(15.0)
        >>> [cut.observe(time_s, heard=False, silent=4) for time_s in (0.0, 59.0, 60.0)]
        [True, True, False]
        >>> cut.observe(61.0, heard=True, silent=3)
        False
    """

    def __init__(self, timeout_s: float) -> None:
        self._hold_s = HOLD * timeout_s
        self._since_s: float | None = None

    def observe(self, now_s: float, *, heard: bool, silent: int) -> bool:
        """Take what was heard; whether judgement on the silent ones is to wait.

        Args:
            now_s: Time, monotonic.
            heard: Whether any worker spoke lately.
            silent: How many should have and did not. One alone proves nothing about the listener.
        """
        if heard or silent < 2:
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s < self._hold_s
