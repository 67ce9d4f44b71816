"""The bodies of `/v1/messages` and `/v1/messages/count_tokens`. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from baton.v1 import inference_pb2
from interface.http.fields import Fields
from interface.http.generate_fields import finish, read_generate_fields, read_model, read_request_id
from interface.http.messages.conversation import read_conversation
from orchestrator.request.efforts import EFFORTS

MAX_SESSION_CHARS = 256

HARMLESS_IN_MESSAGES = frozenset(
    {
        "speed",  # an answer's pace, not the answer
        "inference_geo",
        "diagnostics",
        "anthropic_beta",
        "anthropic_version",
    }
)
"""Beside those of every dialect."""

REFUSED_IN_MESSAGES: dict[str, tuple[tuple[Any, ...], str]] = {
    "container": ((), "is not supported; no code runs here"),
    "mcp_servers": (([],), "is not supported; call the servers yourself and give their tools in tools"),
    "n": ((1,), "a message is one answer"),
}
"""The values that say what is done anyway, and the sentence for all others."""


@dataclass(frozen=True, slots=True)
class MessagesCall:
    """One call of ``/v1/messages``."""

    request_id: str
    model: str
    requests: tuple[inference_pb2.GenerateRequest]
    stream: bool
    ignored: frozenset[str]


def read_messages_call(tree: Any, *, request_id: str = "") -> MessagesCall:
    """Read the body of ``/v1/messages``.

    Raises:
        InvalidRequest: a field is unknown, malformed or unsupported.
    """
    fields = Fields(tree)
    stream = bool(fields.flag("stream"))
    request = _read(fields, request_id)
    if not request.sampling.HasField("max_tokens"):
        raise fields.wrong("max_tokens", "missing")
    return MessagesCall(request.request_id, request.model, (request,), stream, frozenset(fields.ignored))


def read_count_call(tree: Any) -> inference_pb2.GenerateRequest:
    """Read the body of ``/v1/messages/count_tokens``; what only a generation needs may stand there, too.

    Raises:
        InvalidRequest: a field is unknown, malformed or unsupported.
    """
    return _read(Fields(tree), "")


def _read(fields: Fields, request_id: str) -> inference_pb2.GenerateRequest:
    model, request_id = read_model(fields), read_request_id(fields, request_id)
    chat = read_conversation(fields)
    session = _session(fields)
    fields.refuse(REFUSED_IN_MESSAGES)
    request = read_generate_fields(fields, model, request_id)
    request.chat.CopyFrom(chat)
    request.session = request.session or session
    request.sampling.stop.extend(fields.texts("stop_sequences") or ())
    _put_output_config(fields, request)
    _check_context_management(fields)
    if variables := fields.tree("chat_template_kwargs"):
        request.chat.template_variables_json = json.dumps(variables)
    fields.drop(HARMLESS_IN_MESSAGES)
    finish(fields)
    return request


def _session(fields: Fields) -> str:
    """Claude Code names its session in the user's id; requests of one user share prefixes in any case."""
    tree = fields.tree("metadata")
    if tree is None:
        return ""
    metadata = fields.inside(tree, "metadata")
    user_id = metadata.raw("user_id")
    if user_id is not None and not isinstance(user_id, str):
        raise metadata.wrong("user_id", "expected a string")
    # From the end: there the session's id is.
    return "".join(char for char in user_id or "" if char.isprintable())[-MAX_SESSION_CHARS:]


def _put_output_config(fields: Fields, request: inference_pb2.GenerateRequest) -> None:
    older = fields.tree("output_format")
    config = fields.inside(fields.tree("output_config") or {}, "output_config")
    effort, newer = config.text("effort"), config.tree("format")
    config.finish()
    if effort is not None:
        if effort not in EFFORTS:
            raise config.wrong("effort", f"expected one of {', '.join(EFFORTS)}")
        _put_effort(fields, effort, request.reasoning)
    if older is not None and newer is not None:
        raise fields.wrong("output_format", "is the older name of output_config.format; give one of them")
    if newer is not None:
        _put_format(config.inside(newer, "output_config.format"), request.sampling)
    elif older is not None:
        _put_format(fields.inside(older, "output_format"), request.sampling)


def _put_effort(fields: Fields, effort: str, reasoning: inference_pb2.Reasoning) -> None:
    """An effort is of the whole answer with Anthropic, so ``thinking``, which is of the reasoning alone, wins."""
    if reasoning.HasField("budget_tokens") or reasoning.effort == inference_pb2.EFFORT_NONE:
        fields.ignored.add("output_config.effort")
    elif reasoning.effort not in (inference_pb2.EFFORT_UNSPECIFIED, EFFORTS[effort]):
        raise fields.wrong("output_config.effort", "contradicts another effort; give one of them")
    else:
        reasoning.effort = EFFORTS[effort]


def _put_format(fields: Fields, sampling: inference_pb2.Sampling) -> None:
    kind, schema = fields.text("type"), fields.tree("schema")
    fields.text("name")
    fields.finish()
    if kind != "json_schema":
        raise fields.wrong("type", "expected json_schema")
    if schema is None:
        raise fields.wrong("schema", "missing")
    if sampling.HasField("structured_output"):
        raise fields.wrong("schema", "give one constraint, in one place")
    sampling.structured_output.json_schema = json.dumps(schema)


def _check_context_management(fields: Fields) -> None:
    """Let edits of earlier reasoning through: what of it is shown is the chat template's to say."""
    tree = fields.tree("context_management")
    if tree is None:
        return
    management = fields.inside(tree, "context_management")
    for index, item in enumerate(management.items("edits") or ()):
        edit = management.inside(item, f"context_management.edits[{index}]")
        if not (edit.text("type") or "").startswith("clear_thinking_"):
            raise edit.wrong("type", "is not supported; send the conversation as the model is to read it")
        fields.ignored.add("context_management.clear_thinking")
    management.finish()
