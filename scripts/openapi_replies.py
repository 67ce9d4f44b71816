"""What each path of the HTTP interface does and answers: an operation for each, and the schemas of the replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. ``reply`` and ``error`` are names of `COMPONENTS`."""

    summary: str
    reply: str
    error: str = "Error"
    streams: bool = False
    fails: bool = True
    parameters: tuple[str, ...] = ()
    query: tuple[str, ...] = ()


GETS: dict[str, Operation] = {
    "/v1/models": Operation("The models served", "ModelList"),
    "/v1/models/{model}": Operation("One model", "Model", parameters=("model",)),
    "/v1/status": Operation("Workers, pairs and requests as this gateway sees them", "Status"),
    "/v1/responses/{response}": Operation("A stored response", "Response", parameters=("response",)),
    "/v1/responses/{response}/input_items": Operation(
        "What a stored response was asked", "ItemList", parameters=("response",), query=("order", "after", "limit")
    ),
    "/version": Operation("Baton's version", "Version"),
    "/openapi.json": Operation("This document", "Document"),
    "/health": Operation("Whether the process serves", "Health"),
    "/v1/health": Operation("Whether the process serves", "Health"),
    "/ping": Operation("Whether the process serves", "Health"),
}
DELETES: dict[str, Operation] = {
    "/v1/responses/{response}": Operation("Forget a stored response", "Deleted", parameters=("response",)),
}
POSTS: dict[str, Operation] = {
    "/v1/chat/completions": Operation("Answer a chat", "ChatCompletion", streams=True),
    "/v1/completions": Operation("Complete prompts", "Completion", streams=True),
    "/v1/messages": Operation("Answer a chat, as Anthropic's API does", "Message", "AnthropicError", streams=True),
    "/v1/messages/count_tokens": Operation("Count a chat's tokens", "InputTokens", "AnthropicError"),
    "/v1/responses/{response}/cancel": Operation(
        "Cancel a response that runs in the background", "Response", parameters=("response",)
    ),
    "/v1/responses": Operation("Answer a chat, as OpenAI's Responses API does", "Response", streams=True),
    "/tokenize": Operation("Tokens of a prompt or of messages", "Tokens"),
    "/detokenize": Operation("Text of tokens", "Text"),
    "/ping": Operation("Whether the process serves", "Health"),
}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_USAGE = _object(
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    total_tokens=_COUNT,
    prompt_tokens_details=_object(cached_tokens=_COUNT),
    completion_tokens_details=_object(reasoning_tokens=_COUNT),
)


def _generation(kind: str, **choice: Schema) -> Schema:
    finish: Schema = {"enum": ["stop", "length", "tool_calls", None]}
    choices = {"type": "array", "items": _object(index=_COUNT, finish_reason=finish, **choice)}
    return _object(id=_TEXT, object={"const": kind}, created=_COUNT, model=_TEXT, choices=choices, usage=_USAGE)


COMPONENTS: dict[str, Schema] = {
    "AnthropicError": _object(type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT)),
    "ChatCompletion": _generation(
        "chat.completion",
        message=_object(role={"const": "assistant"}, content={"type": ["string", "null"]}),
        logprobs={"type": ["object", "null"]},
    ),
    "Completion": _generation("text_completion", text=_TEXT, logprobs={"type": ["object", "null"]}),
    "Deleted": _object(id=_TEXT, object={"const": "response"}, deleted={"const": True}),
    "Document": {"type": "object"},
    "Error": _object(
        error=_object(message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}, code={"type": ["string", "null"]})
    ),
    "Health": _object(status={"const": "ok"}),
    "InputTokens": _object(input_tokens=_COUNT),
    "ItemList": _object(
        object={"const": "list"},
        data={"type": "array", "items": _object(id=_TEXT, type=_TEXT)},
        first_id=_TEXT,
        last_id=_TEXT,
        has_more={"type": "boolean"},
    ),
    "Message": _object(
        id=_TEXT,
        type={"const": "message"},
        role={"const": "assistant"},
        model=_TEXT,
        content={"type": "array", "items": _object(type=_TEXT)},
        stop_reason={"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        stop_sequence={"type": ["string", "null"]},
        usage=_object(input_tokens=_COUNT, cache_read_input_tokens=_COUNT, output_tokens=_COUNT),
    ),
    "Model": _object(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT, max_model_len=_COUNT),
    "ModelList": _object(
        object={"const": "list"}, data={"type": "array", "items": {"$ref": "#/components/schemas/Model"}}
    ),
    "Response": _object(
        id=_TEXT,
        object={"const": "response"},
        created_at=_COUNT,
        status={"enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]},
        model=_TEXT,
        output={"type": "array", "items": _object(id=_TEXT, type=_TEXT)},
        usage={"type": ["object", "null"]},
    ),
    "Status": _object(cluster=_TEXT, model=_TEXT, version=_TEXT, workers={"type": "array"}),
    "Text": _object(prompt=_TEXT),
    "Tokens": _object(
        count=_COUNT,
        max_model_len=_COUNT,
        tokens={"type": "array", "items": _COUNT},
        token_strs={"anyOf": [{"type": "array", "items": _TEXT}, {"type": "null"}]},
    ),
    "Version": _object(version=_TEXT),
}
