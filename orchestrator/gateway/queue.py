"""Runs that wait for workers, their order, and what tenants are charged for. By `orchestrator.policy.admission`."""

from __future__ import annotations

from collections.abc import Callable

from cluster.errors import RequestRejected
from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.run_view import RunView
from orchestrator.policy.admission import AdmissionQueue
from orchestrator.request.lifecycle import Displaced


class RunQueue:
    """Owns the runs that wait, and the fairness between tenants.

    Args:
        max_queued: Most requests that wait; those placed before do not count.
        weight_of: Weight of a tenant.
        forecast: Expected output, which tenants are charged for until it is known.
    """

    def __init__(self, max_queued: int, weight_of: Callable[[str], float], forecast: OutputForecast) -> None:
        self._waiting: AdmissionQueue[RunView] = AdmissionQueue(max_queued, weight_of)
        self._forecast = forecast
        self._charged_tokens: dict[int, float] = {}
        """By run, of requests that were placed and are not settled."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, run: RunView) -> bool:
        return run in self._waiting

    @property
    def head(self) -> RunView | None:
        """The run to be placed next; None if nobody waits."""
        return self._waiting.head

    def cost_tokens(self, run: RunView) -> int:
        """What a request is expected to take; its further choices cost nothing more."""
        request = run.request
        if run.index:
            return 0
        return len(request.prompt_ids) + request.choices * self._forecast.output_tokens(request)

    def goes_first(self, run: RunView) -> bool:
        """Whether the run need not wait for anybody."""
        if run.waits_for_headroom:
            return not len(self._waiting)
        return self._waiting.goes_first(run.request.priority)

    def push(self, run: RunView, *, again: bool, now_s: float) -> None:
        """Let a run wait; the run that it displaces is ended.

        Raises:
            RequestRejected: the queue is full, or would not place it by its deadline.
        """
        displaced = self._waiting.push(
            run,
            priority=run.request.priority,
            tenant=run.request.tenant,
            cost_tokens=self.cost_tokens(run),
            deadline_s=run.request.deadline_s,
            now_s=now_s,
            again=again,
            waits_for_headroom=run.waits_for_headroom,
        )
        if displaced is not None:
            displaced.post(Displaced(self._displaced_error()))

    def take(self, run: RunView, *, now_s: float) -> None:
        """A run that waited was placed: its tenant is charged."""
        charged = self._waiting.take(run, now_s=now_s)
        if charged and not self._charged_tokens.get(run.number):
            self._charged_tokens[run.number] = charged

    def charge(self, run: RunView) -> None:
        """A run was placed without waiting."""
        cost_tokens = self.cost_tokens(run)
        self._waiting.charge(run.request.tenant, cost_tokens, priority=run.request.priority)
        self._charged_tokens[run.number] = cost_tokens

    def settle(self, run: RunView, output_tokens: int) -> int:
        """A request is over, of which this is the first run: charge what all its choices took instead of the forecast.

        Returns:
            Prompt and output tokens; the prompt counts only if it was placed.
        """
        charged = self._charged_tokens.pop(run.number, 0.0)
        if not charged:
            return output_tokens
        used = output_tokens + len(run.request.prompt_ids)
        self._waiting.settle(run.request.tenant, used - charged, priority=run.request.priority)
        return used

    def discard(self, run: RunView) -> bool:
        """A run is over; whether it waited."""
        waited = run in self._waiting
        self._waiting.remove(run)
        return waited

    def _displaced_error(self) -> RequestRejected:
        return RequestRejected(
            "the queue is full, and a request of a higher priority or of a tenant with fewer places took this one's; "
            "retry later",
            retry_after_s=self._waiting.retry_after_s(),
            reason="displaced",
        )
