"""Accepted connections are probed; others stay as they are."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kv_transfer.keepalive import IDLE_S, keep_accepted_alive


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_what_a_listener_accepts_is_probed(family: socket.AddressFamily) -> None:
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    try:
        listening = socket.create_server((loopback, 0), family=family)
    except OSError:
        pytest.skip(f"no {loopback} here")
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with listening, socket.socket(family) as own, socket.socket(socket.AF_INET, socket.SOCK_DGRAM):
        assert keep_accepted_alive() >= 1
        own.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == IDLE_S
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
