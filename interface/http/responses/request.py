"""The body of `/v1/responses`. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from baton.v1 import inference_pb2
from interface.http.fields import Fields
from interface.http.generate_fields import finish, read_generate_fields, read_model, read_request_id
from interface.http.responses.items import put_items
from interface.http.responses.opaque_reasoning import INCLUDE
from interface.http.responses.store import StoredResponse
from interface.http.responses.tools import put_tools

Lookup = Callable[[str], StoredResponse | None]
"""Finds a stored response by its id or the id of one of its output items."""

NOT_HERE = (
    "is not stored here: it was not to be stored, was deleted, or went to make place; or another gateway has it, since "
    "each keeps its own. Send the items of the conversation instead"
)

MAX_TOP_LOGPROBS = 20
LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = frozenset(
    {
        "code_interpreter_call.outputs",  # of tools that are refused
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)

HARMLESS_IN_RESPONSES = frozenset(
    {
        "max_tool_calls",  # of tools that OpenAI runs; here are none
        "prompt_cache_options",
        "truncation",  # a prompt that does not fit is refused, never cut
    }
)
"""Beside those of every dialect."""

_NO_CONVERSATIONS = "is not supported; use previous_response_id, or send the items"
REFUSED_IN_RESPONSES: dict[str, tuple[tuple[Any, ...], str]] = {
    "conversation": ((), _NO_CONVERSATIONS),
    "prompt": ((), "stored prompts are not supported; send instructions and input"),
    "context_management": (([],), "is not supported; send the conversation as the model is to read it"),
    "moderation": ((), "is not supported"),
    "background_options": (({},), "is not supported; a background response runs at once"),
    "n": ((1,), "a response is one answer"),
    "echo": ((False,), "is not supported"),
}
"""The values that say what is done anyway, and the sentence for all others."""


@dataclass(frozen=True, slots=True)
class ResponsesCall:
    """One call of ``/v1/responses``.

    ``items`` is what the model is given, that of earlier responses included and the instructions left out; the last
    ``own_items`` of them came with this call. ``shown`` has the fields that the reply repeats.
    """

    response_id: str
    request_id: str
    requests: tuple[inference_pb2.GenerateRequest]
    stream: bool
    background: bool
    store: bool
    logprobs: int | None
    opaque_reasoning: bool
    """Whether reasoning items carry their text in ``encrypted_content``, too."""
    items: tuple[dict[str, Any], ...]
    own_items: int
    shown: dict[str, Any]
    ignored: frozenset[str]


def read_responses_call(tree: Any, *, request_id: str = "", named: bool = True, lookup: Lookup) -> ResponsesCall:
    """Read the body of ``/v1/responses``.

    Args:
        tree: The body.
        request_id: The request's, from its header.
        named: Whether the caller chose it; a response never gets an id that a caller chose.
        lookup: Finds responses that were stored.

    Raises:
        InvalidRequest: a field is unknown, malformed or unsupported, or there is no such earlier response.
    """
    fields = Fields(tree)
    model, named = read_model(fields), named or fields.has("request_id")
    request_id = read_request_id(fields, request_id)
    response_id = f"resp_{uuid.uuid4().hex if named else request_id}"
    stream, background, store = _flags(fields)
    earlier = _earlier(fields, lookup)
    before = _context(fields, earlier) if earlier is not None else []
    own = _items(fields, lookup)
    fields.refuse(REFUSED_IN_RESPONSES)
    chat, shown = inference_pb2.Chat(), {}
    shown["instructions"] = instructions = fields.text("instructions")
    if instructions:
        chat.messages.add(role="system", content=instructions)
    # Those were read when they came; a path from the body on would mislead.
    put_items(chat, [Fields(item, "previous_response_id") for item in before])
    put_items(chat, [fields.inside(item, f"input[{index}]") for index, item in enumerate(own)])
    shown |= put_tools(chat, fields) | _shown(fields, earlier)
    include = _include(fields)
    logprobs = _logprobs(fields, include)
    request = _request(fields, model, request_id, logprobs, shown)
    request.chat.CopyFrom(chat)
    _put_template_variables(fields, request.chat)
    request.session = request.session or (earlier.session if earlier is not None else response_id if store else "")
    fields.drop(HARMLESS_IN_RESPONSES)
    finish(fields)
    return ResponsesCall(
        response_id=response_id,
        request_id=request_id,
        requests=(request,),
        stream=stream,
        background=background,
        store=store,
        logprobs=logprobs,
        opaque_reasoning=INCLUDE in include,
        items=(*before, *own),
        own_items=len(own),
        shown={**shown, "model": model, "background": background, "store": store},
        ignored=frozenset(fields.ignored),
    )


def _flags(fields: Fields) -> tuple[bool, bool, bool]:
    """Whether to stream, to run in the background, and to store."""
    stream, background, store = (fields.flag(name) for name in ("stream", "background", "store"))
    if background and store is False:
        raise fields.wrong("background", "needs store: true; the response is fetched later")
    tree = fields.tree("stream_options")
    if tree is not None:
        if not stream:
            raise fields.wrong("stream_options", "needs stream: true")
        options = fields.inside(tree, "stream_options")
        # Padding against traffic analysis; no answer depends on it. Usage comes in any case.
        options.drop(frozenset({"include_obfuscation", "include_usage"}), "stream_options.")
        options.finish()
    return bool(stream), bool(background), store is not False


def _earlier(fields: Fields, lookup: Lookup) -> StoredResponse | None:
    response_id = fields.text("previous_response_id")
    if response_id is None:
        return None
    earlier = lookup(response_id)
    if earlier is None:
        raise fields.wrong("previous_response_id", f"this response {NOT_HERE}")
    return earlier


def _context(fields: Fields, earlier: StoredResponse) -> list[dict[str, Any]]:
    """What the model is given before the response's own input."""
    made = earlier.object()
    if made["status"] not in ("completed", "incomplete"):
        raise fields.wrong("previous_response_id", f"this response is {made['status']}; it has no answer")
    return [*earlier.items(), *made["output"]]


def _items(fields: Fields, lookup: Lookup) -> list[dict[str, Any]]:
    """The input's items; references to stored ones are followed."""
    value = fields.raw("input")
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise fields.wrong("input", "expected a string, or an array with an item at least")
    items = []
    for index, item in enumerate(value):
        name = f"input[{index}]"
        if not isinstance(item, dict):
            raise fields.wrong(name, "expected an object")
        # A reference may come without a type.
        reference = item.get("type") == "item_reference" or item.keys() == {"id"}
        items.append(_referenced(fields.inside(item, name), lookup) if reference else item)
    return items


def _referenced(fields: Fields, lookup: Lookup) -> dict[str, Any]:
    fields.text("type")
    item_id = fields.text("id") or ""
    fields.finish()
    stored = lookup(item_id)
    for item in stored.object()["output"] if stored is not None else ():
        if item["id"] == item_id:
            found: dict[str, Any] = item
            return found
    raise fields.wrong("id", f"this item {NOT_HERE}")


def _shown(fields: Fields, earlier: StoredResponse | None) -> dict[str, Any]:
    """What of the request the reply repeats and nothing here acts on."""
    metadata = fields.tree("metadata")
    if metadata is not None and not all(isinstance(value, str) for value in metadata.values()):
        raise fields.wrong("metadata", "expected strings as values")
    if fields.raw("truncation") not in (None, "auto", "disabled"):
        raise fields.wrong("truncation", "expected auto or disabled")
    return {
        "metadata": metadata or {},
        "previous_response_id": earlier.response_id if earlier is not None else None,
        "truncation": "disabled",
    }


def _include(fields: Fields) -> list[str]:
    include = fields.texts("include") or []
    for name in include:
        if name in _INCLUDABLE:
            fields.ignored.add(f"include.{name}")
        elif name not in (LOGPROBS, INCLUDE):
            raise fields.wrong("include", "there is no such thing to include")
    return include


def _logprobs(fields: Fields, include: list[str]) -> int | None:
    top = fields.integer("top_logprobs", high=MAX_TOP_LOGPROBS)
    if LOGPROBS in include:
        return top or 0
    if top:
        raise fields.wrong("top_logprobs", f"needs include: [{LOGPROBS}]")
    return None


def _request(
    fields: Fields, model: str, request_id: str, logprobs: int | None, shown: dict[str, Any]
) -> inference_pb2.GenerateRequest:
    max_tokens = fields.integer("max_output_tokens", low=1)
    text = fields.inside(fields.tree("text") or {}, "text")
    form = text.tree("format")
    text.refuse({"verbosity": (("medium",), "is not supported")})
    text.finish()
    request = read_generate_fields(fields, model, request_id, logprobs)
    if max_tokens is not None:
        request.sampling.max_tokens = max_tokens
    shown["max_output_tokens"] = request.sampling.max_tokens if request.sampling.HasField("max_tokens") else None
    for name in ("temperature", "top_p"):
        shown[name] = round(getattr(request.sampling, name), 6) if request.sampling.HasField(name) else None
    shown["text"] = {"format": form or {"type": "text"}, "verbosity": "medium"}
    shown["reasoning"] = {"effort": _effort(request.reasoning), "summary": None}
    shown["top_logprobs"] = logprobs or 0
    shown["user"] = request.tenant or None
    if form is not None:
        _put_format(text.inside(form, "text.format"), request.sampling)
    return request


def _effort(reasoning: inference_pb2.Reasoning) -> str | None:
    if reasoning.effort == inference_pb2.EFFORT_UNSPECIFIED:
        return None
    return inference_pb2.Effort.Name(reasoning.effort).removeprefix("EFFORT_").lower()


def _put_format(fields: Fields, sampling: inference_pb2.Sampling) -> None:
    kind = fields.text("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise fields.wrong("type", "expected text, json_object or json_schema")
    schema = fields.tree("schema") if kind == "json_schema" else None
    for label in ("name", "description", "strict"):
        # The first two are for people, and a schema always holds.
        fields.raw(label)
    fields.finish()
    if kind != "text" and sampling.HasField("structured_output"):
        raise fields.wrong("type", "give one constraint, in one place")
    if kind == "json_object":
        sampling.structured_output.json_object = True
    elif kind == "json_schema":
        if schema is None:
            raise fields.wrong("schema", "missing")
        sampling.structured_output.json_schema = json.dumps(schema)


def _put_template_variables(fields: Fields, chat: inference_pb2.Chat) -> None:
    if variables := fields.tree("chat_template_kwargs"):
        chat.template_variables_json = json.dumps(variables)
