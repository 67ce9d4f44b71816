"""The small channel beside a link probe: framed JSON over TCP, with a deadline on every step.

It carries NIXL metadata and buffer addresses, never the bytes that are measured. JSON and not pickle: the port is
open to all that reach the host while the probe runs.
"""

from __future__ import annotations

import functools
import json
import socket
import struct
import time
from typing import Any

from cluster.errors import TransferBroken, TransferTimeout

MAX_FRAME_BYTES = 8 << 20
"""NIXL metadata of one agent with one buffer is under 4 KiB; the rest is margin."""
_LENGTH = struct.Struct("!I")


class Channel:
    """One connection. ``deadline_s`` is on the monotonic clock and holds for everything done with the channel."""

    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        self._socket = connection
        self._deadline_s = deadline_s

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            TransferBroken: the peer is gone.
            TransferTimeout: the deadline passed.
        """
        body = json.dumps(message).encode()
        self._run(lambda: self._socket.sendall(_LENGTH.pack(len(body)) + body))

    def receive(self) -> dict[str, Any]:
        """Wait for one message. Raises as `send` does, and `TransferBroken` for what is no message."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise TransferBroken(f"the peer sent a frame of {length} bytes: this is no link probe")
        try:
            message = json.loads(self._read(length))
        except ValueError as error:
            raise TransferBroken("the peer sent no JSON: this is no link probe") from error
        if not isinstance(message, dict):
            raise TransferBroken("the peer sent no JSON object: this is no link probe")
        if "error" in message:
            raise TransferBroken(f"the peer failed: {message['error']}")
        return message

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._run(functools.partial(self._socket.recv, size - len(data)))
            if not piece:
                raise TransferBroken("the peer of the link probe closed the channel")
            data += piece
        return bytes(data)

    def _run(self, step: Any) -> Any:
        left_s = self._deadline_s - time.monotonic()
        try:
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            return step()
        except TimeoutError as error:
            raise TransferTimeout("the peer of the link probe did not answer in time") from error
        except OSError as error:
            raise TransferBroken(f"the channel of the link probe broke: {error}") from error


def connect(host: str, port: int, *, timeout_s: float, deadline_s: float) -> Channel:
    """Reach the probe's server.

    Raises:
        TransferTimeout: nothing answered within ``timeout_s``.
        TransferBroken: the address cannot be reached at all.
    """
    try:
        return Channel(socket.create_connection((host, port), timeout=timeout_s), deadline_s)
    except TimeoutError as error:
        raise TransferTimeout(f"no answer from {host}:{port} within {timeout_s:g} s") from error
    except OSError as error:
        raise TransferBroken(f"cannot reach {host}:{port}: {error.strerror or error}") from error


def listen(host: str) -> socket.socket:
    """A listening socket on a free port of ``host``."""
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    server.bind((host, 0))
    server.listen(1)
    return server


def accept(server: socket.socket, *, timeout_s: float, deadline_s: float) -> Channel:
    """Wait for the one client.

    Raises:
        TransferTimeout: no client connected within ``timeout_s``.
    """
    server.settimeout(timeout_s)
    try:
        connection, _ = server.accept()
    except TimeoutError as error:
        raise TransferTimeout(f"no client came to the link probe within {timeout_s:g} s") from error
    return Channel(connection, deadline_s)
