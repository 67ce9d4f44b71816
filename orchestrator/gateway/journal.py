"""What a gateway tells the controller of its requests, and what it hears; see `orchestrator.policy.request_book`."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import grpc

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from baton.v1 import cluster_pb2
from cluster.internal_rpc import InternalRpc

if TYPE_CHECKING:
    from orchestrator.gateway.choice_run import ChoiceRun

log = logging.getLogger("baton.gateway")

MOST_KEPT = 100_000
"""Requests that are remembered while the controller does not answer; the oldest are forgotten first."""
LENGTHS_KEPT = 1000
SEVERITY_HOLDS_S = 60.0


class RequestJournal:
    """Requests that came, run and ended."""

    def __init__(self) -> None:
        self.scaling: cluster_pb2.Scaling | None = None
        """What the controller said last of the pools."""
        self._heard_s = 0.0
        self._came: deque[tuple[float, str, int]] = deque(maxlen=MOST_KEPT)
        self._ended: deque[registry_pb2.RequestEnd] = deque(maxlen=MOST_KEPT)
        self._lengths: dict[str, deque[int]] = {
            phase: deque(maxlen=LENGTHS_KEPT) for phase in ("prompt", "reasoning", "answer")
        }

    def came(self, runs: Sequence[ChoiceRun], received_s: float) -> None:
        """A request was taken. Its further choices find the prompt in the prefix cache."""
        for run in runs:
            isl_tokens = len(run.request.prompt_ids) if run.index == 0 else 0
            self._came.append((received_s, run.request.request_class, isl_tokens))

    def ended(self, run: ChoiceRun) -> None:
        """A choice was finished; one that failed or was cancelled tells no length."""
        usage, timings = run.summary.usage, run.summary.timings
        self._ended.append(
            registry_pb2.RequestEnd(
                request=run.number,
                request_class=run.request.request_class,
                isl_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                answer_tokens=usage.answer_tokens,
                ttft_s=timings.first_token_s,
                e2e_s=timings.last_token_s,
            )
        )
        for phase, tokens in (
            ("prompt", usage.prompt_tokens),
            ("reasoning", usage.reasoning_tokens),
            ("answer", usage.answer_tokens),
        ):
            self._lengths[phase].append(tokens)

    def heard(self, answer: registry_pb2.ReportRequestsResponse) -> None:
        """The controller answered a report."""
        self.scaling = answer.scaling if answer.HasField("scaling") else None
        self._heard_s = time.monotonic()

    @property
    def severity(self) -> float:
        """How much thinking budgets are to shrink; not at all where nothing was heard for long."""
        fresh = time.monotonic() - self._heard_s < SEVERITY_HOLDS_S
        return self.scaling.thinking_severity if self.scaling is not None and fresh else 0.0

    def lengths(self) -> list[cluster_pb2.PhaseLength]:
        """Quantiles of the last requests, by phase."""
        rows = []
        for phase, seen in self._lengths.items():
            if not seen:
                continue
            ordered = sorted(seen)
            p50, p90, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.9, 0.99))
            rows.append(
                cluster_pb2.PhaseLength(
                    phase=phase, requests=len(ordered), p50_tokens=p50, p90_tokens=p90, p99_tokens=p99
                )
            )
        return rows

    def take(self) -> registry_pb2.ReportRequestsRequest:
        """What came and ended since the last call."""
        now_s = time.monotonic()
        came, self._came = self._came, deque(maxlen=MOST_KEPT)
        ended, self._ended = self._ended, deque(maxlen=MOST_KEPT)
        return registry_pb2.ReportRequestsRequest(
            arrived=[
                registry_pb2.RequestArrival(age_s=now_s - time_s, request_class=name, isl_tokens=isl_tokens)
                for time_s, name, isl_tokens in came
            ],
            finished=ended,
        )


def flights(runs: Iterable[ChoiceRun]) -> list[registry_pb2.RequestFlight]:
    """All that is queued or runs."""
    return [
        registry_pb2.RequestFlight(
            request=run.number,
            request_class=run.request.request_class,
            priority=run.request.priority,
            isl_tokens=len(run.request.prompt_ids),
            generated_tokens=len(run.life.output_ids),
            answer_tokens=run.answer_tokens,
            decode_id=run.life.decode_id or "",
            phase=run.life.state.value,
        )
        for run in runs
        if not run.life.ended
    ]


async def report(
    journal: RequestJournal,
    runs: Callable[[], list[ChoiceRun]],
    address: str,
    interval_s: float,
    rpc: InternalRpc | None = None,
) -> None:
    """Tell the controller at ``address`` for ever. What it did not answer is told again, and it counts that once."""
    rpc, gateway, sequence = rpc or InternalRpc(), uuid.uuid4().hex, 0
    untold: registry_pb2.ReportRequestsRequest | None = None
    async with rpc.channel(address) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        while True:
            if untold is None:
                sequence += 1
                untold = journal.take()
                untold.gateway, untold.sequence = gateway, sequence
            del untold.in_flight[:]
            untold.in_flight.extend(flights(runs()))
            try:
                answer = await stub.ReportRequests(untold, metadata=rpc.metadata, timeout=5 * interval_s)
            except grpc.aio.AioRpcError as error:
                log.debug("the controller took no report: %s", error.code().name)
            else:
                untold = None
                journal.heard(answer)
            await asyncio.sleep(interval_s)
