"""What came and what ended, for the scaling policy: totals, and what is new since it last asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.policy.scaling_policy import Arrival, FinishedRequest


@dataclass(slots=True)
class Traffic:
    """Requests of a run. Lists are kept only for a policy that takes them (``listed``)."""

    listed: bool
    arrived_requests: int = 0
    arrived_tokens: int = 0
    _arrivals: list[Arrival] = field(default_factory=list)
    _finished: list[FinishedRequest] = field(default_factory=list)

    def arrived(self, now_s: float, tenant: str, isl_tokens: int) -> None:
        """A request came."""
        self.arrived_requests += 1
        self.arrived_tokens += isl_tokens
        if self.listed:
            self._arrivals.append(Arrival(now_s, tenant, isl_tokens))

    def finished(self, request: FinishedRequest) -> None:
        """A request got all its tokens."""
        if self.listed:
            self._finished.append(request)

    def take_arrivals(self) -> Sequence[Arrival]:
        """Requests that came since this was last asked."""
        new, self._arrivals = self._arrivals, []
        return new

    def take_finished(self) -> Sequence[FinishedRequest]:
        """Requests that finished since this was last asked."""
        new, self._finished = self._finished, []
        return new
