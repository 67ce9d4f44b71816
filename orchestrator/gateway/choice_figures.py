"""What one choice took: times, tokens, transfers and cost, for its summary and the metrics."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from baton.internal.v1 import worker_pb2
from baton.v1 import inference_pb2 as pb
from kv_transfer.ticket import HandoffTicket
from orchestrator.gateway.metrics import ModelMetrics

FOLD_GAPS = 4096
"""Gaps after which they are put into the metric though the choice goes on: a long trace shows before its end."""


class ChoiceFigures:
    """Owns a choice's summary, and fills it while it runs. Of a token no more is kept than the gap before it.

    Args:
        metrics: The gateway's.
        index: Which choice this is.
        received_s: Monotonic time at which the request came.
        received_unix_s: The same on the wall clock, against which transfers are stamped.
    """

    def __init__(self, metrics: ModelMetrics, index: int, received_s: float, received_unix_s: float) -> None:
        self.summary = pb.ChoiceSummary(choice=index)
        self.cached_tokens = 0
        self.cost_usd = 0.0
        """Share of the workers' price."""
        self._metrics = metrics
        self._received_s = received_s
        self._received_unix_s = received_unix_s
        self._gaps_s = array("d")
        self._folded_gaps = 0
        self._tokens_without_gap = 0
        """Tokens that came together with the one before."""
        self._last_token_s = 0.0
        self._answered = self._calls_tools = False
        self._handoff_begun_s = 0.0
        self._leg_since_s = 0.0

    @property
    def has_first_token(self) -> bool:
        """Whether tokens have gone to the caller."""
        return bool(self._last_token_s)

    @property
    def handing_over(self) -> bool:
        """Whether a ticket is out and decode's first token has not come."""
        return bool(self._handoff_begun_s)

    def placed(self, workers: pb.Workers, now: float) -> float:
        """Workers were found; returns the seconds until then."""
        queue_s = now - self._received_s
        self.summary.workers.CopyFrom(workers)
        if not self.summary.timings.queue_s:
            self.summary.timings.queue_s = queue_s
            self._metrics.queue_s.observe(queue_s)
        return queue_s

    def leg_starts(self, *, prefills: bool, ticket: bool, now: float) -> None:
        """A leg goes to its worker."""
        timings, since_s = self.summary.timings, now - self._received_s
        if prefills:
            timings.prefill_start_s = timings.prefill_start_s or since_s
        elif ticket:
            self._handoff_begun_s = now
            timings.handoff_start_s = timings.handoff_start_s or since_s
        self._leg_since_s = now

    def cached(self, tokens: int) -> None:
        """A leg found so many tokens of its prompt; those before the first token count."""
        if not self.summary.timings.first_token_s and tokens:
            self.cached_tokens = tokens

    def moved(self, recomputed_tokens: int) -> None:
        """A move had tokens computed again."""
        self.summary.moved_recomputed_tokens += recomputed_tokens
        self._metrics.moved_recomputed.inc(recomputed_tokens)

    def tokens(self, count: int, usd_per_s: float, now: float) -> float | None:
        """Tokens go to the caller; returns the seconds to the first one, if it is among them."""
        ttft_s = None
        if not self._last_token_s:
            ttft_s = self.summary.timings.first_token_s = now - self._received_s
            self._metrics.ttft_s.observe(ttft_s)
            count -= 1
        if count > 0:
            # Tokens that came together: one gap as the caller saw it, then none.
            self._gaps_s.append(now - self._last_token_s)
            self._tokens_without_gap += count - 1
            if len(self._gaps_s) - self._folded_gaps == FOLD_GAPS:
                self.fold()
        self.paid(usd_per_s, now)
        self._last_token_s = now
        return ttft_s

    def paid(self, usd_per_s: float, now: float) -> None:
        """The present leg's worker costs so much a second, until now."""
        if self._leg_since_s:
            self.cost_usd += (now - self._leg_since_s) * usd_per_s
        self._leg_since_s = now

    def fold(self) -> None:
        """Put the gaps so far into the metric; done on the way, too, and for a choice that has no end."""
        if len(self._gaps_s) > self._folded_gaps:
            self._metrics.itl_s.fold(np.frombuffer(self._gaps_s[self._folded_gaps :]))
            self._folded_gaps = len(self._gaps_s)

    def go_on(self, deltas: Iterable[pb.Delta], now: float) -> None:
        """Deltas go to the caller: phases go on, or begin. Calls of tools are part of the answer."""
        for delta in deltas:
            if delta.phase == pb.PHASE_REASONING or not delta.token_ids:
                continue
            self.answers(now)
            if delta.phase == pb.PHASE_TOOL_CALL and not self._calls_tools:
                self._calls_tools = True
                self.summary.timings.first_tool_call_token_s = now - self._received_s

    def answers(self, now: float) -> None:
        """The answer goes on, or begins."""
        if not self._answered:
            self._answered = True
            self.summary.timings.first_answer_token_s = now - self._received_s
            self._metrics.ttfat_s.observe(self.summary.timings.first_answer_token_s)

    def transferred(self, transfer: worker_pb2.Transfer) -> None:
        """KV was read."""
        handoff, timings = self.summary.handoff, self.summary.timings
        handoff.bytes += transfer.bytes
        handoff.transfer_s += transfer.duration_s
        start = transfer.start_unix_s - self._received_unix_s
        timings.transfer_start_s = timings.transfer_start_s or start
        timings.transfer_end_s = start + transfer.duration_s
        self._metrics.transfer_s.observe(transfer.duration_s)
        self._metrics.handoff_bytes.observe(transfer.bytes)

    def handed_over(self, ticket: HandoffTicket, transport: str, now: float) -> None:
        """Decode's first token behind a ticket has come."""
        handoff, timings = self.summary.handoff, self.summary.timings
        handoff.handoff_s += now - self._handoff_begun_s
        self._handoff_begun_s = 0.0
        timings.decode_first_token_s = timings.decode_first_token_s or now - self._received_s
        handoff.tokens = ticket.num_tokens
        handoff.transport = transport
        self._metrics.handoff_s.observe(handoff.handoff_s)

    def end(self, reason: pb.FinishReason, usage: pb.Usage, given_budget_tokens: int | None) -> None:
        """The choice is over; ``given_budget_tokens`` is a budget that the cluster gave instead of what was asked."""
        summary, metrics, timings = self.summary, self._metrics, self.summary.timings
        summary.finish_reason = reason
        summary.usage.CopyFrom(usage)
        summary.usage.cached_tokens = self.cached_tokens
        if given_budget_tokens is not None:
            clipped = int(summary.reasoning_closed or given_budget_tokens == 0)
            summary.usage.reduced_budget_tokens, summary.usage.clipped_traces = given_budget_tokens, clipped
            metrics.reduced_budgets.inc()
            metrics.clipped_traces.inc(clipped)
        timings.last_token_s = self._last_token_s - self._received_s if self._last_token_s else 0.0
        if self._gaps_s:
            gaps_s = np.concatenate([np.frombuffer(self._gaps_s), np.zeros(self._tokens_without_gap)])
            gaps_s.sort()
            timings.itl_p50_s, timings.itl_p99_s = _quantile(gaps_s, 0.5), _quantile(gaps_s, 0.99)
        if self._last_token_s:
            metrics.e2e_s.observe(timings.last_token_s)
        metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        metrics.tokens.labels("cached").inc(self.cached_tokens)
        metrics.tokens.labels("reasoning").inc(usage.reasoning_tokens)
        metrics.tokens.labels("answer").inc(usage.answer_tokens)


def _quantile(ordered: np.ndarray[Any, np.dtype[np.float64]], share: float) -> float:
    """As `numpy.quantile` has it, for a tenth of its time where there are few values."""
    position = share * (len(ordered) - 1)
    low = int(position)
    below, above = float(ordered[low]), float(ordered[min(low + 1, len(ordered) - 1)])
    return below + (position - low) * (above - below)
