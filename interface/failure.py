"""Failures at the edge: logged here, once, with the request id and without a word of the prompt."""

from __future__ import annotations

import logging
import traceback

from cluster.errors import InvalidRequest, RequestError, ServingError

log = logging.getLogger("baton.api")


def report(error: Exception, request_id: str) -> ServingError:
    """Log ``error`` and return what the caller may see of it.

    Of a request error only class and field are logged, because its text may quote what the caller sent. Of an
    unforeseen error the stack is logged without its message, for the same reason, and the caller learns nothing.
    """
    name = type(error).__name__
    if isinstance(error, RequestError):
        field = f" field={error.field!r}" if isinstance(error, InvalidRequest) and error.field else ""
        log.info("request %s refused: %s%s", _printable(request_id), name, field)
        return error
    if isinstance(error, ServingError):
        log.warning("request %s failed: %s: %s", _printable(request_id), name, error)
        return error
    stack = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s failed: unforeseen %s\n%s", _printable(request_id), name, stack)
    failure = ServingError("internal error; the gateway's log has the details under this request's id")
    failure.__cause__ = error
    return failure


def _printable(request_id: str) -> str:
    """An id is free text of the caller's; a line break in it must not forge a log line."""
    return "".join(char if char.isprintable() else "?" for char in request_id[:128]) or "-"
