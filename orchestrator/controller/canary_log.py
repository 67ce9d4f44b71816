"""What canaries found, for gateways to publish."""

from __future__ import annotations

import logging
import time
from collections import deque

from baton.v1 import cluster_pb2
from orchestrator.policy.canary import Canary

log = logging.getLogger("baton.canary")

FINDINGS = 20


class CanaryLog:
    """Owns the latest findings of the canaries.

    Args:
        core: Decides who computes wrongly; it knows the workers' records.
        enabled: Whether canaries run.
    """

    def __init__(self, core: Canary, *, enabled: bool) -> None:
        self._core = core
        self._enabled = enabled
        self._findings: deque[cluster_pb2.CanaryFinding] = deque(maxlen=FINDINGS)

    def note(self, worker_id: str, sentence: str) -> None:
        """Keep a finding, unless it is the latest one again."""
        log.error("%s", sentence)
        if not self._findings or self._findings[-1].sentence != sentence:
            self._findings.append(cluster_pb2.CanaryFinding(unix_s=time.time(), worker_id=worker_id, sentence=sentence))

    def report(self) -> cluster_pb2.CanaryReport | None:
        """What gateways publish of it; None where it is off."""
        if not self._enabled:
            return None
        now_s, to_unix_s = time.monotonic(), time.time() - time.monotonic()
        return cluster_pb2.CanaryReport(
            workers=[
                cluster_pb2.CanaryStatus(
                    worker_id=worker_id,
                    runs=record.runs,
                    failures=record.failures,
                    cost_ratio=record.share(now_s),
                    last_ok_unix_s=record.last_ok_s + to_unix_s if record.last_ok_s is not None else 0.0,
                    deviation_nat=record.nat,
                    largest_right_nat=record.largest_right_nat,
                )
                for worker_id, record in sorted(self._core.workers.items())
            ],
            findings=list(self._findings),
            has_reference=self._core.reference is not None,
            tolerance_nat=self._core.tolerance_nat,
        )
