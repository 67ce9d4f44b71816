"""What a gRPC error means to the client, as an error of `cluster.errors`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any

import grpc

from cluster.errors import RequestAborted, ServingError, WorkerError
from interface.client.resumption import is_lost
from interface.status import from_rpc


@contextlib.contextmanager
def errors_mapped() -> Generator[None, None, None]:
    """Within it, an error of gRPC or a cancelled call is raised as an error of `cluster.errors`."""
    try:
        yield
    except grpc.RpcError as error:
        raise failure(error) from error
    except asyncio.CancelledError as error:
        raise cancelled() from error


def cancelled() -> BaseException:
    """What a cancellation means: the caller's task was cancelled, or the client was closed meanwhile."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return asyncio.CancelledError()
    # Nobody cancelled the caller: gRPC says so of its own call.
    return RequestAborted("the client was closed")


def failure(error: Any) -> ServingError:
    """The error of `cluster.errors` that a failed call stands for; the call's own is its cause."""
    found = from_rpc(error.code(), error.details(), error.trailing_metadata())
    found.__cause__ = error
    return found


def is_lost_call(error: Any) -> bool:
    """Whether the call's gateway is lost, so that another may go on with it."""
    return is_lost(error.code(), error.trailing_metadata())


def unfinished() -> ServingError:
    """The error of a stream that ended without a result."""
    return WorkerError("the gateway ended the stream without a result")
