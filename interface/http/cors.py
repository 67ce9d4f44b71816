"""Which web pages may use the gateway from a browser (CORS), by an allow-list of origins.

A small part of the Fetch standard. aiohttp-cors was left alone: its replies lack ``Vary: Origin``, so a cache gives one
page the reply to another, and a reply to an unknown path gets no headers, which hides the error from the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

ANY = "*"
MAX_AGE_S = 600
"""Seconds that a browser may keep the answer of a preflight."""

_METHODS = "GET, HEAD, POST, DELETE"
_EXPOSED = "X-Request-Id, Retry-After, retry-after-ms"


class Cors:
    """Owns the allow-list. Add `middleware` before authentication: a preflight carries no key."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)

    def headers(self, origin: str | None) -> dict[str, str]:
        """What every reply to a request of this origin carries. Pure.

        Example:
            >>> Cors(["https://chat.example"]).headers("https://elsewhere.example")
            {'Vary': 'Origin'}
            >>> Cors([]).headers("https://chat.example")
            {}
        """
        if ANY in self._origins:
            # Without credentials: a page of any site could use what the browser keeps for this one.
            return {"Access-Control-Allow-Origin": ANY, "Access-Control-Expose-Headers": _EXPOSED} if origin else {}
        if not self._origins:
            return {}
        if origin not in self._origins:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": _EXPOSED,
        }

    @web.middleware
    async def middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Answer preflights."""
        asked = request.headers.get("Access-Control-Request-Headers", "")
        origin = request.headers.get("Origin")
        preflight = request.method == "OPTIONS" and origin and "Access-Control-Request-Method" in request.headers
        if not preflight or not self._origins:
            response: web.StreamResponse = await handler(request)
            return response
        if "Access-Control-Allow-Origin" not in self.headers(origin):
            raise web.HTTPForbidden(reason="this origin is not in gateway.cors_origins")
        headers = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": str(MAX_AGE_S)}
        if asked:
            # All: none changes what a request may do. A wildcard would leave Authorization out.
            headers["Access-Control-Allow-Headers"] = asked
        return web.Response(status=204, headers=headers)

    async def on_response_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers to any reply, errors and streams included (a signal of the application)."""
        response.headers.update(self.headers(request.headers.get("Origin")))
