"""A client's channels to the gateways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from baton.v1 import cluster_pb2_grpc, inference_pb2_grpc
from cluster.errors import RequestAborted
from interface.client.credentials import Credentials
from interface.client.resumption import addresses_of

_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A reply's size is the server's business; a request's is checked there.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class Lines:
    """Channels to the gateways, made at first use; one of them is the present one.

    Made at first use and not before, because gRPC ties an async channel to the running loop.
    """

    def __init__(self, module: Any, address: str | Sequence[str], credentials: Credentials | None) -> None:
        self.addresses = addresses_of(address)
        self.closed = False
        self._module = module
        self._credentials = credentials or Credentials()
        self._stubs: dict[str, tuple[Any, Any, Any]] = {}
        self._present = 0

    def call(self, deadline_s: float) -> dict[str, Any]:
        """What goes with every call."""
        return {"timeout": deadline_s, "metadata": self._credentials.metadata}

    def next_gateway(self) -> None:
        """The present gateway was lost."""
        self._present = (self._present + 1) % len(self.addresses)

    @property
    def inference(self) -> Any:
        """Stub at the present gateway."""
        return self._at()[1]

    @property
    def cluster(self) -> Any:
        """Stub at the present gateway."""
        return self._at()[2]

    def channels(self) -> list[Any]:
        """Channels made so far; they are forgotten."""
        channels = [channel for channel, _, _ in self._stubs.values()]
        self._stubs = {}
        return channels

    def _at(self) -> tuple[Any, Any, Any]:
        if self.closed:
            raise RequestAborted("the client is closed")
        address = self.addresses[self._present]
        if address not in self._stubs:
            channel = self._credentials.channel(self._module, address, _OPTIONS)
            stubs = (inference_pb2_grpc.InferenceStub(channel), cluster_pb2_grpc.ClusterStub(channel))
            self._stubs[address] = (channel, *stubs)
        return self._stubs[address]
