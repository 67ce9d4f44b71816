"""The gateway: takes requests, has them run, and streams back what the workers make. Knows no Ray.

It composes: what serves a model is a `ModelServing`, and a second model would be a second one here, chosen by the
request's model. Admission, routing and the lifecycle are pure and live elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from baton.internal.v1 import registry_pb2
from baton.v1 import cluster_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import ModelNotFound, RequestAborted, RequestRejected, ServingError
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import ClusterSpec
from cluster.trace_context import caller_trace
from orchestrator.gateway.choice_run import ChoiceRun
from orchestrator.gateway.choices import Choices
from orchestrator.gateway.delta_sink import DeltaSink
from orchestrator.gateway.entry import Entry
from orchestrator.gateway.gateway_status import set_gauges, worker_rows
from orchestrator.gateway.journal import RequestJournal
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.model_serving import ModelServing
from orchestrator.gateway.scaled_request import ScaledRequest
from orchestrator.gateway.tokenization import ON_LOOP_ITEMS, Tokenization
from orchestrator.gateway.traffic import Traffic
from orchestrator.request.model_front import ModelFront
from orchestrator.request.prepare import PreparedRequest, prepare
from orchestrator.thinking.ask import read_ask

log = logging.getLogger("baton.gateway")


class Spans(Protocol):
    """Takes requests that are over, for a trace; see `orchestrator.gateway.request_spans`."""

    def finished(
        self, request: pb.GenerateRequest, finished: pb.Finished, caller: Mapping[str, str], received_unix_s: float
    ) -> None:
        """A request ended well."""
        ...

    def failed(
        self,
        request: pb.GenerateRequest,
        error: ServingError,
        caller: Mapping[str, str],
        received_unix_s: float,
        now_unix_s: float,
    ) -> None:
        """A request did not."""
        ...

    def close(self) -> None:
        """Send what is left; may block for some seconds."""
        ...


class Gateway:
    """Serves requests over the workers of one cluster; implements `interface.backend.Backend`.

    Args:
        spec: The cluster.
        front: The model's tokeniser, template and limits.
        spans: Takes requests for traces, where these are on.
    """

    def __init__(self, spec: ClusterSpec, front: ModelFront, spans: Spans | None = None) -> None:
        self.spec = spec
        self._spans = spans
        self.metrics = GatewayMetrics(spec.slo)
        self.model = ModelServing(spec, front, self.metrics)
        self._traffic = Traffic()
        self.journal = RequestJournal(self._traffic, self.model.runs)
        self._entry = Entry(spec)
        self._tokenization = Tokenization(front)
        self._started_s = time.monotonic()
        self._counts: Counter[str] = Counter()

    # --- Backend --------------------------------------------------------------------------------------------

    async def generate(
        self, request: pb.GenerateRequest, sink: DeltaSink | None = None
    ) -> AsyncGenerator[pb.GenerateResponse]:
        """Stream one request; closing the iterator cancels it. With a ``sink``, most deltas go there instead.

        Raises:
            ServingError: the request is bad, was refused, or failed.
        """
        received_s, received_unix_s = time.monotonic(), time.time()
        try:
            with self._entry.enter(request.tenant):
                prepared = await self._prepare(request, received_s)
                served = self._served(request, prepared, received_s, received_unix_s)
                self._traffic.arrived(received_s, prepared.request_class, len(prepared.prompt_ids), len(served.runs))
                with self._charged(prepared, served.runs):
                    async with contextlib.aclosing(served.stream(sink)) as stream:
                        async for message in stream:
                            yield message
        except ServingError as error:
            self._count_error(error)
            self._trace_failure(request, error, received_unix_s)
            raise
        except (GeneratorExit, asyncio.CancelledError):
            self._trace_failure(request, RequestAborted("the caller disconnected"), received_unix_s)
            raise
        self._counts["finished"] += 1
        if self.spec.security.log_text:
            self._log_text(prepared, served.runs)
        self._count_finished(prepared, served)
        finished = served.finished()
        if self._spans is not None:
            self._spans.finished(request, finished, caller_trace.get(), received_unix_s)
        yield pb.GenerateResponse(finished=finished)

    async def tokenize(self, request: pb.GenerateRequest, *, special_tokens: bool) -> list[int]:
        """The ids of the request's prompt or chat.

        Raises:
            ModelNotFound: another model was asked for.
            InvalidRequest: the input is malformed.
        """
        self._check_model(request.model)
        return await self._tokenization.tokenize(request, special_tokens=special_tokens)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of tokens.

        Raises:
            ModelNotFound: another model was asked for.
            InvalidRequest: an id is out of the vocabulary.
        """
        self._check_model(model)
        return await self._tokenization.detokenize(token_ids)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it."""
        return self._tokenization.token_texts(token_ids)

    def models(self) -> list[pb.Model]:
        """The one model served."""
        front = self.model.front
        return [
            pb.Model(
                name=front.name,
                max_model_len_tokens=front.max_model_len_tokens,
                reasoning=front.markers is not None,
                tools=front.calls is not None,
            )
        ]

    def status(self) -> cluster_pb2.Status:
        """Workers, pairs and requests as this gateway sees them."""
        states = self.model.states()
        status = cluster_pb2.Status(
            cluster=self.spec.name,
            model=self.model.front.name,
            version=importlib.metadata.version("baton-inference"),
            uptime_s=time.monotonic() - self._started_s,
            requests=cluster_pb2.RequestCounts(
                queued=states["queued"],
                prefilling=states["prefilling"],
                decoding=states["decoding"],
                finished=self._counts["finished"],
                failed=self._counts["failed"],
                rejected=self._counts["rejected"],
                preempted=self.model.preemption.preempted_requests,
            ),
            workers=worker_rows(self.model.fleet.workers.values()),
            pairs=self.model.fleet.pairs.rows(),
            lengths=self._traffic.lengths(),
        )
        if self.journal.scaling is not None:
            status.scaling.CopyFrom(self.journal.scaling)
        if self.metrics.canary.report is not None:
            status.canary.CopyFrom(self.metrics.canary.report)
        return status

    # --- what the process does with it ------------------------------------------------------------------------

    def refresh_gauges(self) -> None:
        """Set the gauges to the present."""
        set_gauges(self.metrics, self.model.fleet, self.model.states())

    def update_members(self, message: registry_pb2.WatchMembersResponse) -> None:
        """Take a membership from the registry."""
        self.metrics.canary.report = message.canary if message.HasField("canary") else None
        self.model.update_members(message)

    async def report_to(self, controller: str) -> None:
        """Report to the controller at this address what requests there are, until cancelled."""
        interval_s = self.spec.autoscaling.report_interval_s
        await self.journal.report_to(controller, interval_s, InternalRpc(self.spec.security))

    async def close(self) -> None:
        """End all links; streams still open end with an error."""
        await self.model.close()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)

    def _check_model(self, name: str) -> None:
        if name and name != self.model.front.name:
            raise ModelNotFound(f"no model {name[:256]!r} here; this cluster serves {self.model.front.name!r}")

    # --- one request ----------------------------------------------------------------------------------------

    async def _prepare(self, request: pb.GenerateRequest, now_s: float) -> PreparedRequest:
        calls = self.model.front.calls
        if calls is not None and not calls.loaded and (request.chat.tools or calls.reads_all):
            await asyncio.to_thread(calls.load)  # vLLM's parsers take seconds to import
        work = partial(prepare, request, self.model.front, self.spec, now_s=now_s, severity=self.journal.severity)
        return await asyncio.to_thread(work) if request.ByteSize() > ON_LOOP_ITEMS else work()

    def _served(
        self, request: pb.GenerateRequest, prepared: PreparedRequest, received_s: float, received_unix_s: float
    ) -> Choices | ScaledRequest:
        """A request's choices, or the branches of its one answer."""
        times = (received_s, received_unix_s)
        ask = read_ask(request, max_branches=self.spec.gateway.max_choices)
        if ask is None:
            return Choices(prepared, self.model, *times)
        again = partial(prepare, front=self.model.front, spec=self.spec, now_s=received_s)
        return ScaledRequest(ask, request, prepared, self.model, again, self.metrics, *times)

    @contextlib.contextmanager
    def _charged(self, prepared: PreparedRequest, runs: Sequence[ChoiceRun]) -> Iterator[None]:
        """The tenant is charged what is expected, and in the end what it was."""
        first, placer = runs[0], self.model.placer
        expected_tokens = placer.cost_tokens(first)
        self._entry.charge(prepared.tenant, expected_tokens)
        try:
            yield
        finally:
            used_tokens = placer.settle(first, sum(len(run.life.output_ids) for run in runs))
            self._entry.charge(prepared.tenant, used_tokens - expected_tokens)

    def _trace_failure(self, request: pb.GenerateRequest, error: ServingError, received_unix_s: float) -> None:
        if self._spans is not None:
            self._spans.failed(request, error, caller_trace.get(), received_unix_s, time.time())

    def _count_error(self, error: ServingError) -> None:
        if isinstance(error, RequestRejected):
            self._counts["rejected"] += 1
            self.metrics.rejected.labels(error.reason).inc()
        else:
            self._counts["failed"] += 1
            self.metrics.failed.labels(type(error).__name__).inc()

    def _log_text(self, prepared: PreparedRequest, runs: Sequence[ChoiceRun]) -> None:
        def text(ids: Sequence[int]) -> str:
            decoded: str = self.model.front.tokenizer.decode(list(ids), skip_special_tokens=False)
            return decoded

        answers = [text(run.life.output_ids) for run in runs]
        log.info("request %s: prompt %r, output %r", prepared.request_id, text(prepared.prompt_ids), answers)

    def _count_finished(self, prepared: PreparedRequest, served: Choices | ScaledRequest) -> None:
        """Learn from the choices that got all of their tokens; of those that were stopped no length is known."""
        for run in served.whole():
            usage = run.summary.usage
            if prepared.max_tokens:
                self.model.forecast.record(usage.reasoning_tokens + usage.answer_tokens + usage.tool_call_tokens)
            self.metrics.finished.labels(pb.FinishReason.Name(run.summary.finish_reason)).inc()
            if run.summary.retries:
                self.metrics.retries.inc(run.summary.retries)
            self.model.pace.record(run.summary)
            self._traffic.finished(run.number, prepared.request_class, run.summary)
