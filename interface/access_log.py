"""The access log: a line for each call, over HTTP and gRPC, with not a word of the caller's but the request's id."""

from __future__ import annotations

import json
import logging
import re
import uuid

from interface.authentication import current_caller

log = logging.getLogger("baton.access")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def request_id_of(given: str) -> str:
    """The caller's id, or a new one where it has none that could be one.

    Example:
        >>> request_id_of("trace-7")
        'trace-7'
        >>> len(request_id_of("two words"))
        32
    """
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def write_line(**fields: object) -> None:
    """Log the fields as ``name=value``; text is quoted as JSON does, so that no value can forge a field or line.

    The tenant is added where a key names it: without keys it is what the caller says it is.
    """
    if caller := current_caller.get():
        fields["tenant"] = caller.tenant
    log.info(" ".join(f"{name}={_shown(value)}" for name, value in fields.items()))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return json.dumps(value) if isinstance(value, str) else str(value)
