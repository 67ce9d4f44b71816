from __future__ import annotations

import socket


def free_port(host: str) -> int:
    """A TCP port that is free on ``host`` at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
