"""Virtual time: a clock and a heap of what happens next. Nothing here knows about inference."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

FIRST, LATE, LAST = 0, 1, 2
"""Ranks among events of one instant: causes, then steps that should see all of them, then clean-up."""


class Kernel:
    """Runs actions in order of time, then rank, then the order they were asked for; so a run repeats exactly.

    Example:
        >>> kernel, seen = Kernel(), []
        >>> kernel.at(2.0, seen.append, "b")
        >>> kernel.at(1.0, seen.append, "a")
        >>> kernel.run()
        >>> seen, kernel.now_s
        (['a', 'b'], 2.0)
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, int, Callable[[Any], object], Any]] = []
        self._order = itertools.count()
        self._stopped = False

    @property
    def pending(self) -> int:
        """Events that are still to come."""
        return len(self._heap)

    def at(self, time_s: float, action: Callable[[Any], object], argument: Any = None, rank: int = FIRST) -> None:
        """Call ``action(argument)`` at ``time_s``; a time already past means at once.

        There is no cancel: an action whose cause has gone should notice by itself and do nothing.
        """
        time_s = max(time_s, self.now_s)
        heapq.heappush(self._heap, (time_s, rank, next(self._order), action, argument))

    def stop(self) -> None:
        """End `run` after the present action."""
        self._stopped = True

    def run(self, until_s: float = float("inf")) -> None:
        """Run until nothing is left, `stop` is called or the next action lies past ``until_s`` seconds."""
        heap, pop = self._heap, heapq.heappop
        self._stopped = False
        while heap and not self._stopped:
            if heap[0][0] > until_s:
                self.now_s = until_s
                return
            time_s, _, _, action, argument = pop(heap)
            self.now_s = time_s
            self.events += 1
            action(argument)


class Timers:
    """Events of the run itself, such as samples: unlike others they alone do not keep it going."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.pending = 0

    def at(self, time_s: float, action: Callable[[object], object]) -> None:
        """Call ``action(None)`` then."""
        self.pending += 1
        self._kernel.at(time_s, self._fire, action)

    def _fire(self, action: Callable[[object], object]) -> None:
        self.pending -= 1
        action(None)
