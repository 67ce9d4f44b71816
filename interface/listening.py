"""Listen for HTTP on an address, or on every address of both IP families."""

from __future__ import annotations

import socket
import ssl

from aiohttp import web

BOTH_FAMILIES = "::"


async def listen(
    runner: web.AppRunner,
    host: str,
    port: int,
    *,
    ssl_context: ssl.SSLContext | None = None,
    backlog: int = 128,
) -> None:
    """Serve on a port of an address.

    ``::`` means every address of both families, as it does to gRPC: asyncio alone would leave IPv4 out. Where the
    machine has no IPv6, it means every IPv4 address.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    if host != BOTH_FAMILIES:
        await web.TCPSite(runner, host, port, backlog=backlog, ssl_context=ssl_context).start()
        return
    if socket.has_dualstack_ipv6():
        listener = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("0.0.0.0", port))
    await web.SockSite(runner, listener, backlog=backlog, ssl_context=ssl_context).start()
