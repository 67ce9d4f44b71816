"""Streams for `benchmarks.gateway_load`, from a process of their own: keeps bytes with their times, parses at the end.

Prints a JSON list: for each request its id, when it was sent, and for each message with text when it came and how many
tokens it had (every token of the stubs is one letter)::

    python -m benchmarks.gateway_client http://127.0.0.1:8000 --streams 256 --requests 512 --isl 100 --osl 300
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
import uvloop

from baton.v1 import inference_pb2 as pb
from bench.http_wire import Connection, RawReply, events

ARRIVALS_S = 1.0
"""Streams begin spread over so many seconds, so that their ends and the next ones' beginnings do not fall together."""


@dataclass(slots=True)
class Sent:
    """One request as the client saw it."""

    request_id: str
    sent_s: float
    messages: list[tuple[float, int]]


class Client(Protocol):
    """Sends requests over one protocol."""

    async def send(self, request_id: str, prompt_ids: list[int], osl: int) -> Callable[[], Sent]:
        """Run one request to its end; what it returns parses the reply, when the load is over."""

    async def close(self) -> None:
        """Close all connections."""


class HttpClient:
    """One connection for each stream at a time, as browsers and SDKs have it."""

    def __init__(self, url: str, priority: int) -> None:
        parts = urlsplit(url)
        self._priority = priority
        self._host, self._port = parts.hostname, parts.port
        self._idle: list[Connection] = []

    async def send(self, request_id: str, prompt_ids: list[int], osl: int) -> Callable[[], Sent]:
        body = json.dumps(
            {"model": "fake", "prompt": prompt_ids, "max_tokens": osl, "temperature": 0, "ignore_eos": True,
             "stream": True, "request_id": request_id, "priority": self._priority}
        ).encode()  # fmt: skip
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nX-Request-Id: {request_id}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection = self._idle.pop() if self._idle else None
        if connection is None:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        sent_s = time.perf_counter()
        reply = await connection.exchange(head.encode() + body)
        self._idle.append(connection)
        return lambda: Sent(request_id, sent_s, list(_http_messages(reply)))

    async def close(self) -> None:
        for connection in self._idle:
            connection.close()


def _http_messages(reply: RawReply) -> Iterator[tuple[float, int]]:
    if reply.status() != 200:
        raise RuntimeError(b"".join(part for _, part in reply.body()).decode())
    for at_s, data in events(reply):
        if data == b"[DONE]":
            return
        for choice in json.loads(data)["choices"]:
            if choice["text"]:
                yield at_s, len(choice["text"])


class GrpcClient:
    """All streams on few connections, as one service calls another."""

    def __init__(self, url: str, connections: int) -> None:
        address = url.removeprefix("grpc://")
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(connections)]
        self._calls = [channel.unary_stream("/baton.v1.Inference/Generate") for channel in self._channels]
        self._next = 0

    async def send(self, request_id: str, prompt_ids: list[int], osl: int) -> Callable[[], Sent]:
        request = pb.GenerateRequest(
            prompt_token_ids=pb.TokenIds(ids=prompt_ids),
            sampling=pb.Sampling(max_tokens=osl, temperature=0, ignore_eos=True),
            request_id=request_id,
        )
        self._next += 1
        call = self._calls[self._next % len(self._calls)]
        parts: list[tuple[float, bytes]] = []
        sent_s = time.perf_counter()
        async for data in call(request.SerializeToString()):
            parts.append((time.perf_counter(), data))
        return lambda: Sent(request_id, sent_s, list(_grpc_messages(parts)))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def _grpc_messages(parts: list[tuple[float, bytes]]) -> Iterator[tuple[float, int]]:
    for at_s, data in parts:
        event = pb.GenerateResponse.FromString(data)
        if event.delta.token_ids:
            yield at_s, len(event.delta.token_ids)


async def run(arguments: argparse.Namespace) -> list[Sent]:
    client: Client
    if arguments.url.startswith("http"):
        client = HttpClient(arguments.url, arguments.priority)
    else:
        client = GrpcClient(arguments.url, arguments.connections)
    numbers = iter(range(arguments.requests))
    replies: list[Callable[[], Sent]] = []

    async def stream(index: int) -> None:
        await asyncio.sleep(index / arguments.streams * ARRIVALS_S)
        for number in numbers:
            prompt_ids = [65 + (number * 7 + position * position) % 26 for position in range(arguments.isl)]
            replies.append(await client.send(f"load-{arguments.tag}-{number}", prompt_ids, arguments.osl))

    await asyncio.gather(*(stream(index) for index in range(arguments.streams)))
    await client.close()
    return [reply() for reply in replies]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--isl", type=int, default=100)
    parser.add_argument("--osl", type=int, default=300)
    parser.add_argument("--connections", type=int, default=4, help="of gRPC")
    parser.add_argument("--priority", type=int, default=0, help="over HTTP")
    parser.add_argument("--tag", default="0", help="part of the request ids")
    sent: list[Any] = uvloop.run(run(parser.parse_args()))
    print(json.dumps([asdict(each) for each in sent]))


if __name__ == "__main__":
    main()
