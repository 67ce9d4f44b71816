"""The one table from error to gRPC status, HTTP status and OpenAI error, and the way back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from cluster import errors
from cluster.errors import InvalidRequest, RequestRejected, ServingError

Code = grpc.StatusCode

ERROR_KIND_KEY = "baton-error-kind"
"""Trailing metadata: the error's class name, so that the client raises the very same class."""
ERROR_FIELD_KEY = "baton-error-field"
"""Trailing metadata: the offending field of an `InvalidRequest`."""
RETRY_AFTER_KEY = "retry-after-s"
"""Trailing metadata: seconds to wait before a retry."""
REQUEST_ID_KEY = "x-request-id"
"""Trailing metadata, and a header of every HTTP reply: the id of the request in the gateway's log."""
MAX_MESSAGE_CHARS = 1000
"""gRPC carries the message in a header, and peers refuse headers over 8 KiB."""


@dataclass(frozen=True, slots=True)
class WireStatus:
    """How one error looks on the wire. ``type`` and ``code`` are OpenAI's; its clients branch on the HTTP status."""

    grpc: grpc.StatusCode
    http: int
    type: str
    code: str


_INVALID = "invalid_request_error"
_LIMIT = "rate_limit_error"
_BUSY = "service_unavailable_error"
_SERVER = "server_error"

ROWS: dict[type[ServingError], WireStatus] = {
    errors.ServingError: WireStatus(Code.INTERNAL, 500, _SERVER, "internal_error"),
    errors.ConfigError: WireStatus(Code.INTERNAL, 500, _SERVER, "config_error"),
    errors.RequestError: WireStatus(Code.INVALID_ARGUMENT, 400, _INVALID, "invalid_request"),
    errors.InvalidRequest: WireStatus(Code.INVALID_ARGUMENT, 400, _INVALID, "invalid_request"),
    errors.ModelNotFound: WireStatus(Code.NOT_FOUND, 404, _INVALID, "model_not_found"),
    errors.ResponseNotFound: WireStatus(Code.NOT_FOUND, 404, _INVALID, "response_not_found"),
    errors.Unauthenticated: WireStatus(Code.UNAUTHENTICATED, 401, _INVALID, "invalid_api_key"),
    # gRPC itself answers RESOURCE_EXHAUSTED to a message over its limit; without a retry hint, as no retry can help.
    errors.RequestTooLarge: WireStatus(Code.RESOURCE_EXHAUSTED, 413, _INVALID, "request_too_large"),
    errors.RequestRejected: WireStatus(Code.RESOURCE_EXHAUSTED, 429, _LIMIT, "rate_limit_exceeded"),
    errors.DeadlineExceeded: WireStatus(Code.DEADLINE_EXCEEDED, 504, "timeout_error", "deadline_exceeded"),
    # Over HTTP the caller is usually gone; 400 keeps clients that are not from trying again.
    errors.RequestAborted: WireStatus(Code.CANCELLED, 400, _INVALID, "request_aborted"),
    errors.CapacityError: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "no_capacity"),
    errors.OutOfBlocks: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "out_of_blocks"),
    errors.NoReadyWorker: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "no_ready_worker"),
    errors.PlacementInfeasible: WireStatus(Code.INTERNAL, 500, _SERVER, "placement_infeasible"),
    errors.TransferError: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "transfer_failed"),
    errors.TransferClosed: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "transfer_closed"),
    errors.TransferBroken: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "transfer_broken"),
    errors.TransferTimeout: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "transfer_timeout"),
    errors.TicketRefused: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "ticket_refused"),
    errors.LayoutMismatch: WireStatus(Code.INTERNAL, 500, _SERVER, "layout_mismatch"),
    errors.WorkerError: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "worker_failed"),
    errors.WorkerDied: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "worker_died"),
    errors.WorkerDraining: WireStatus(Code.UNAVAILABLE, 503, _BUSY, "worker_draining"),
    errors.EngineFailed: WireStatus(Code.INTERNAL, 500, _SERVER, "engine_failed"),
}

_BY_NAME = {row.__name__: row for row in ROWS}
_BY_CODE: dict[grpc.StatusCode, type[ServingError]] = {
    Code.INVALID_ARGUMENT: errors.InvalidRequest,
    Code.NOT_FOUND: errors.ModelNotFound,
    Code.UNAUTHENTICATED: errors.Unauthenticated,
    Code.RESOURCE_EXHAUSTED: errors.RequestTooLarge,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Code.CANCELLED: errors.RequestAborted,
    Code.UNAVAILABLE: errors.NoReadyWorker,
}


def status_of(error: ServingError) -> WireStatus:
    """The row of the error's class, or of its nearest base.

    Example:
        >>> status_of(errors.WorkerDied("gone")).http
        503
    """
    return next(ROWS[base] for base in type(error).__mro__ if base in ROWS)


def trailing_metadata(error: ServingError, *, request_id: str = "") -> tuple[tuple[str, str], ...]:
    """What goes with the gRPC status of ``error``."""
    pairs = [(ERROR_KIND_KEY, next(base.__name__ for base in type(error).__mro__ if base in ROWS))]
    if isinstance(error, RequestRejected):
        pairs.append((RETRY_AFTER_KEY, f"{error.retry_after_s:.3f}"))
    if isinstance(error, InvalidRequest):
        pairs.append((ERROR_FIELD_KEY, error.field[:200]))
    pairs.append((REQUEST_ID_KEY, request_id[:200]))
    # gRPC refuses other characters in metadata, and with them the whole status.
    return tuple((key, value) for key, value in pairs if value and value.isascii() and value.isprintable())


def http_headers(error: ServingError) -> dict[str, str]:
    """HTTP headers that go with ``error``. ``retry-after-ms`` is what OpenAI's client reads first.

    Example:
        >>> http_headers(RequestRejected("full", retry_after_s=0.25))
        {'Retry-After': '1', 'retry-after-ms': '250'}
    """
    if isinstance(error, errors.Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    if not isinstance(error, RequestRejected):
        return {}
    return {
        "Retry-After": str(max(1, math.ceil(error.retry_after_s))),
        "retry-after-ms": str(max(1, math.ceil(error.retry_after_s * 1000))),
    }


def openai_error(error: ServingError) -> dict[str, Any]:
    """The body of an error, as OpenAI writes it. Sampling fields stand at the top there, not in a message."""
    status = status_of(error)
    param = (error.field.removeprefix("sampling.") or None) if isinstance(error, InvalidRequest) else None
    return {"error": {"message": error.message, "type": status.type, "param": param, "code": status.code}}


_ANTHROPIC_TYPES = {
    400: _INVALID,
    401: "authentication_error",
    404: "not_found_error",
    405: _INVALID,
    413: "request_too_large",
    429: _LIMIT,
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(error: ServingError) -> dict[str, Any]:
    """The body of an error, as Anthropic writes it: its clients branch on the HTTP status, too.

    Example:
        >>> anthropic_error(errors.WorkerDied("gone"))
        {'type': 'error', 'error': {'type': 'overloaded_error', 'message': 'gone'}}
    """
    kind = _ANTHROPIC_TYPES.get(status_of(error).http, "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def from_rpc(code: grpc.StatusCode, details: str | None, metadata: Iterable[tuple[str, Any]] | None) -> ServingError:
    """The error that a gRPC status stands for: the class the server named, else the one that fits the code.

    Example:
        >>> from_rpc(Code.RESOURCE_EXHAUSTED, "queue full", [("retry-after-s", "0.5")]).retry_after_s
        0.5
    """
    pairs = {key: str(value) for key, value in metadata or ()}
    message = details or code.name.lower().replace("_", " ")
    kind = _BY_NAME.get(pairs.get(ERROR_KIND_KEY, "")) or _BY_CODE.get(code, ServingError)
    ids = {"request_id": pairs[REQUEST_ID_KEY]} if REQUEST_ID_KEY in pairs else {}
    if kind is RequestRejected or (kind is errors.RequestTooLarge and RETRY_AFTER_KEY in pairs):
        return RequestRejected(message, retry_after_s=_seconds(pairs.get(RETRY_AFTER_KEY)), **ids)
    if issubclass(kind, InvalidRequest):
        return kind(message, field=pairs.get(ERROR_FIELD_KEY, ""), **ids)
    return kind(message, **ids)


def _seconds(text: str | None) -> float:
    try:
        return float(text) if text is not None else 1.0
    except ValueError:
        return 1.0
