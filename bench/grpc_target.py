"""`baton.v1.Inference` as a target."""

from __future__ import annotations

import time
from typing import Any

import grpc

from baton.v1 import inference_pb2
from bench.record import Message, RequestRecord, settle
from bench.target import RequestStyle
from bench.workload import PlannedRequest, prompt_ids, prompt_text
from cluster.errors import ConfigError, ModelNotFound, WorkerDied

_SERVICE = "/baton.v1.Inference"


class GrpcTarget:
    """An endpoint such as ``grpc://127.0.0.1:50051``. Messages are kept as bytes and parsed when the reply is in."""

    def __init__(self, url: str, *, api_key: str = "") -> None:
        address = url.removeprefix("grpc://").rstrip("/")
        if ":" not in address:
            raise ConfigError(f"endpoint {url!r}: expected grpc://host:port")
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", 64 << 20)])
        self._generate = self._channel.unary_stream(f"{_SERVICE}/Generate")
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else None

    async def model(self) -> str:
        """The first model of `ListModels`."""
        call = self._channel.unary_unary(f"{_SERVICE}/ListModels")
        try:
            reply = await call(b"", timeout=30, metadata=self._metadata, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise WorkerDied(f"no answer from {self._address}: {error.details()}") from error
        models = inference_pb2.ListModelsResponse.FromString(reply).models
        if not models:
            raise ModelNotFound(f"{self._address} lists no model")
        return str(models[0].name)

    async def send(self, request: PlannedRequest, style: RequestStyle, epoch_s: float) -> RequestRecord:
        """Send one request; see `Target`."""
        record = RequestRecord(request.index, request.isl_tokens, request.osl_tokens)
        message = _request(request, style).SerializeToString()
        parts: list[tuple[float, bytes]] = []
        start_s = time.perf_counter()
        record.start_s = start_s - epoch_s
        try:
            async for data in self._generate(message, timeout=style.timeout_s, metadata=self._metadata):
                parts.append((time.perf_counter() - start_s, data))
        except grpc.aio.AioRpcError as error:
            code = error.code()
            timed_out = code is grpc.StatusCode.DEADLINE_EXCEEDED
            record.failure = "timeout" if timed_out else f"grpc {code.name}"
            record.detail = str(error.details())[:300]
        record.end_s = time.perf_counter() - start_s
        read_messages(record, parts, exact=style.ignore_eos)
        return record

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def _request(request: PlannedRequest, style: RequestStyle) -> Any:
    message = inference_pb2.GenerateRequest(
        model=style.model,
        sampling=inference_pb2.Sampling(
            max_tokens=request.osl_tokens, temperature=style.temperature, ignore_eos=style.ignore_eos
        ),
    )
    if style.api == "chat":
        message.chat.messages.add(role="user", content=prompt_text(request, seed=style.seed))
    elif style.prompt == "text":
        message.prompt = prompt_text(request, seed=style.seed)
    else:
        message.prompt_token_ids.ids.extend(prompt_ids(request, seed=style.seed, low=style.low_id, high=style.high_id))
    return message


def read_messages(record: RequestRecord, parts: list[tuple[float, bytes]], *, exact: bool) -> None:
    """Fill in a record from the messages of a stream, each with the seconds since the request was sent."""
    messages: list[Message] = []
    finished = False
    for at_s, data in parts:
        event = inference_pb2.GenerateResponse.FromString(data)
        kind = event.WhichOneof("event")
        if kind == "delta":
            answer = event.delta.phase == inference_pb2.PHASE_ANSWER
            messages.append(Message(at_s, bool(event.delta.text), answer, len(event.delta.token_ids)))
        elif kind == "finished":
            finished = True
            record.prompt_tokens = event.finished.usage.prompt_tokens
            record.reasoning_tokens = event.finished.usage.reasoning_tokens
    if not record.failure and not finished:
        record.failure, record.detail = "broken", "the stream ended before its final message"
    settle(record, messages, None, exact=exact)
