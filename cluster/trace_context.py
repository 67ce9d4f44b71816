"""The trace that a request belongs to, as its caller names it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

TRACE_KEYS = ("traceparent", "tracestate")
"""Headers and metadata of W3C's Trace Context."""

caller_trace: ContextVar[Mapping[str, str]] = ContextVar("caller_trace", default=MappingProxyType({}))
"""Those of them that came with the call, within its task."""


def take_trace(headers: Mapping[str, str]) -> None:
    """Keep what a call's headers say of its trace.

    Example:
        >>> take_trace({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "accept": "*/*"})
        >>> list(caller_trace.get())
        ['traceparent']
    """
    caller_trace.set({key: headers[key] for key in TRACE_KEYS if key in headers})
