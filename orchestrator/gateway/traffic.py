"""What came and what ended, for the controller's scaling and for the status: lists of what is new, and lengths."""

from __future__ import annotations

import time
from collections import deque

from baton.internal.v1 import registry_pb2
from baton.v1 import cluster_pb2
from baton.v1 import inference_pb2 as pb

MOST_KEPT = 100_000
"""Requests that are remembered while the controller does not answer; the oldest are forgotten first."""
LENGTHS_KEPT = 1000


class Traffic:
    """Owns what came and ended since it was last taken, and the lengths of the last requests."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[float, str, int]] = deque(maxlen=MOST_KEPT)
        self._finished: deque[registry_pb2.RequestEnd] = deque(maxlen=MOST_KEPT)
        self._lengths: dict[str, deque[int]] = {
            phase: deque(maxlen=LENGTHS_KEPT) for phase in ("prompt", "reasoning", "answer")
        }

    def arrived(self, received_s: float, request_class: str, isl_tokens: int, choices: int) -> None:
        """A request was admitted. Its further choices find the prompt in the prefix cache."""
        for index in range(choices):
            self._arrived.append((received_s, request_class, 0 if index else isl_tokens))

    def finished(self, number: int, request_class: str, summary: pb.ChoiceSummary) -> None:
        """A choice got all its tokens; of one that failed or was cancelled no length is known."""
        usage, timings = summary.usage, summary.timings
        self._finished.append(
            registry_pb2.RequestEnd(
                request=number,
                request_class=request_class,
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
        arrived, self._arrived = self._arrived, deque(maxlen=MOST_KEPT)
        finished, self._finished = self._finished, deque(maxlen=MOST_KEPT)
        return registry_pb2.ReportRequestsRequest(
            arrived=[
                registry_pb2.RequestArrival(age_s=now_s - time_s, request_class=name, isl_tokens=isl_tokens)
                for time_s, name, isl_tokens in arrived
            ],
            finished=finished,
        )
