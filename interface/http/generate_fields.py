"""What requests of every dialect say beside their input: model, ids, sampling, reasoning, deadline, session. Pure."""

from __future__ import annotations

import re
import uuid

from baton.v1 import inference_pb2
from cluster.errors import InvalidRequest
from interface.http.fields import INT32_MAX, Fields
from interface.http.known import HARMLESS, REFUSED
from interface.http.reasoning import read_reasoning
from interface.http.sampling import read_sampling

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def read_model(fields: Fields) -> str:
    """Take ``model``."""
    model = fields.text("model")
    if not model:
        raise fields.wrong("model", "missing")
    return model


def read_request_id(fields: Fields, header: str) -> str:
    """Take ``request_id``; without one the header's holds, and without either a new one."""
    given = fields.text("request_id") or header
    if not given:
        return uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(given):
        raise InvalidRequest("request_id: expected at most 128 visible ASCII characters", field="request_id")
    return given


def read_generate_fields(
    fields: Fields, model: str, request_id: str, logprobs: int | None = None
) -> inference_pb2.GenerateRequest:
    """Take everything but the input.

    Raises:
        InvalidRequest: a field has the wrong type or value.
    """
    request = inference_pb2.GenerateRequest(model=model, request_id=request_id, sampling=read_sampling(fields))
    if logprobs is not None:
        request.sampling.logprobs = logprobs
    if (reasoning := read_reasoning(fields)) is not None:
        request.reasoning.CopyFrom(reasoning)
    # vLLM serves low numbers first and Baton high ones; over this interface vLLM's meaning holds.
    request.priority = -(fields.integer("priority", low=-INT32_MAX, high=INT32_MAX) or 0)
    if (deadline_s := fields.number("deadline_s")) is not None:
        request.deadline_s = deadline_s
    request.tenant = fields.text("user") or ""
    # Both say: these requests share a prefix.
    session, cache_key = fields.text("session_id"), fields.text("prompt_cache_key")
    request.session = session or cache_key or ""
    return request


def finish(fields: Fields) -> None:
    """Let the rest through, or refuse it, as `known` has it.

    Raises:
        InvalidRequest: a field is refused, or unknown.
    """
    if fields.has("kv_transfer_params"):
        raise fields.wrong("kv_transfer_params", "a client may not steer KV transfer")
    fields.drop(HARMLESS)
    fields.drop_vendors()
    fields.refuse(REFUSED)
    fields.finish()
