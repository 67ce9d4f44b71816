"""The prompt of a request as token ids: from text, from ids, or from chat messages by the model's template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from baton.v1.inference_pb2 import Chat, GenerateRequest
from cluster.errors import InvalidRequest
from orchestrator.request.fields import json_field
from orchestrator.request.model_front import ModelFront


def prompt_ids(request: GenerateRequest, front: ModelFront) -> Sequence[int]:
    """Tokenise the prompt.

    Raises:
        InvalidRequest: it is empty, malformed, out of the vocabulary, or longer than the model can take in any case.
    """
    match request.WhichOneof("input"):
        case "prompt":
            if not request.prompt:
                raise InvalidRequest("the prompt is empty", field="prompt")
            # No token is shorter than a character's share of the longest one; this bounds the tokeniser's work.
            if len(request.prompt) > 64 * front.max_model_len_tokens:
                raise InvalidRequest(
                    f"the prompt has {len(request.prompt)} characters, which cannot fit the model's "
                    f"{front.max_model_len_tokens} tokens",
                    field="prompt",
                )
            ids: Sequence[int] = front.encode(request.prompt)
        case "prompt_token_ids":
            ids = list(request.prompt_token_ids.ids)
            bad = next((token for token in ids if token >= front.vocab_size), None)
            if bad is not None:
                raise InvalidRequest(
                    f"token id {bad} is out of the vocabulary (0 to {front.vocab_size - 1})", field="prompt_token_ids"
                )
        case "chat":
            ids = _chat_ids(request.chat, front)
        case _:
            raise InvalidRequest("give a prompt, prompt_token_ids or chat messages", field="input")
    if not ids:
        raise InvalidRequest("the prompt is empty", field=request.WhichOneof("input") or "input")
    return ids


def _chat_ids(chat: Chat, front: ModelFront) -> Sequence[int]:
    if not chat.messages:
        raise InvalidRequest("messages is empty", field="messages")
    if sum(len(message.content) for message in chat.messages) > 64 * front.max_model_len_tokens:
        raise InvalidRequest("the messages are longer than the model can take", field="messages")
    messages: list[dict[str, Any]] = []
    for index, message in enumerate(chat.messages):
        if not message.role:
            raise InvalidRequest(f"messages[{index}].role is empty", field=f"messages[{index}].role")
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name:
            entry["name"] = message.name
        if message.tool_call_id:
            entry["tool_call_id"] = message.tool_call_id
        if message.tool_calls_json:
            entry["tool_calls"] = json_field(message.tool_calls_json, f"messages[{index}].tool_calls_json")
        messages.append(entry)
    if not front.template.chat_template:
        raise InvalidRequest("the model has no chat template; send a prompt", field="messages")
    try:
        text = front.template.apply_chat_template(
            messages,
            tools=json_field(chat.tools_json, "tools_json") if chat.tools_json else None,
            tokenize=False,
            add_generation_prompt=chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
        )
    except InvalidRequest:
        raise
    except Exception as error:  # templates are code of the model's author and raise anything
        raise InvalidRequest(f"the model's chat template refused the messages: {error}", field="messages") from error
    # The template writes bos and the like itself.
    ids: list[int] = front.tokenizer.encode(text, add_special_tokens=False).ids
    return ids
