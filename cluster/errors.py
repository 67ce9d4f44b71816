"""Every error Baton raises, grouped by what the caller should do.

::

    ServingError
    ├── ConfigError              start-up: fix the key named in the text
    ├── RequestError
    │   ├── InvalidRequest       fix the request; a retry cannot help
    │   ├── ModelNotFound        ask for a model that `ListModels` names
    │   ├── ResponseNotFound     send the conversation's items
    │   ├── Unauthenticated      send a valid key
    │   ├── RequestTooLarge      send less
    │   ├── RequestRejected      wait `retry_after_s`, then retry
    │   ├── DeadlineExceeded     retry with a later deadline
    │   └── RequestAborted       the caller went away or cancelled
    ├── CapacityError
    │   ├── OutOfBlocks          wait for running requests to finish
    │   ├── NoReadyWorker        wait for a worker, or add one
    │   └── PlacementInfeasible  add resources, or ask for less
    ├── TransferError
    │   ├── TransferClosed       closed by us
    │   ├── TransferBroken       peer or link failed: prefill again
    │   ├── TransferTimeout      too slow or never started: prefill again
    │   ├── TicketRefused        stale, used or malformed ticket: prefill again
    │   └── LayoutMismatch       the two engines cannot exchange KV
    └── WorkerError
        ├── WorkerDied           prefill again elsewhere
        ├── WorkerDraining       send new work elsewhere
        └── EngineFailed         the engine refused or broke; the text says why

``retryable`` says whether the same call can succeed later without a change by the caller.
The library error that caused one stays as ``__cause__``.
"""

from __future__ import annotations

from typing import ClassVar


class ServingError(Exception):
    """Base of all errors. ``ids`` carries the request, worker or key concerned, for logs.

    Example:
        >>> str(WorkerDied("engine core exited", worker_id="decode-0"))
        'engine core exited (worker_id=decode-0)'
    """

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **ids: str) -> None:
        super().__init__(message)
        self.message = message
        self.ids = ids

    def __str__(self) -> str:
        if not self.ids:
            return self.message
        return f"{self.message} ({', '.join(f'{key}={value}' for key, value in self.ids.items())})"


class ConfigError(ServingError):
    """A value in the spec is wrong. The text names key path, value and what was expected."""


class RequestError(ServingError):
    """One request cannot be served as asked."""


class InvalidRequest(RequestError):
    """The request is malformed or asks for what cannot be kept. ``field`` names the offending field."""

    def __init__(self, message: str, *, field: str = "", **ids: str) -> None:
        super().__init__(message, **ids)
        self.field = field


class ModelNotFound(RequestError):
    """No such model is served here."""


class ResponseNotFound(RequestError):
    """No such response is stored here for this tenant."""


class Unauthenticated(RequestError):
    """The caller showed no valid key."""


class RequestTooLarge(RequestError):
    """Body, message or header over the limit."""


class RequestRejected(RequestError):
    """Refused before admission: queue full or the deadline cannot be met. Retry after ``retry_after_s`` seconds.

    ``reason`` is a word for metrics: queue_full, deadline, displaced, streams, tenant_in_flight, tenant_rate.
    """

    retryable = True

    def __init__(self, message: str, *, retry_after_s: float, reason: str = "queue_full", **ids: str) -> None:
        super().__init__(message, **ids)
        self.retry_after_s = retry_after_s
        self.reason = reason


class DeadlineExceeded(RequestError):
    """The deadline passed, before or during the request."""

    retryable = True


class RequestAborted(RequestError):
    """The caller cancelled or went away."""


class CapacityError(ServingError):
    """There is not enough of something at present."""

    retryable = True


class OutOfBlocks(CapacityError):
    """No worker has enough free KV blocks."""


class NoReadyWorker(CapacityError):
    """No worker of the needed role is ready."""


class PlacementInfeasible(CapacityError):
    """The nodes cannot hold the workers asked for."""

    retryable = False


class TransferError(ServingError):
    """KV did not arrive. A new prefill always helps."""

    retryable = True


class TransferClosed(TransferError):
    """Closed on purpose, by this side."""


class TransferBroken(TransferError):
    """The peer or the link failed."""


class TransferTimeout(TransferError):
    """Not done, or not begun, in time."""


class TicketRefused(TransferError):
    """The ticket is stale, used, malformed, or of another incarnation."""


class LayoutMismatch(TransferError):
    """The two engines hold KV in ways that do not fit together."""

    retryable = False


class WorkerError(ServingError):
    """A worker cannot do what was asked."""

    retryable = True


class WorkerDied(WorkerError):
    """The worker or its engine is gone."""


class WorkerDraining(WorkerError):
    """The worker takes no new work."""


class EngineFailed(WorkerError):
    """The engine refused the request or broke on it."""
