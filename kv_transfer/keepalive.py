"""Keepalive on the connections that UCX and NIXL accept, so that those of a vanished host do not stay for ever.

UCX sets it at the end that connects and not at the one that accepts. An engine whose peer's host was cut off thus kept
that peer's connections, four for each decode engine there: seen with a decode host cut off for 20 s.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

IDLE_S, INTERVAL_S, PROBES = 10, 2, 3
"""UCX's own, at the end that connects."""


def keep_accepted_alive() -> int:
    """Have what this process's listening sockets accept from here on be probed; returns how many listen."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # gone meanwhile
            if not os.readlink(entry).startswith("socket:"):  # noqa: PTH115
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as held:
                found += _set(held)
    return found


def _set(held: socket.socket) -> bool:
    if held.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    if not held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    # Linux hands them on to accepted sockets.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    held.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    held.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
    held.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    return True
