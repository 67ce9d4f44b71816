"""Reports a gateway's requests to the controller, and keeps its answer; see `orchestrator.policy.request_log`."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable, Mapping

import grpc

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from baton.v1 import cluster_pb2
from cluster.internal_rpc import InternalRpc
from orchestrator.gateway.run_view import RunView
from orchestrator.gateway.traffic import Traffic

log = logging.getLogger("baton.gateway")

SEVERITY_HOLDS_S = 60.0


class RequestJournal:
    """Owns the controller's last answer, and the report that it is yet to answer.

    Args:
        model: Served name of the model that they are for.
        traffic: What came and ended.
        runs: All runs, by number; read alone.
    """

    def __init__(self, model: str, traffic: Traffic, runs: Mapping[int, RunView]) -> None:
        self.scaling: cluster_pb2.Scaling | None = None
        """The controller's last report of the pools."""
        self._model = model
        self._traffic = traffic
        self._runs = runs
        self._heard_s = 0.0
        self._gateway = uuid.uuid4().hex
        self._sequence = 0
        self._unanswered: registry_pb2.ReportRequestsRequest | None = None

    @property
    def severity(self) -> float:
        """How much thinking budgets are to shrink; not at all where nothing was heard for long."""
        fresh = time.monotonic() - self._heard_s < SEVERITY_HOLDS_S
        return self.scaling.thinking_severity if self.scaling is not None and fresh else 0.0

    def next_report(self) -> registry_pb2.ReportRequestsRequest:
        """The report to send; one that was not answered again, under its number, so that it counts once."""
        if self._unanswered is None:
            self._sequence += 1
            self._unanswered = self._traffic.take()
            self._unanswered.gateway, self._unanswered.sequence = self._gateway, self._sequence
            self._unanswered.model = self._model
        del self._unanswered.in_flight[:]
        self._unanswered.in_flight.extend(flights(self._runs.values()))
        return self._unanswered

    def heard(self, answer: registry_pb2.ReportRequestsResponse) -> None:
        """The controller answered a report."""
        self._unanswered = None
        self.scaling = answer.scaling if answer.HasField("scaling") else None
        self._heard_s = time.monotonic()

    async def report_to(self, address: str, interval_s: float, rpc: InternalRpc) -> None:
        """Report to the controller at ``address`` until cancelled."""
        async with rpc.channel(address) as channel:
            stub = registry_pb2_grpc.RegistryStub(channel)
            while True:
                report = self.next_report()
                try:
                    answer = await stub.ReportRequests(report, metadata=rpc.metadata, timeout=5 * interval_s)
                except grpc.aio.AioRpcError as error:
                    log.debug("the controller took no report: %s", error.code().name)
                else:
                    self.heard(answer)
                await asyncio.sleep(interval_s)


def flights(runs: Iterable[RunView]) -> list[registry_pb2.RequestFlight]:
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
