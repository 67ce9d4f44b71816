"""The gateway's limits and its queue, and clients that wait for their answers."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.errors import ConfigError
from orchestrator.request import lifecycle as lc
from planner.simulator.flight import Flight

_LAST = 1 << 60


@dataclass(frozen=True)
class GatewaySpec:
    """Limits of the gateway, as in the cluster spec.

    Args:
        max_queued_requests: More are rejected.
        deadline_s: Seconds a request may take; left out, for ever.
        max_output_tokens: Limit a caller sets. The true length ends the request before it.
        handoff: How decode takes over.
        retry_budget: New prefills after a failure.
        ticket_deadline_s: Seconds within which a handoff must begin.
        slow_gap_s: Gaps between tokens above this are counted per request (the ITL objective).
        preempt_after_s: Seconds for which a request may find no room while a decode worker starts, before the longest
            running one makes way; left out, it never does.
    """

    max_queued_requests: int = 256
    deadline_s: float | None = None
    max_output_tokens: int = 1 << 20
    handoff: lc.Handoff = lc.Handoff.FIRST_TOKEN
    retry_budget: int = 2
    ticket_deadline_s: float = 20.0
    slow_gap_s: float = 0.05
    preempt_after_s: float | None = None


@dataclass(frozen=True)
class ClosedLoop:
    """Clients that send their next request when the last has ended; arrival times of the workload are not used.

    Args:
        clients: How many.
        stagger_s: Client ``i`` begins at ``i * stagger_s / clients``; 0 starts all at once.
        think_s: Pause between two requests of a client.
    """

    clients: int
    stagger_s: float = 0.0
    think_s: float = 0.0

    def __post_init__(self) -> None:
        if self.clients < 1 or self.stagger_s < 0 or self.think_s < 0:
            raise ConfigError("closed_loop: expected clients >= 1, stagger_s >= 0 and think_s >= 0")


@dataclass
class Hooks:
    """Observers of a run. ``action`` sees every event with the actions that followed; ``progress`` the share done."""

    action: Callable[[float, int, lc.Event | None, Sequence[lc.Action]], None] | None = None
    progress: Callable[[float], None] | None = None


class GatewayQueue:
    """Requests that wait for workers: by priority, then deadline, then arrival; one placed before goes first."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self._heap: list[tuple[int, float, int, Flight]] = []
        self._order = 0
        self._again_order = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def head(self) -> Flight:
        """The next to be placed."""
        return self._heap[0][3]

    def push(self, flight: Flight, *, again: bool = False) -> None:
        """Add a request; ``again`` if it had been placed before. One that was preempted goes behind its equals."""
        self._order += 1
        self._again_order -= again
        order = self._again_order if again else self._order
        deadline_s = flight.deadline_s
        if flight.waits_for_room:
            deadline_s, order = float("inf"), _LAST + self._order
        heapq.heappush(self._heap, (-flight.priority, deadline_s, order, flight))
        self.prompt_tokens += flight.isl_tokens

    def pop(self) -> Flight:
        """Take the head."""
        flight = heapq.heappop(self._heap)[3]
        self.prompt_tokens -= flight.isl_tokens
        return flight

    def remove(self, flight: Flight) -> None:
        """Take a request out of the middle; harmless if it is not here."""
        kept = [entry for entry in self._heap if entry[3] is not flight]
        if len(kept) < len(self._heap):
            heapq.heapify(kept)
            self._heap = kept
            self.prompt_tokens -= flight.isl_tokens
