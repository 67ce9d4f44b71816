"""Spans of requests, by OpenTelemetry's SDK. Imported only where the spec has ``gateway.tracing``.

They are made of a request's timings when it is over, so that tracing costs nothing a token. Names and attributes are
OpenTelemetry's for generative AI, what it has none for begins with ``baton.``; no text is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from baton.v1 import inference_pb2 as pb
from cluster.errors import ServingError
from cluster.spec.tracing_settings import TracingSettings

EXPORT_TIMEOUT_S = 5

Attributes = dict[str, str | int | float | bool]


class RequestSpans:
    """Owns the SDK's provider. Spans go out in batches, from a thread of its own.

    Args:
        settings: What to trace, and where to.
        cluster: The cluster's name.
        processor: Takes the spans, in place of the settings' collector.
    """

    def __init__(self, settings: TracingSettings, cluster: str, *, processor: SpanProcessor | None = None) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "baton-gateway", "service.namespace": cluster}),
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        )
        self._provider.add_span_processor(processor or BatchSpanProcessor(_exporter(settings)))
        self._tracer = self._provider.get_tracer("baton")
        self._propagator = TraceContextTextMapPropagator()

    def finished(
        self, request: pb.GenerateRequest, finished: pb.Finished, caller: Mapping[str, str], received_unix_s: float
    ) -> None:
        """A request ended well.

        Args:
            request: As it came.
            finished: Its last event.
            caller: ``traceparent`` and ``tracestate``, as far as they came.
            received_unix_s: When it came.
        """
        span = self._begin(request, caller, received_unix_s, finished.request_id, f" {finished.model}")
        last_s = max((_last_s(choice.timings) for choice in finished.choices), default=0.0)
        usage = finished.usage
        span.set_attributes(
            {
                "gen_ai.request.model": request.model or finished.model,
                "gen_ai.response.model": finished.model,
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "gen_ai.usage.output_tokens": usage.reasoning_tokens + usage.answer_tokens,
                "baton.usage.reasoning_tokens": usage.reasoning_tokens,
                "baton.usage.tool_call_tokens": usage.tool_call_tokens,
                "gen_ai.response.finish_reasons": [_finish_reason(choice) for choice in finished.choices],
            }
        )
        context = trace.set_span_in_context(span)
        for choice in finished.choices:
            for name, start_s, end_s, attributes in _phases(choice):
                child = self._tracer.start_span(
                    name,
                    context,
                    attributes={"baton.choice": choice.choice, **attributes},
                    start_time=_unix_ns(received_unix_s + start_s),
                )
                child.end(_unix_ns(received_unix_s + end_s))
        span.end(_unix_ns(received_unix_s + last_s))

    def failed(
        self,
        request: pb.GenerateRequest,
        error: ServingError,
        caller: Mapping[str, str],
        received_unix_s: float,
        now_unix_s: float,
    ) -> None:
        """A request was refused, failed, or lost its caller. An error's text may quote the caller's: it stays out."""
        span = self._begin(request, caller, received_unix_s, request.request_id)
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        span.end(_unix_ns(now_unix_s))

    def close(self) -> None:
        """Send what is left. Blocks for some seconds where the collector does not answer."""
        self._provider.shutdown()

    def _begin(
        self,
        request: pb.GenerateRequest,
        caller: Mapping[str, str],
        received_unix_s: float,
        request_id: str,
        of_model: str = "",
    ) -> Span:
        """The request's own span. One that failed has no model in its name: what it asked for may be any text."""
        operation = "chat" if request.HasField("chat") else "text_completion"
        attributes: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "baton",
            "baton.request_id": request_id,
            "baton.tenant": request.tenant,
            "baton.priority": request.priority,
        }
        if request.sampling.HasField("max_tokens"):
            attributes["gen_ai.request.max_tokens"] = request.sampling.max_tokens
        return self._tracer.start_span(
            f"{operation}{of_model}",
            self._propagator.extract(caller),
            SpanKind.SERVER,
            attributes,
            start_time=_unix_ns(received_unix_s),
        )


def _phases(choice: pb.ChoiceSummary) -> Iterable[tuple[str, float, float, Attributes]]:
    """Name, seconds from receipt to start and end, and attributes of each part of a choice that took place."""
    times, workers, handoff = choice.timings, choice.workers, choice.handoff
    last_s = _last_s(times)
    reader = workers.prefill or workers.decode
    read_s = times.handoff_start_s or times.first_token_s or last_s
    decode_s = times.decode_first_token_s or times.first_token_s
    moved: Attributes = {"baton.handoff.bytes": handoff.bytes, "baton.handoff.transport": handoff.transport}
    decoded: Attributes = {"baton.worker": workers.decode, "baton.retries": choice.retries, "baton.moves": choice.moves}
    parts: list[tuple[str, float, float, Attributes]] = [("queue", 0.0, times.queue_s, {})]
    if times.prefill_start_s:
        parts.append(("prefill", times.prefill_start_s, read_s, {"baton.worker": reader}))
    if times.transfer_start_s:
        parts.append(("transfer", times.transfer_start_s, times.transfer_end_s, moved))
    if decode_s:
        parts.append(("decode", decode_s, last_s, decoded))
    if times.first_tool_call_token_s:
        called: Attributes = {"baton.usage.tool_call_tokens": choice.usage.tool_call_tokens}
        parts.append(("tools", times.first_tool_call_token_s, last_s, called))
    # A clock of another host stamps transfers.
    return [(name, start_s, max(start_s, end_s), attributes) for name, start_s, end_s, attributes in parts]


def _last_s(times: pb.Timings) -> float:
    return max(
        times.last_token_s,
        times.first_tool_call_token_s,  # a call that is held until it is whole goes out after the last token
        times.first_token_s,
        times.prefill_start_s,
        times.queue_s,
    )


def _finish_reason(choice: pb.ChoiceSummary) -> str:
    return pb.FinishReason.Name(choice.finish_reason).removeprefix("FINISH_REASON_").lower()


def _unix_ns(unix_s: float) -> int:
    return int(unix_s * 1e9)


def _exporter(settings: TracingSettings) -> SpanExporter:
    endpoint: Any = settings.otlp_endpoint
    if settings.protocol == "http":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter(endpoint=f"{endpoint}/v1/traces", timeout=EXPORT_TIMEOUT_S)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

    return GrpcExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=EXPORT_TIMEOUT_S)
