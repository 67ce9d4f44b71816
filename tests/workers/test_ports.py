"""A port that is kept for an engine: it can bind it, and nobody is given it meanwhile."""

from __future__ import annotations

import socket

import pytest
import zmq

from workers.ports import reserved_port


def test_who_reuses_addresses_can_bind_and_others_cannot() -> None:
    with reserved_port("127.0.0.1") as keeper:
        host, port = keeper.getsockname()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((host, port))
        with zmq.Context() as context, context.socket(zmq.ROUTER) as side_channel:
            side_channel.bind(f"tcp://{host}:{port}")
            with zmq.Context() as second, second.socket(zmq.ROUTER) as late, pytest.raises(zmq.ZMQError):
                late.bind(f"tcp://{host}:{port}")
