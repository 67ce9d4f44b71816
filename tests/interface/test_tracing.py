"""W3C's trace context in, OpenTelemetry's spans out: over HTTP and gRPC, to memory and to a collector."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc
from cluster.spec.config import GatewaySettings
from cluster.spec.tracing_settings import TracingSettings
from interface.grpc_server import serve_grpc
from interface.http.server import serve_http
from orchestrator.gateway.request_spans import RequestSpans
from tests.fakes.calling_cluster import CALL, calling_cluster
from tests.fakes.live_cluster import Cluster, cluster_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "The baton goes from hand to hand, over forty tokens."
SETTINGS = GatewaySettings(grpc_port=0, http_port=0)
ELSEWHERE = TracingSettings(otlp_endpoint="http://127.0.0.1:9")


def traced(cluster: Cluster, settings: TracingSettings = ELSEWHERE, processor: SpanProcessor | None = None) -> None:
    cluster.gateway._spans = RequestSpans(settings, "test", processor=processor)


@contextlib.asynccontextmanager
async def in_memory(ratio: float = 1.0) -> AsyncIterator[tuple[Cluster, InMemorySpanExporter, str]]:
    """A traced cluster, its spans, and the address of its HTTP server."""
    exporter = InMemorySpanExporter()
    async with cluster_of("prefill-0", "decode-0") as cluster:
        settings = TracingSettings(otlp_endpoint="http://127.0.0.1:9", sample_ratio=ratio)
        traced(cluster, settings, SimpleSpanProcessor(exporter))
        runner, port = await serve_http(cluster.gateway, SETTINGS)
        yield cluster, exporter, f"http://127.0.0.1:{port}"
        await runner.cleanup()


async def complete(url: str, traceparent: str | None = None, **body: Any) -> int:
    headers = {} if traceparent is None else {"traceparent": traceparent}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{url}/v1/completions", json={"model": "fake", "prompt": PROMPT, "max_tokens": 8, **body}, headers=headers
        ) as reply,
    ):
        await reply.read()
        return reply.status


def by_name(spans: tuple[ReadableSpan, ...]) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans}


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def check(spans: tuple[ReadableSpan, ...], root_name: str) -> ReadableSpan:
    """One trace: the request under its caller's span, and its parts in order under it."""
    found = by_name(spans)
    root = found[root_name]
    assert root.context is not None
    assert set(found) == {root_name, "queue", "prefill", "transfer", "decode"}
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, PARENT)
    begins = []
    for name in ("queue", "prefill", "transfer", "decode"):
        span = found[name]
        assert span.context is not None
        assert span.parent is not None
        assert span.context.trace_id == root.context.trace_id
        assert span.parent.span_id == root.context.span_id
        assert times(root)[0] <= times(span)[0] <= times(span)[1]
        begins.append(times(span)[0])
    assert times(found["queue"])[0] == times(root)[0]
    assert times(found["decode"])[1] == times(root)[1]
    assert begins[0] <= begins[1] <= begins[3]
    return root


async def test_over_http() -> None:
    async with in_memory() as (_, exporter, url):
        assert await complete(url, f"00-{TRACE}-{PARENT}-01", user="shop") == 200
    root = check(exporter.get_finished_spans(), "text_completion fake")
    attributes = dict(root.attributes or {})
    assert attributes["gen_ai.usage.input_tokens"] == len(PROMPT)
    assert attributes["gen_ai.usage.output_tokens"] == 8
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["gen_ai.request.max_tokens"] == 8
    assert attributes["baton.tenant"] == "shop"
    assert attributes["gen_ai.response.model"] == "fake"
    decode = by_name(exporter.get_finished_spans())["decode"]
    assert dict(decode.attributes or {})["baton.worker"] == "decode-0"
    said = str([(span.name, dict(span.attributes or {})) for span in exporter.get_finished_spans()])
    assert PROMPT[:20] not in said


async def test_over_grpc() -> None:
    async with in_memory() as (cluster, exporter, _):
        server, port = await serve_grpc(cluster.gateway, SETTINGS)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = pb.GenerateRequest(sampling=pb.Sampling(max_tokens=8))
            request.chat.messages.add(role="user", content=PROMPT)
            stub = inference_pb2_grpc.InferenceStub(channel)
            metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
            async for _ in stub.Generate(request, metadata=metadata):
                pass
        await server.stop(0)
    check(exporter.get_finished_spans(), "chat fake")


async def test_a_prompt_alone_and_several_choices() -> None:
    async with in_memory() as (_, exporter, url):
        assert await complete(url, echo=True, logprobs=1, max_tokens=0) == 200
        assert set(by_name(exporter.get_finished_spans())) == {"text_completion fake", "queue", "prefill"}
        exporter.clear()
        assert await complete(url, n=3) == 200
        spans = exporter.get_finished_spans()
    assert [span.name for span in spans].count("decode") == 3
    assert [span.name for span in spans].count("text_completion fake") == 1
    choices = {dict(span.attributes or {})["baton.choice"] for span in spans if span.name == "decode"}
    assert choices == {0, 1, 2}


async def test_failures_and_callers_who_leave() -> None:
    async with in_memory() as (cluster, exporter, url):
        assert await complete(url, f"00-{TRACE}-{PARENT}-01", temperature=-1) == 400
        stream = cluster.gateway.generate(pb.GenerateRequest(prompt=PROMPT))
        await anext(stream)
        await stream.aclose()
    refused, left = exporter.get_finished_spans()
    assert dict(refused.attributes or {})["error.type"] == "InvalidRequest"
    assert refused.name == "text_completion"
    assert refused.context is not None
    assert f"{refused.context.trace_id:032x}" == TRACE
    assert not refused.status.is_ok
    assert "temperature" not in str(refused.status.description)
    assert dict(left.attributes or {})["error.type"] == "RequestAborted"


async def test_the_caller_decides_for_its_own_and_the_ratio_for_the_rest() -> None:
    async with in_memory(ratio=0.0) as (_, exporter, url):
        await complete(url)
        await complete(url, f"00-{TRACE}-{PARENT}-00")
        await complete(url, "nonsense")
        assert not exporter.get_finished_spans()
        await complete(url, f"00-{TRACE}-{PARENT}-01")
        assert exporter.get_finished_spans()


async def test_requests_of_one_connection_have_traces_of_their_own() -> None:
    async with in_memory() as (_, exporter, url), aiohttp.ClientSession() as session:
        for headers in ({"traceparent": f"00-{TRACE}-{PARENT}-01"}, {}):
            body = {"model": "fake", "prompt": "Hi", "max_tokens": 1}
            async with session.post(f"{url}/v1/completions", json=body, headers=headers) as reply:
                await reply.read()
    roots = [span for span in exporter.get_finished_spans() if span.name == "text_completion fake"]
    assert [root.parent is not None for root in roots] == [True, False]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.services: set[str] = set()

    def take(self, message: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in message.resource_spans:
            self.services |= {
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            }
            self.names += [span.name for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.take(request)

    async def post(self, request: web.Request) -> web.Response:
        message = trace_service_pb2.ExportTraceServiceRequest.FromString(await request.read())
        return web.Response(body=self.take(message).SerializeToString())


@contextlib.asynccontextmanager
async def collecting(collector: Collector, protocol: str) -> AsyncIterator[int]:
    """A collector that listens; yields its port."""
    if protocol == "grpc":
        server = grpc.aio.server()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        yield port
        await server.stop(0)
        return
    app = web.Application()
    app.add_routes([web.post("/v1/traces", collector.post)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_spans_reach_a_collector_by_the_end(protocol: Any) -> None:
    collector = Collector()
    async with collecting(collector, protocol) as port, cluster_of("prefill-0", "decode-0") as cluster:
        traced(cluster, TracingSettings(otlp_endpoint=f"http://127.0.0.1:{port}", protocol=protocol))
        async for _ in cluster.gateway.generate(pb.GenerateRequest(prompt=PROMPT, sampling=pb.Sampling(max_tokens=4))):
            pass
        assert cluster.gateway._spans is not None
        await asyncio.to_thread(cluster.gateway._spans.close)
        assert sorted(collector.names) == ["decode", "prefill", "queue", "text_completion fake", "transfer"]
        assert collector.services == {"baton-gateway"}


@pytest.mark.parametrize("endpoint", ["collector:4317", "ftp://collector", "http://collector:4318/v1/traces", ""])
def test_an_endpoint_is_scheme_host_and_port(endpoint: str) -> None:
    with pytest.raises(ValidationError):
        TracingSettings(otlp_endpoint=endpoint)


async def test_calls_of_tools_have_a_span() -> None:
    exporter = InMemorySpanExporter()
    async with calling_cluster() as made:
        traced(made, ELSEWHERE, SimpleSpanProcessor(exporter))
        request = pb.GenerateRequest(sampling=pb.Sampling(temperature=0.0, max_tokens=200))
        request.chat.messages.add(role="user", content="Go on and look at the weather, please.")
        request.chat.tools.add(name="weather", parameters_json='{"type": "object"}')
        async for _ in made.gateway.generate(request):
            pass
    found = by_name(exporter.get_finished_spans())
    tools, decode = found["tools"], found["decode"]
    assert times(decode)[0] <= times(tools)[0] <= times(tools)[1] == times(decode)[1]
    assert dict(tools.attributes or {})["baton.usage.tool_call_tokens"] == len(CALL) + 1
