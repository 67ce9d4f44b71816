"""The Python client, async and sync, over gRPC. Every call has a deadline, and fails with an error of `cluster.errors`.

::

    with Client("127.0.0.1:50051") as client:
        print(client.complete(prompt="Why is the sky blue?", max_tokens=64).text)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from baton.v1 import cluster_pb2, inference_pb2
from cluster.errors import DeadlineExceeded, NoReadyWorker, ServingError
from interface.client.client_request import GenerateOptions, build_request, tokenize_request
from interface.client.completion import Completion, Event
from interface.client.credentials import Credentials
from interface.client.lines import Lines
from interface.client.resumption import Patience, Resumption
from interface.client.rpc_errors import cancelled, errors_mapped, failure, is_lost_call, unfinished

DEFAULT_DEADLINE_S = 600.0
"""Deadline of a generation that names none."""
CALL_DEADLINE_S = 10.0
"""Deadline of the short calls."""


class _Generation:
    """One generation over the gateways: when to go on with the next one, and when to give up."""

    def __init__(self, lines: Lines, options: GenerateOptions, deadline_s: float) -> None:
        self.state = Resumption(build_request(options))
        self._lines = lines
        self._patience = Patience(len(lines.addresses))
        self._until_s = time.monotonic() + deadline_s

    def arguments(self) -> dict[str, Any]:
        """Arguments of the next call: what is left of the deadline, at least a moment."""
        return self._lines.call(max(0.001, self._until_s - time.monotonic()))

    def take(self, response: Any) -> Event | None:
        """The event in a response, if it is new."""
        event = self.state.take(response)
        if isinstance(event, inference_pb2.Delta):  # a gateway that admits and falls, again and again, is no progress
            self._patience.progress()
        return event

    def pause_s(self, error: ServingError, *, lost: bool) -> float:
        """Seconds until the next gateway is to be asked.

        Raises:
            ServingError: ``error``, where no other gateway can help.
        """
        if not lost or self._lines.closed or not self.state.can_go_on:
            raise error
        pause_s = self._patience.pause_s()
        if pause_s is None or time.monotonic() + pause_s >= self._until_s:
            raise error
        self._lines.next_gateway()
        return pause_s


class Client:
    """Sync client. A context manager; safe to share between threads.

    A generation whose gateway is lost goes on at the next address, or at the same one when it is back, from the last
    token received: what is yielded is as if nothing had happened. Where that would not be exact (penalties that count
    the output, a grammar, bad words, a seed, several choices), the generation ends with an error that says so.

    Args:
        address: ``host:port`` of a gateway's gRPC listener; several in a list, or with commas.
        deadline_s: Deadline of short calls, in seconds.
        credentials: Key and TLS, where the gateway asks for them.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        deadline_s: float = CALL_DEADLINE_S,
        credentials: Credentials | None = None,
    ) -> None:
        self._deadline_s = deadline_s
        self._lines = Lines(grpc, address, credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; running calls end with `RequestAborted`."""
        self._lines.closed = True
        for channel in self._lines.channels():
            channel.close()

    def generate(
        self, *, deadline_s: float = DEFAULT_DEADLINE_S, **options: Unpack[GenerateOptions]
    ) -> Generator[Event, None, None]:
        """Stream the events of one generation. Closing the iterator cancels the request.

        Raises:
            ServingError: the class the gateway raised.
        """
        generation = _Generation(self._lines, options, deadline_s)
        while True:
            call = self._lines.inference.Generate(generation.state.request(), **generation.arguments())
            try:
                for response in call:
                    if (event := generation.take(response)) is not None:
                        yield event
                if generation.state.done:
                    return
                pause_s = generation.pause_s(unfinished(), lost=True)
            except grpc.RpcError as error:
                pause_s = generation.pause_s(failure(error), lost=is_lost_call(error))
            finally:
                call.cancel()
            time.sleep(pause_s)

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
        request = inference_pb2.ListModelsRequest()
        return list(self._ask(lambda: self._lines.inference.ListModels(request, **self._arguments())).models)

    def tokenize(self, *, special_tokens: bool = True, **options: Unpack[GenerateOptions]) -> list[int]:
        """Token ids of ``prompt`` or ``messages``, as `generate` with these options would have them.

        Args:
            special_tokens: Add the model's own (bos) to a prompt.
            options: The input and what shapes it, as of `generate`; sampling makes no difference.

        Raises:
            ServingError: the input is malformed.
        """
        request = tokenize_request(options, special_tokens=special_tokens)
        return list(self._ask(lambda: self._lines.inference.Tokenize(request, **self._arguments())).token_ids)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        request = inference_pb2.DetokenizeRequest(token_ids=token_ids)
        text: str = self._ask(lambda: self._lines.inference.Detokenize(request, **self._arguments())).text
        return text

    def get_status(self) -> cluster_pb2.Status:
        """How the cluster is."""
        request = cluster_pb2.GetStatusRequest()
        return _status(self._ask(lambda: self._lines.cluster.GetStatus(request, **self._arguments())))

    def _arguments(self) -> dict[str, Any]:
        return self._lines.call(self._deadline_s)

    def _ask(self, ask: Callable[[], Any]) -> Any:
        """Ask each gateway until one is there."""
        for left in reversed(range(len(self._lines.addresses))):
            try:
                with errors_mapped():
                    return ask()
            except NoReadyWorker:
                if not left:
                    raise
                self._lines.next_gateway()
        raise AssertionError("there is one address at least")

    def watch_status(self, interval_s: float = 1.0) -> Iterator[cluster_pb2.Status]:
        """The status, again and again, until the iterator is closed.

        Raises:
            DeadlineExceeded: nothing came for ten intervals (at least a minute).
        """
        request = cluster_pb2.WatchStatusRequest(interval_s=interval_s)
        while True:
            came = False
            try:
                with errors_mapped():
                    arguments = self._lines.call(_watch_deadline_s(interval_s))
                    call = self._lines.cluster.WatchStatus(request, **arguments)
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

    It goes on with a generation at another gateway as `Client` does.

    Args:
        address: ``host:port`` of a gateway's gRPC listener; several in a list, or with commas.
        deadline_s: Deadline of short calls, in seconds.
        credentials: Key and TLS, where the gateway asks for them.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        deadline_s: float = CALL_DEADLINE_S,
        credentials: Credentials | None = None,
    ) -> None:
        self._deadline_s = deadline_s
        self._lines = Lines(grpc.aio, address, credentials)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; running calls end with `RequestAborted`."""
        self._lines.closed = True
        for channel in self._lines.channels():
            await channel.close()

    async def generate(
        self, *, deadline_s: float = DEFAULT_DEADLINE_S, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Event, None]:
        """Stream the events of one generation. Closing the iterator cancels the request.

        Raises:
            ServingError: the class the gateway raised.
        """
        generation = _Generation(self._lines, options, deadline_s)
        while True:
            call = self._lines.inference.Generate(generation.state.request(), **generation.arguments())
            try:
                async for response in call:
                    if (event := generation.take(response)) is not None:
                        yield event
                if generation.state.done:
                    return
                pause_s = generation.pause_s(unfinished(), lost=True)
            except grpc.RpcError as error:
                pause_s = generation.pause_s(failure(error), lost=is_lost_call(error))
            except asyncio.CancelledError as error:
                raise cancelled() from error
            finally:
                call.cancel()
            await asyncio.sleep(pause_s)

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
        request = inference_pb2.ListModelsRequest()
        reply = await self._ask(lambda: self._lines.inference.ListModels(request, **self._arguments()))
        return list(reply.models)

    async def tokenize(self, *, special_tokens: bool = True, **options: Unpack[GenerateOptions]) -> list[int]:
        """Token ids of ``prompt`` or ``messages``, as `generate` with these options would have them.

        Args:
            special_tokens: Add the model's own (bos) to a prompt.
            options: The input and what shapes it, as of `generate`; sampling makes no difference.

        Raises:
            ServingError: the input is malformed.
        """
        request = tokenize_request(options, special_tokens=special_tokens)
        return list((await self._ask(lambda: self._lines.inference.Tokenize(request, **self._arguments()))).token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        request = inference_pb2.DetokenizeRequest(token_ids=token_ids)
        reply = await self._ask(lambda: self._lines.inference.Detokenize(request, **self._arguments()))
        text: str = reply.text
        return text

    async def get_status(self) -> cluster_pb2.Status:
        """How the cluster is."""
        request = cluster_pb2.GetStatusRequest()
        return _status(await self._ask(lambda: self._lines.cluster.GetStatus(request, **self._arguments())))

    def _arguments(self) -> dict[str, Any]:
        return self._lines.call(self._deadline_s)

    async def _ask(self, ask: Callable[[], Any]) -> Any:
        """Ask each gateway until one is there."""
        for left in reversed(range(len(self._lines.addresses))):
            try:
                with errors_mapped():
                    return await ask()
            except NoReadyWorker:
                if not left:
                    raise
                self._lines.next_gateway()
        raise AssertionError("there is one address at least")

    async def watch_status(self, interval_s: float = 1.0) -> AsyncIterator[cluster_pb2.Status]:
        """The status, again and again, until the iterator is closed.

        Raises:
            DeadlineExceeded: nothing came for ten intervals (at least a minute).
        """
        request = cluster_pb2.WatchStatusRequest(interval_s=interval_s)
        while True:
            came = False
            try:
                with errors_mapped():
                    arguments = self._lines.call(_watch_deadline_s(interval_s))
                    call = self._lines.cluster.WatchStatus(request, **arguments)
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
    """A watch is opened again at each deadline, so that a server which hangs is noticed."""
    return max(60.0, 10 * interval_s)


def _status(reply: Any) -> cluster_pb2.Status:
    status: cluster_pb2.Status = reply.status
    return status
