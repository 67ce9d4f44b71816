"""A port that is kept for a process that takes it later."""

from __future__ import annotations

import socket


def reserved_port(host: str) -> socket.socket:
    """A socket that keeps a free port until it is closed.

    It does not listen, so another process may bind the port if it sets SO_REUSEADDR, as ZeroMQ does; the kernel gives
    it to nobody else. An engine takes its port half a minute after it was chosen: others had it by then (seen).
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind((host, 0))
    return keeper
