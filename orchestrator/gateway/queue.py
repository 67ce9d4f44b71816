"""Runs that wait for workers, and what tenants are charged for. `orchestrator.policy.admission` decides the order."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.run_view import RunView
from orchestrator.policy.admission import AdmissionQueue


class RunQueue:
    """Owns the line of runs that wait, and what each request was charged to its tenant.

    Args:
        max_queued: Most requests that wait; those placed before do not count.
        weight_of: Weight of a tenant.
        forecast: Expected output, which tenants are charged for until it is known.
    """

    def __init__(self, max_queued: int, weight_of: Callable[[str], float], forecast: OutputForecast) -> None:
        self.line: AdmissionQueue[RunView] = AdmissionQueue(max_queued, weight_of)
        """In order; `orchestrator.policy.placing.Placing` takes from it and adds to it."""
        self._forecast = forecast
        self._charged_tokens: dict[int, float] = {}
        """By run, of requests that were placed and are not settled."""

    def cost_tokens(self, run: RunView) -> int:
        """What a request is expected to take; its further choices cost nothing more."""
        request = run.request
        if run.index:
            return 0
        return len(request.prompt_ids) + request.choices * self._forecast.output_tokens(request)

    def charged(self, run: RunView, tokens: float) -> None:
        """A run was placed, and its tenant charged so much for its request; 0 if it had been before."""
        if tokens and run.number not in self._charged_tokens:
            self._charged_tokens[run.number] = tokens

    def settle(self, run: RunView, output_tokens: int) -> int:
        """A request is over, of which this is the first run: charge what all its choices took instead of the forecast.

        Returns:
            Prompt and output tokens; the prompt counts only if it was placed.
        """
        charged = self._charged_tokens.pop(run.number, 0.0)
        if not charged:
            return output_tokens
        used = output_tokens + len(run.request.prompt_ids)
        self.line.settle(run.request.tenant, used - charged, priority=run.request.priority)
        return used

    def discard(self, run: RunView) -> bool:
        """A run is over; whether it waited."""
        waited = run in self.line
        self.line.remove(run)
        return waited
