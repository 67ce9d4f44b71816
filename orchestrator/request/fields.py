"""Checks that fields of every kind share: labels, and JSON in text."""

from __future__ import annotations

import json
from typing import Any

from baton.v1.inference_pb2 import GenerateRequest
from cluster.errors import InvalidRequest

MAX_LABEL_CHARS = 256


def check_labels(request: GenerateRequest) -> None:
    """Check tenant, session and request id.

    Raises:
        InvalidRequest: one is too long or cannot be printed.
    """
    for name in ("tenant", "session", "request_id"):
        label = getattr(request, name)
        if len(label) > MAX_LABEL_CHARS:
            raise InvalidRequest(f"{name} is longer than {MAX_LABEL_CHARS} characters", field=name)
        if not label.isprintable():
            # The id goes to the engines and comes back in tickets, which refuse such ids, and then blocks stay behind.
            raise InvalidRequest(f"{name} has characters that cannot be printed", field=name)


def json_field(text: str, name: str) -> Any:
    """The value of a field that holds JSON.

    Raises:
        InvalidRequest: it does not.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not JSON that can be read: {error}", field=name) from error
