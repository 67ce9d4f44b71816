"""Refuses gRPC calls without a credential, before a message of theirs is read. Health stays open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from cluster.errors import Unauthenticated

HEALTH_PREFIX = "/grpc.health.v1.Health/"
AUTHORIZATION = "authorization"

Metadata = tuple[tuple[str, str], ...]


class Guard(grpc.aio.ServerInterceptor):
    """Calls ``check`` with the metadata of every call but health's.

    Args:
        check: Raises `Unauthenticated` for a call that is not to be served.
        trailing: Trailing metadata that goes with the refusal.
    """

    def __init__(
        self,
        check: Callable[[Mapping[str, str]], None],
        trailing: Callable[[Unauthenticated], Metadata] = lambda _: (),
    ) -> None:
        self._check = check
        self._trailing = trailing

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Serve the call, or answer UNAUTHENTICATED."""
        if handler_call_details.method.startswith(HEALTH_PREFIX):
            return await continuation(handler_call_details)
        metadata = {key: value for key, value in handler_call_details.invocation_metadata if isinstance(value, str)}
        try:
            self._check(metadata)
        except Unauthenticated as error:
            return self._refusal(error)
        return await continuation(handler_call_details)

    def _refusal(self, error: Unauthenticated) -> Any:
        async def refuse(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.message, self._trailing(error))

        # As a stream of requests, whatever the call is: gRPC then waits for no message before the handler runs.
        return grpc.stream_stream_rpc_method_handler(refuse)
