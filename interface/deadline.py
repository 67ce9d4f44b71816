"""A request's own deadline and the connection's, folded into one. Pure."""

from __future__ import annotations

import math

from baton.v1 import inference_pb2
from cluster.errors import DeadlineExceeded, InvalidRequest


def fold_deadline(request: inference_pb2.GenerateRequest, remaining_s: float | None) -> None:
    """Put the earlier of ``request.deadline_s`` and ``remaining_s`` into the request.

    Args:
        request: Changed in place.
        remaining_s: Seconds the caller still waits, as the connection says; None where it says nothing.

    Raises:
        DeadlineExceeded: it is past already.
        InvalidRequest: it is not a number.

    Example:
        >>> request = inference_pb2.GenerateRequest(deadline_s=5)
        >>> fold_deadline(request, 2.5)
        >>> request.deadline_s
        2.5
    """
    candidates = [] if remaining_s is None or math.isinf(remaining_s) else [remaining_s]
    if request.HasField("deadline_s"):
        if math.isnan(request.deadline_s):
            raise InvalidRequest("deadline_s: expected seconds, got NaN", field="deadline_s")
        if math.isinf(request.deadline_s) and request.deadline_s > 0:
            request.ClearField("deadline_s")
        else:
            candidates.append(request.deadline_s)
    if not candidates:
        return
    deadline_s = min(candidates)
    if deadline_s <= 0:
        raise DeadlineExceeded("the deadline was past when the request arrived")
    request.deadline_s = deadline_s
