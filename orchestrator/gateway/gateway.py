"""The gateway: takes requests, has them run, and streams back what the workers make. Knows no Ray.

It composes: what serves a model is a `ModelServing`, chosen by the request's model. Admission, routing and the
lifecycle are pure and live elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from baton.internal.v1 import registry_pb2
from baton.v1 import cluster_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import RequestAborted, RequestRejected, ServingError
from cluster.internal_rpc import InternalRpc
from cluster.spec.portfolio import Portfolio
from cluster.trace_context import caller_trace
from orchestrator.gateway.choice_run import ChoiceRun
from orchestrator.gateway.choices import Choices
from orchestrator.gateway.delta_sink import DeltaSink
from orchestrator.gateway.entry import Entry
from orchestrator.gateway.gateway_status import set_gauges, total, worker_rows
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.model_choice import ModelChoice
from orchestrator.gateway.model_serving import ModelServing
from orchestrator.gateway.models_served import LoadModel, ModelsServed
from orchestrator.gateway.scaled_request import ScaledRequest
from orchestrator.gateway.tokenization import ON_LOOP_ITEMS
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
        portfolio: The models, and the cluster.
        fronts: What a gateway knows of each model, by name.
        spans: Takes requests for traces, where these are on.
        load: Reads a model that is added later; see `LoadModel`.
    """

    def __init__(
        self,
        portfolio: Portfolio,
        fronts: Mapping[str, ModelFront],
        spans: Spans | None = None,
        *,
        load: LoadModel | None = None,
    ) -> None:
        self.spec = portfolio.first
        """Of the first model; what is asked of it here holds for the whole cluster."""
        self._spans = spans
        self.metrics = GatewayMetrics()
        self._models = ModelsServed(portfolio, fronts, self.metrics, load)
        self._choice = ModelChoice(
            self._models.serving, portfolio.routes, self.metrics.routed, leaving=self._models.leaving
        )
        self._entry = Entry(self.spec)
        self._started_s = time.monotonic()

    @property
    def models_served(self) -> Mapping[str, ModelServing]:
        """What serves each model, by name."""
        return self._models.serving

    @property
    def model(self) -> ModelServing:
        """The first model, which a request gets that names none."""
        return self._choice.find("")

    # --- Backend --------------------------------------------------------------------------------------------

    async def generate(
        self, request: pb.GenerateRequest, sink: DeltaSink | None = None
    ) -> AsyncGenerator[pb.GenerateResponse]:
        """Stream one request; closing the iterator cancels it. With a ``sink``, most deltas go there instead.

        Raises:
            ServingError: the request is bad, was refused, or failed.
        """
        received_s, received_unix_s = time.monotonic(), time.time()
        model: ModelServing | None = None
        try:
            with self._entry.enter(request.tenant):
                model = self._choice.choose(request)
                prepared = await self._prepare(model, request, received_s)
                served = self._served(model, request, prepared, received_s, received_unix_s)
                runs, isl_tokens = served.runs, len(prepared.prompt_ids)
                model.traffic.arrived(received_s, prepared.request_class, isl_tokens, len(runs))
                with self._charged(model, prepared, runs):
                    async with contextlib.aclosing(served.stream(sink)) as stream:
                        async for message in stream:
                            yield message
        except ServingError as error:
            self._count_error(model, error)
            self._trace_failure(request, error, received_unix_s)
            raise
        except (GeneratorExit, asyncio.CancelledError):
            self._trace_failure(request, RequestAborted("the caller disconnected"), received_unix_s)
            raise
        model.counts["finished"] += 1
        if self.spec.security.log_text:
            _log_text(model, prepared, served.runs)
        _count_finished(model, prepared, served)
        finished = served.finished()
        finished.model = model.front.name
        if request.model not in ("", finished.model):
            finished.route = request.model
        if self._spans is not None:
            self._spans.finished(request, finished, caller_trace.get(), received_unix_s)
        yield pb.GenerateResponse(finished=finished)

    async def tokenize(self, request: pb.GenerateRequest, *, special_tokens: bool) -> list[int]:
        """The ids of the request's prompt or chat.

        Raises:
            ModelNotFound: another model was asked for.
            InvalidRequest: the input is malformed.
        """
        return await self._choice.find(request.model).tokenization.tokenize(request, special_tokens=special_tokens)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of tokens.

        Raises:
            ModelNotFound: another model was asked for.
            InvalidRequest: an id is out of the vocabulary.
        """
        return await self._choice.find(model).tokenization.detokenize(token_ids)

    def token_texts(self, model: str, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it."""
        return self._choice.find(model).tokenization.token_texts(token_ids)

    def models(self) -> list[pb.Model]:
        """The models served, then the routes."""
        return self._choice.models()

    def status(self) -> cluster_pb2.Status:
        """Workers, pairs and requests as this gateway sees them."""
        models = [model.status() for model in self.models_served.values()]
        fleets = [model.fleet for model in self.models_served.values()]
        status = cluster_pb2.Status(
            cluster=self.spec.name,
            model=models[0].name,
            version=importlib.metadata.version("baton-inference"),
            uptime_s=time.monotonic() - self._started_s,
            requests=total(model.requests for model in models),
            workers=[row for fleet in fleets for row in worker_rows(fleet.workers.values())],
            pairs=[row for fleet in fleets for row in fleet.pairs.rows()],
            lengths=models[0].lengths,
            scaling=models[0].scaling if models[0].HasField("scaling") else None,
            models=models,
        )
        if self.metrics.canary.report is not None:
            status.canary.CopyFrom(self.metrics.canary.report)
        return status

    # --- what the process does with it ------------------------------------------------------------------------

    def refresh_gauges(self) -> None:
        """Set the gauges to the present."""
        for model in self.models_served.values():
            set_gauges(model.metrics, model.fleet, model.states())

    def update_members(self, message: registry_pb2.WatchMembersResponse) -> None:
        """Take a membership from the registry."""
        self.metrics.canary.report = message.canary if message.HasField("canary") else None
        self._models.update(message)

    def report_to(self, controller: str) -> None:
        """Report to the controller at this address what requests there are, until the gateway is closed."""
        self._models.report_to(controller, InternalRpc(self.spec.security))

    async def close(self) -> None:
        """End all links; streams still open end with an error."""
        await self._models.close()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)

    # --- one request ----------------------------------------------------------------------------------------

    async def _prepare(self, model: ModelServing, request: pb.GenerateRequest, now_s: float) -> PreparedRequest:
        calls = model.front.calls
        if calls is not None and not calls.loaded and (request.chat.tools or calls.reads_all):
            await asyncio.to_thread(calls.load)  # vLLM's parsers take seconds to import
        work = partial(prepare, request, model.front, model.spec, now_s=now_s, severity=model.journal.severity)
        return await asyncio.to_thread(work) if request.ByteSize() > ON_LOOP_ITEMS else work()

    def _served(
        self,
        model: ModelServing,
        request: pb.GenerateRequest,
        prepared: PreparedRequest,
        received_s: float,
        received_unix_s: float,
    ) -> Choices | ScaledRequest:
        """A request's choices, or the branches of its one answer."""
        times = (received_s, received_unix_s)
        ask = read_ask(request, self.spec.gateway.max_choices, self.spec.tenant(prepared.tenant))
        if ask is None:
            return Choices(prepared, model, *times)
        again = partial(prepare, front=model.front, spec=model.spec, now_s=received_s)
        return ScaledRequest(ask, request, prepared, model, again, *times)

    @contextlib.contextmanager
    def _charged(self, model: ModelServing, prepared: PreparedRequest, runs: Sequence[ChoiceRun]) -> Iterator[None]:
        """The tenant is charged what is expected, and in the end what it was."""
        first, placer = runs[0], model.placer
        expected_tokens = placer.cost_tokens(first)
        self._entry.charge(prepared.tenant, expected_tokens)
        try:
            yield
        finally:
            used_tokens = placer.settle(first, sum(len(run.life.output_ids) for run in runs))
            self._entry.charge(prepared.tenant, used_tokens - expected_tokens)
            self._entry.spend(prepared.tenant, sum(run.cost_usd for run in runs))

    def _trace_failure(self, request: pb.GenerateRequest, error: ServingError, received_unix_s: float) -> None:
        if self._spans is not None:
            self._spans.failed(request, error, caller_trace.get(), received_unix_s, time.time())

    def _count_error(self, model: ModelServing | None, error: ServingError) -> None:
        """``model`` is None for a request that was refused before it got one."""
        name = model.front.name if model is not None else ""
        counts = (model or self.model).counts
        if isinstance(error, RequestRejected):
            counts["rejected"] += 1
            self.metrics.rejected.labels(name, error.reason).inc()
        else:
            counts["failed"] += 1
            self.metrics.failed.labels(name, type(error).__name__).inc()


def _log_text(model: ModelServing, prepared: PreparedRequest, runs: Sequence[ChoiceRun]) -> None:
    def text(ids: Sequence[int]) -> str:
        decoded: str = model.front.tokenizer.decode(list(ids), skip_special_tokens=False)
        return decoded

    answers = [text(run.life.output_ids) for run in runs]
    log.info("request %s: prompt %r, output %r", prepared.request_id, text(prepared.prompt_ids), answers)


def _count_finished(model: ModelServing, prepared: PreparedRequest, served: Choices | ScaledRequest) -> None:
    """Learn from the choices that got all of their tokens; of those that were stopped no length is known."""
    for run in served.whole():
        usage = run.summary.usage
        if prepared.max_tokens:
            model.forecast.record(usage.reasoning_tokens + usage.answer_tokens + usage.tool_call_tokens)
        model.metrics.finished.labels(pb.FinishReason.Name(run.summary.finish_reason)).inc()
        if run.summary.retries:
            model.metrics.retries.inc(run.summary.retries)
        model.pace.record(run.summary)
        model.traffic.finished(run.number, prepared.request_class, run.summary)
