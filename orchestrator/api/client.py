"""The Python client, async and sync, over gRPC. Every call has a deadline, and fails with an error of `cluster.errors`.

::

    with Client("127.0.0.1:50051") as client:
        print(client.complete(prompt="Why is the sky blue?", max_tokens=64).text)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from baton.v1 import cluster_pb2, cluster_pb2_grpc, inference_pb2, inference_pb2_grpc
from cluster.errors import DeadlineExceeded, RequestAborted, ServingError
from orchestrator.api.client_request import GenerateOptions, build_request
from orchestrator.api.completion import Completion, Event, event_of
from orchestrator.api.credentials import Credentials
from orchestrator.api.status import from_rpc

DEFAULT_DEADLINE_S = 600.0
"""Deadline of a generation that names none."""
CALL_DEADLINE_S = 10.0
"""Deadline of the short calls."""

_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A reply's size is the server's business; a request's is checked there.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class Client:
    """Sync client. A context manager; safe to share between threads.

    Args:
        address: ``host:port`` of the gateway's gRPC listener.
        deadline_s: Deadline of short calls, in seconds.
        credentials: Key and TLS, where the gateway asks for them.
    """

    def __init__(
        self, address: str, *, deadline_s: float = CALL_DEADLINE_S, credentials: Credentials | None = None
    ) -> None:
        self._deadline_s = deadline_s
        credentials = credentials or Credentials()
        self._metadata = credentials.metadata
        self._channel = credentials.channel(grpc, address, _OPTIONS)
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)
        self._cluster = cluster_pb2_grpc.ClusterStub(self._channel)

    def _call(self, deadline_s: float) -> dict[str, Any]:
        """What goes with every call."""
        return {"timeout": deadline_s, "metadata": self._metadata}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running calls end with `RequestAborted`."""
        self._channel.close()

    def generate(
        self, *, deadline_s: float = DEFAULT_DEADLINE_S, **options: Unpack[GenerateOptions]
    ) -> Generator[Event, None, None]:
        """Stream the events of one generation. Closing the iterator cancels the request.

        Raises:
            ServingError: the class the gateway raised.
        """
        request = build_request(options)
        with _errors_mapped():
            call = self._inference.Generate(request, **self._call(deadline_s))
            try:
                for response in call:
                    if (event := event_of(response)) is not None:
                        yield event
            finally:
                call.cancel()

    def complete(self, *, deadline_s: float = DEFAULT_DEADLINE_S, **options: Unpack[GenerateOptions]) -> Completion:
        """Run one generation to its end.

        Raises:
            ServingError: the class the gateway raised.
        """
        completion = Completion()
        for event in self.generate(deadline_s=deadline_s, **options):
            completion.add(event)
        return completion

    def list_models(self) -> list[inference_pb2.Model]:
        """The models served."""
        with _errors_mapped():
            reply = self._inference.ListModels(inference_pb2.ListModelsRequest(), **self._call(self._deadline_s))
            return list(reply.models)

    def get_status(self) -> cluster_pb2.Status:
        """How the cluster is."""
        with _errors_mapped():
            reply = self._cluster.GetStatus(cluster_pb2.GetStatusRequest(), **self._call(self._deadline_s))
            return _status(reply)

    def watch_status(self, interval_s: float = 1.0) -> Iterator[cluster_pb2.Status]:
        """The status, again and again, until the iterator is closed.

        Raises:
            DeadlineExceeded: nothing came for ten intervals (at least a minute).
        """
        request = cluster_pb2.WatchStatusRequest(interval_s=interval_s)
        while True:
            came = False
            try:
                with _errors_mapped():
                    call = self._cluster.WatchStatus(request, **self._call(_watch_deadline_s(interval_s)))
                    try:
                        for response in call:
                            came = True
                            yield _status(response)
                    finally:
                        call.cancel()
            except DeadlineExceeded:
                if not came:
                    raise


class AsyncClient:
    """Async client. An async context manager; belongs to the event loop that first uses it.

    Args:
        address: ``host:port`` of the gateway's gRPC listener.
        deadline_s: Deadline of short calls, in seconds.
        credentials: Key and TLS, where the gateway asks for them.
    """

    def __init__(
        self, address: str, *, deadline_s: float = CALL_DEADLINE_S, credentials: Credentials | None = None
    ) -> None:
        self._address = address
        self._deadline_s = deadline_s
        self._credentials = credentials or Credentials()
        self._metadata = self._credentials.metadata
        self._channel: Any = None
        self._inference: Any = None
        self._cluster: Any = None

    def _call(self, deadline_s: float) -> dict[str, Any]:
        """What goes with every call."""
        return {"timeout": deadline_s, "metadata": self._metadata}

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self) -> None:
        """Made at first use and not before, because gRPC ties a channel to the running loop."""
        if self._channel is None:
            self._channel = self._credentials.channel(grpc.aio, self._address, _OPTIONS)
            self._inference = inference_pb2_grpc.InferenceStub(self._channel)
            self._cluster = cluster_pb2_grpc.ClusterStub(self._channel)

    async def close(self) -> None:
        """Close the connection; running calls end with `RequestAborted`."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    async def generate(
        self, *, deadline_s: float = DEFAULT_DEADLINE_S, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Event, None]:
        """Stream the events of one generation. Closing the iterator cancels the request.

        Raises:
            ServingError: the class the gateway raised.
        """
        self._open()
        request = build_request(options)
        with _errors_mapped():
            call = self._inference.Generate(request, **self._call(deadline_s))
            try:
                async for response in call:
                    if (event := event_of(response)) is not None:
                        yield event
            finally:
                call.cancel()

    async def complete(
        self, *, deadline_s: float = DEFAULT_DEADLINE_S, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """Run one generation to its end.

        Raises:
            ServingError: the class the gateway raised.
        """
        completion = Completion()
        async with contextlib.aclosing(self.generate(deadline_s=deadline_s, **options)) as events:
            async for event in events:
                completion.add(event)
        return completion

    async def list_models(self) -> list[inference_pb2.Model]:
        """The models served."""
        self._open()
        with _errors_mapped():
            reply = await self._inference.ListModels(inference_pb2.ListModelsRequest(), **self._call(self._deadline_s))
            return list(reply.models)

    async def get_status(self) -> cluster_pb2.Status:
        """How the cluster is."""
        self._open()
        with _errors_mapped():
            return _status(
                await self._cluster.GetStatus(cluster_pb2.GetStatusRequest(), **self._call(self._deadline_s))
            )

    async def watch_status(self, interval_s: float = 1.0) -> AsyncIterator[cluster_pb2.Status]:
        """The status, again and again, until the iterator is closed.

        Raises:
            DeadlineExceeded: nothing came for ten intervals (at least a minute).
        """
        self._open()
        request = cluster_pb2.WatchStatusRequest(interval_s=interval_s)
        while True:
            came = False
            try:
                with _errors_mapped():
                    call = self._cluster.WatchStatus(request, **self._call(_watch_deadline_s(interval_s)))
                    try:
                        async for response in call:
                            came = True
                            yield _status(response)
                    finally:
                        call.cancel()
            except DeadlineExceeded:
                if not came:
                    raise


def _watch_deadline_s(interval_s: float) -> float:
    """A watch is opened anew at each deadline, so that a server which hangs is noticed."""
    return max(60.0, 10 * interval_s)


def _status(reply: Any) -> cluster_pb2.Status:
    status: cluster_pb2.Status = reply.status
    return status


@contextlib.contextmanager
def _errors_mapped() -> Generator[None, None, None]:
    try:
        yield
    except grpc.RpcError as error:
        failure: Any = error
        raise _failure(failure) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Nobody cancelled the caller: gRPC says so of its own call, when the client was closed meanwhile.
        raise RequestAborted("the client was closed") from error


def _failure(error: Any) -> ServingError:
    return from_rpc(error.code(), error.details(), error.trailing_metadata())
