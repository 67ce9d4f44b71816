from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from baton.v1 import cluster_pb2, inference_pb2, inference_pb2_grpc
from cluster.errors import ConfigError, WorkerDied
from cluster.spec.config import GatewaySettings
from interface.grpc_server import serve_grpc
from tests.fakes.backend import FakeBackend, Stall, admitted, delta, finished, reply, script
from tests.interface.conftest import LIMIT_BYTES, Edge

GENERATE = "/baton.v1.Inference/Generate"
WATCH = "/baton.v1.Cluster/WatchStatus"


@pytest.fixture
async def channel(edge: Edge) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(edge.grpc_address) as channel:
        yield channel


def generate(channel: Any, request: inference_pb2.GenerateRequest | bytes, timeout_s: float | None = 10) -> Any:
    data = request if isinstance(request, bytes) else request.SerializeToString()
    call = channel.unary_stream(GENERATE, response_deserializer=inference_pb2.GenerateResponse.FromString)
    return call(data, timeout=timeout_s)


async def failure(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


async def test_streams_the_backends_events_unchanged(edge: Edge, channel: Any) -> None:
    events = [admitted(), delta("Hel"), delta("lo", finish="STOP"), finished()]
    edge.backend.script = script(*events)
    request = inference_pb2.GenerateRequest(model="m", prompt="Hi", deadline_s=5, tenant="who", request_id="r")
    assert [event async for event in generate(channel, request, timeout_s=None)] == events
    assert edge.backend.requests == [request]


@pytest.mark.parametrize(
    ("own_s", "timeout_s", "low_s", "high_s"),
    [(None, 30, 20, 31), (7, 30, 7, 7), (90, 30, 20, 31), (7, None, 7, 7), (math.inf, 30, 20, 31)],
)
async def test_the_earlier_deadline_holds(
    edge: Edge, channel: Any, own_s: float | None, timeout_s: float | None, low_s: float, high_s: float
) -> None:
    request = inference_pb2.GenerateRequest(prompt="Hi", deadline_s=own_s)
    async for _ in generate(channel, request, timeout_s):
        pass
    assert low_s <= edge.backend.requests[0].deadline_s <= high_s


async def test_no_deadline_at_all_is_left_to_the_backend(edge: Edge, channel: Any) -> None:
    for own_s in (None, math.inf):
        async for _ in generate(channel, inference_pb2.GenerateRequest(prompt="Hi", deadline_s=own_s), None):
            pass
        assert not edge.backend.requests[-1].HasField("deadline_s")


@pytest.mark.parametrize("own_s", [0.0, -1.0, -math.inf])
async def test_a_deadline_already_past_costs_nothing(edge: Edge, channel: Any, own_s: float) -> None:
    error = await failure(generate(channel, inference_pb2.GenerateRequest(prompt="Hi", deadline_s=own_s)))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert edge.backend.requests == []


async def test_a_deadline_that_is_no_number_is_refused(edge: Edge, channel: Any) -> None:
    error = await failure(generate(channel, inference_pb2.GenerateRequest(prompt="Hi", deadline_s=math.nan)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_connections_deadline_cancels_the_backend(edge: Edge, channel: Any) -> None:
    edge.backend.script = script(admitted(), Stall())
    error = await failure(generate(channel, inference_pb2.GenerateRequest(prompt="Hi"), timeout_s=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(edge.backend.cancelled.wait(), 2)


@pytest.mark.parametrize("data", [b"\x12\x02\xff\xfe", b"\x12\x7f", b"garbage!"], ids=["utf8", "cut", "other"])
async def test_a_malformed_message_is_a_clean_error(edge: Edge, channel: Any, data: bytes) -> None:
    error = await failure(generate(channel, data))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in error.details()
    assert edge.backend.requests == []


async def test_a_message_over_the_limit_is_refused(edge: Edge, channel: Any) -> None:
    error = await failure(generate(channel, inference_pb2.GenerateRequest(prompt="x" * LIMIT_BYTES)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert edge.backend.requests == []


async def test_a_cancelled_call_closes_the_backends_stream(edge: Edge, channel: Any) -> None:
    edge.backend.script = script(admitted(), delta("Hel"), Stall())
    call = generate(channel, inference_pb2.GenerateRequest(prompt="Hi"))
    seen = 0
    async for _ in call:
        seen += 1
        if seen == 2:
            break
    assert not edge.backend.cancelled.is_set()
    call.cancel()
    await asyncio.wait_for(edge.backend.cancelled.wait(), 2)


async def test_a_caller_that_vanishes_while_the_stream_is_full_frees_the_backend(edge: Edge, channel: Any) -> None:
    def endless(_: object) -> Any:
        while True:
            yield delta("x" * 10_000)

    edge.backend.script = endless
    call = generate(channel, inference_pb2.GenerateRequest(prompt="Hi"))
    await call.read()
    call.cancel()
    await asyncio.wait_for(edge.backend.cancelled.wait(), 2)


async def test_unforeseen_errors_are_logged_once_and_tell_nothing(
    edge: Edge, channel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    edge.backend.script = script(KeyError("the secret prompt"))
    request = inference_pb2.GenerateRequest(prompt="the secret prompt", request_id="id-7\nforged line")
    error = await failure(generate(channel, request))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    records = [record for record in caplog.records if record.name == "baton.api"]
    assert len(records) == 1
    assert records[0].levelno == logging.ERROR
    text = records[0].getMessage()
    assert "id-7?forged line" in text
    assert "KeyError" in text
    assert "secret" not in text


@pytest.mark.parametrize("request_id", ["", "mine", "not\nprintable ☃"])
async def test_a_failure_names_the_requests_id(
    edge: Edge, channel: Any, caplog: pytest.LogCaptureFixture, request_id: str
) -> None:
    edge.backend.script = script(WorkerDied("gone"))
    error = await failure(generate(channel, inference_pb2.GenerateRequest(prompt="Hi", request_id=request_id)))
    reported = dict(error.trailing_metadata()).get("x-request-id", "")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    used = edge.backend.requests[0].request_id
    assert used == (request_id or used)
    assert reported == (used if request_id != "not\nprintable ☃" else "")
    assert reported in caplog.text


async def test_lists_models_and_reports_status(edge: Edge, channel: Any) -> None:
    models = await channel.unary_unary(
        "/baton.v1.Inference/ListModels", response_deserializer=inference_pb2.ListModelsResponse.FromString
    )(b"", timeout=5)
    assert [model.name for model in models.models] == ["tiny-thinker"]
    status = await channel.unary_unary(
        "/baton.v1.Cluster/GetStatus", response_deserializer=cluster_pb2.GetStatusResponse.FromString
    )(b"", timeout=5)
    assert status.status == edge.backend.status()


async def test_watching_repeats_until_cancelled(edge: Edge, channel: Any) -> None:
    request = cluster_pb2.WatchStatusRequest(interval_s=0.1).SerializeToString()
    call = channel.unary_stream(WATCH, response_deserializer=cluster_pb2.WatchStatusResponse.FromString)(request)
    for _ in range(2):
        assert (await call.read()).status == edge.backend.status()
    call.cancel()


@pytest.mark.parametrize("interval_s", [-1.0, 0.01, math.nan])
async def test_watching_too_often_is_refused(channel: Any, interval_s: float) -> None:
    request = cluster_pb2.WatchStatusRequest(interval_s=interval_s).SerializeToString()
    error = await failure(channel.unary_stream(WATCH)(request, timeout=5))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("service", ["", "baton.v1.Inference", "baton.v1.Cluster"])
async def test_standard_health(channel: Any, service: str) -> None:
    check = health_pb2.HealthCheckRequest(service=service)
    answer = await health_pb2_grpc.HealthStub(channel).Check(check, timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_standard_reflection(channel: Any) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=5)
    names = {service.name async for answer in call for service in answer.list_services_response.service}
    assert {"baton.v1.Inference", "baton.v1.Cluster", "grpc.health.v1.Health"} <= names


async def test_the_server_goes_on_after_a_failure(edge: Edge, channel: Any) -> None:
    edge.backend.script = script(RuntimeError("boom"))
    await failure(generate(channel, inference_pb2.GenerateRequest(prompt="Hi")))
    edge.backend.script = reply()
    assert [event async for event in generate(channel, inference_pb2.GenerateRequest(prompt="Hi"))]


async def test_a_taken_port_is_a_config_error(edge: Edge) -> None:
    port = int(edge.grpc_address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"gateway.grpc_port={port}"):
        await serve_grpc(FakeBackend(), GatewaySettings(grpc_port=port))


@pytest.mark.parametrize(("given_id", "own_id"), [("mine", "mine"), ("two words", None), (None, None)])
async def test_the_requests_id_may_come_as_metadata(
    edge: Edge, channel: Any, given_id: str | None, own_id: str | None
) -> None:
    metadata = [("x-request-id", given_id)] if given_id else []
    call = channel.unary_stream(GENERATE, response_deserializer=inference_pb2.GenerateResponse.FromString)
    for request_id in ("", "of the message"):
        request = inference_pb2.GenerateRequest(prompt="Hi", request_id=request_id)
        async for _ in call(request.SerializeToString(), metadata=metadata, timeout=10):
            pass
    without, within = [request.request_id for request in edge.backend.requests]
    assert without == own_id if own_id else len(without) == 32
    assert within == "of the message"


async def test_the_access_log_has_calls_and_no_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="baton.access")
    backend = FakeBackend()
    settings = GatewaySettings(grpc_port=0, http_port=0, access_log=True)
    server, port = await serve_grpc(backend, settings)

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "baton.access"]

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = inference_pb2.GenerateRequest(prompt="SECRET", request_id='a"b', tenant="SECRET")
        async for _ in generate(channel, request):
            pass
        for step in (WorkerDied("SECRET"), KeyError("SECRET")):
            backend.script = script(admitted(), step)
            await failure(generate(channel, request))
        backend.script = script(admitted(), Stall())
        call = generate(channel, request)
        await call.read()
        call.cancel()
        async with asyncio.timeout(10):
            while len(lines()) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    await server.stop(0)
    start = 'method="gRPC" path="/baton.v1.Inference/Generate" status='
    assert [line.removeprefix(start).split(" ")[0] for line in lines()] == [
        '"OK"',
        '"UNAVAILABLE"',
        '"INTERNAL"',
        '"CANCELLED"',
    ]
    assert all(line.endswith(' request_id="a\\"b"') for line in lines())
    assert not any("SECRET" in line for line in lines())


async def test_tokenize_and_detokenize_are_http_s(edge: Edge, channel: Any) -> None:
    stub = inference_pb2_grpc.InferenceStub(channel)
    made = await stub.Tokenize(inference_pb2.TokenizeRequest(prompt="Hi", return_token_texts=True))
    _, over_http = await edge.post("/tokenize", {"prompt": "Hi", "return_token_strs": True})
    assert list(made.token_ids) == over_http["tokens"]
    assert list(made.token_texts) == over_http["token_strs"]
    assert made.max_model_len_tokens == over_http["max_model_len"]
    assert (await stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[72]))).text == "H"
    for wrong, code in (
        (inference_pb2.TokenizeRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        (inference_pb2.TokenizeRequest(prompt="Hi", model="other"), grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Tokenize(wrong)
        assert refused.value.code() is code
