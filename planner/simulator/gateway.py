"""The gateway's limits and rules, and clients that wait for their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cluster.errors import ConfigError
from orchestrator.request import lifecycle as lc


class Rules(StrEnum):
    """Which rules a simulated gateway goes by where it may differ from a live one (docs/adr/0027).

    PLAIN: as all published simulations. LIVE: as a live gateway.
    """

    PLAIN = "plain"
    LIVE = "live"


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
        preempt_after_s: Seconds for which a request may find no KV while a decode worker starts, before the longest
            running one is preempted; left out, none ever is.
        rules: Order and bound of the queue, patience, reservations of requests that come again, moves.
        weights: Of tenants, above 0, with the live rules; 1 where left out.
    """

    max_queued_requests: int = 256
    deadline_s: float | None = None
    max_output_tokens: int = 1 << 20
    handoff: lc.Handoff = lc.Handoff.FIRST_TOKEN
    retry_budget: int = 2
    ticket_deadline_s: float = 20.0
    slow_gap_s: float = 0.05
    preempt_after_s: float | None = None
    rules: Rules = Rules.PLAIN
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def live_rules(self) -> bool:
        """Whether it goes by a live gateway's rules in all."""
        return self.rules is Rules.LIVE


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
