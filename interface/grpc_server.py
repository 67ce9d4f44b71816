"""The gRPC server: `baton.v1.Inference` and `baton.v1.Cluster` over a `Backend`, with health and reflection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baton.v1 import cluster_pb2, inference_pb2
from cluster.errors import ConfigError, InvalidRequest, ServingError
from cluster.spec.config import GatewaySettings
from cluster.trace_context import take_trace
from interface.access_log import request_id_of, write_line
from interface.authentication import Authentication, current_caller
from interface.backend import Backend, closing
from interface.deadline import fold_deadline
from interface.failure import report
from interface.grpc_delta_sink import CallSink
from interface.slow_reader import reading_within
from interface.status import MAX_MESSAGE_CHARS, REQUEST_ID_KEY, status_of, trailing_metadata

INFERENCE_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
CLUSTER_SERVICE = cluster_pb2.DESCRIPTOR.services_by_name["Cluster"].full_name

MIN_WATCH_INTERVAL_S = 0.1
DEFAULT_WATCH_INTERVAL_S = 1.0

_KEEPALIVE_OPTIONS = [
    # A caller whose machine vanished sends no FIN: its requests would hold KV until they end by themselves.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Callers may ping every 10 s; a third faster ping in a row closes their connection.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    # Two gateways on one port would silently share its connections.
    ("grpc.so_reuseport", 0),
]


class _Malformed:
    """Stands for a message that could not be parsed, so that the handler can say so."""


_MALFORMED = _Malformed()
Handler = Callable[[Any, Any], Awaitable[Any]]


class InferenceService:
    """`baton.v1.Inference`.

    Handlers write by themselves rather than yield, so that on cancellation their ``finally`` runs at once.
    """

    def __init__(self, backend: Backend, slow_reader_timeout_s: float) -> None:
        self._backend = backend
        self._slow_reader_timeout_s = slow_reader_timeout_s

    async def generate(self, request: inference_pb2.GenerateRequest, context: Any) -> None:
        """Stream one generation."""
        # Made up here and not behind, so that the log of a failure and the caller name the same id.
        metadata = _metadata(context)
        request.request_id = request.request_id or request_id_of(metadata.get(REQUEST_ID_KEY, ""))
        take_trace(metadata)
        if caller := current_caller.get():
            request.tenant = caller.tenant
        fold_deadline(request, context.time_remaining())
        async with (
            CallSink(context, self._slow_reader_timeout_s) as sink,
            closing(self._backend.generate(request, sink)) as events,
        ):
            async for event in events:
                await sink.write(event)

    async def list_models(self, request: inference_pb2.ListModelsRequest, context: Any) -> Any:
        """List the models."""
        return inference_pb2.ListModelsResponse(models=self._backend.models())

    async def tokenize(self, request: inference_pb2.TokenizeRequest, context: Any) -> Any:
        """Tokenise an input."""
        asked = inference_pb2.GenerateRequest(model=request.model)
        match request.WhichOneof("input"):
            case "prompt":
                asked.prompt = request.prompt
            case "chat":
                asked.chat.CopyFrom(request.chat)
            case _:
                raise InvalidRequest("give a prompt or chat messages", field="input")
        special_tokens = request.add_special_tokens if request.HasField("add_special_tokens") else True
        token_ids = await self._backend.tokenize(asked, special_tokens=special_tokens)
        models = [model for model in self._backend.models() if request.model in ("", model.name)]
        return inference_pb2.TokenizeResponse(
            token_ids=token_ids,
            token_texts=self._backend.token_texts(request.model, token_ids) if request.return_token_texts else (),
            max_model_len_tokens=models[0].max_model_len_tokens,
        )

    async def detokenize(self, request: inference_pb2.DetokenizeRequest, context: Any) -> Any:
        """Make text of tokens."""
        return inference_pb2.DetokenizeResponse(text=await self._backend.detokenize(request.model, request.token_ids))


class ClusterService:
    """`baton.v1.Cluster`."""

    def __init__(self, backend: Backend, slow_reader_timeout_s: float) -> None:
        self._backend = backend
        self._slow_reader_timeout_s = slow_reader_timeout_s

    async def get_status(self, request: cluster_pb2.GetStatusRequest, context: Any) -> Any:
        """Report the status once."""
        return cluster_pb2.GetStatusResponse(status=self._backend.status())

    async def watch_status(self, request: cluster_pb2.WatchStatusRequest, context: Any) -> None:
        """Report the status until the caller disconnects."""
        interval_s = request.interval_s or DEFAULT_WATCH_INTERVAL_S
        if not interval_s >= MIN_WATCH_INTERVAL_S:
            raise InvalidRequest(f"interval_s: expected at least {MIN_WATCH_INTERVAL_S} seconds", field="interval_s")
        while True:
            async with reading_within(self._slow_reader_timeout_s):
                await context.write(cluster_pb2.WatchStatusResponse(status=self._backend.status()))
            await asyncio.sleep(interval_s)


async def serve_grpc(
    backend: Backend, settings: GatewaySettings, authentication: Authentication | None = None
) -> tuple[Any, int]:
    """Start the gRPC server; returns it (``await server.stop(grace_s)`` ends it) and its port.

    Raises:
        ConfigError: the address cannot be listened on, or a certificate cannot be used.
    """
    authentication = authentication or Authentication()
    server = grpc.aio.server(
        interceptors=authentication.guards(),
        options=[
            ("grpc.max_receive_message_length", settings.max_request_bytes),
            ("grpc.max_metadata_size", settings.max_header_bytes),
            ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
            *_KEEPALIVE_OPTIONS,
        ],
    )
    inference = InferenceService(backend, settings.slow_reader_timeout_s)
    cluster = ClusterService(backend, settings.slow_reader_timeout_s)
    server.add_generic_rpc_handlers(
        (
            _service(
                INFERENCE_SERVICE,
                settings.access_log,
                Generate=(_stream, inference.generate, inference_pb2.GenerateRequest),
                ListModels=(_unary, inference.list_models, inference_pb2.ListModelsRequest),
                Tokenize=(_unary, inference.tokenize, inference_pb2.TokenizeRequest),
                Detokenize=(_unary, inference.detokenize, inference_pb2.DetokenizeRequest),
            ),
            _service(
                CLUSTER_SERVICE,
                settings.access_log,
                GetStatus=(_unary, cluster.get_status, cluster_pb2.GetStatusRequest),
                WatchStatus=(_stream, cluster.watch_status, cluster_pb2.WatchStatusRequest),
            ),
        )
    )
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for service in ("", INFERENCE_SERVICE, CLUSTER_SERVICE):
        await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    names = (INFERENCE_SERVICE, CLUSTER_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = authentication.bind(server, f"{host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise ConfigError(f"gateway.grpc_port={settings.grpc_port}: cannot listen on {host}: {error}") from error
    await server.start()
    return server, port


def _metadata(context: Any) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _service(name: str, access_log: bool, **methods: tuple[Callable[[Handler, Any], Any], Handler, Any]) -> Any:
    """A service of these methods; each is how it answers, its handler and its request."""
    handlers = {
        method: make(_access_logged(f"/{name}/{method}", handler) if access_log else handler, message)
        for method, (make, handler, message) in methods.items()
    }
    return grpc.method_handlers_generic_handler(name, handlers)


def _access_logged(path: str, handler: Handler) -> Handler:
    """Log a line for each call of ``handler`` when it has ended."""

    async def logged(request: Any, context: Any) -> Any:
        started_s = time.monotonic()
        status = grpc.StatusCode.CANCELLED
        try:
            result = await handler(request, context)
            status = grpc.StatusCode.OK
            return result
        except Exception as error:
            if not context.cancelled():
                status = status_of(error).grpc if isinstance(error, ServingError) else grpc.StatusCode.INTERNAL
            raise
        finally:
            write_line(
                method="gRPC",
                path=path,
                status=status.name,
                duration_s=time.monotonic() - started_s,
                peer=context.peer(),
                request_id=getattr(request, "request_id", ""),
            )

    return logged


def _unary(handler: Handler, message: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        _guarded(handler), request_deserializer=_parser(message), response_serializer=_serialize
    )


def _stream(handler: Handler, message: Any) -> Any:
    return grpc.unary_stream_rpc_method_handler(
        _guarded(handler), request_deserializer=_parser(message), response_serializer=_serialize
    )


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _parser(message: Any) -> Callable[[bytes], Any]:
    """A parser that does not raise: gRPC would answer UNKNOWN with a Python error's text."""

    def parse(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError:
            return _MALFORMED

    return parse


def _guarded(handler: Handler) -> Handler:
    """Turn every failure of ``handler`` into a status of the table."""

    async def guarded(request: Any, context: Any) -> Any:
        try:
            if request is _MALFORMED:
                raise InvalidRequest("malformed message: not this protobuf message, or a string that is not UTF-8")
            return await handler(request, context)
        except Exception as error:
            # Writing to a caller who left fails too; that is no failure of the request, and nobody reads a status.
            if context.cancelled():
                raise asyncio.CancelledError from error
            request_id = getattr(request, "request_id", "")
            await _abort(context, report(error, request_id), request_id)

    return guarded


async def _abort(context: Any, error: ServingError, request_id: str) -> NoReturn:
    metadata = trailing_metadata(error, request_id=request_id)
    await context.abort(status_of(error).grpc, error.message[:MAX_MESSAGE_CHARS], metadata)
    raise AssertionError("abort raises")
