"""The prompt of a request as token ids: from text, from ids, or from chat messages by the model's template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from baton.v1.inference_pb2 import ChatMessage, GenerateRequest
from cluster.errors import InvalidRequest
from orchestrator.request.fields import json_field
from orchestrator.request.model_front import ModelFront
from orchestrator.request.tools import call_entries, tools_of


def template_variables(request: GenerateRequest) -> dict[str, Any]:
    """What the caller gives the chat template beside the messages.

    Raises:
        InvalidRequest: it is no JSON object.
    """
    text = request.chat.template_variables_json
    variables = json_field(text, "template_variables_json") if text else {}
    if not isinstance(variables, dict):
        raise InvalidRequest("template_variables_json: expected a JSON object", field="template_variables_json")
    return variables


def prompt_ids(request: GenerateRequest, front: ModelFront, variables: dict[str, Any] | None = None) -> Sequence[int]:
    """Tokenise the prompt; a chat's template gets the variables.

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
            ids = _chat_ids(request, front, variables or {})
        case _:
            raise InvalidRequest("give a prompt, prompt_token_ids or chat messages", field="input")
    if not ids:
        raise InvalidRequest("the prompt is empty", field=request.WhichOneof("input") or "input")
    return ids


def _chat_ids(request: GenerateRequest, front: ModelFront, variables: dict[str, Any]) -> Sequence[int]:
    chat = request.chat
    if not chat.messages:
        raise InvalidRequest("messages is empty", field="messages")
    most_chars = 64 * front.max_model_len_tokens
    if sum(len(message.content) + len(message.reasoning) for message in chat.messages) > most_chars:
        raise InvalidRequest("the messages are longer than the model can take", field="messages")
    goes_on = chat.continue_final_message
    opens = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not goes_on
    if goes_on and opens:
        raise InvalidRequest(
            "continue_final_message goes on in the last message and add_generation_prompt begins another; give one",
            field="continue_final_message",
        )
    text = front.template.render(
        [_entry(message, f"messages[{index}]") for index, message in enumerate(chat.messages)],
        tools=tools_of(request),
        variables=variables,
        add_generation_prompt=opens,
        continue_final_message=goes_on,
    )
    if len(text) > most_chars:
        raise InvalidRequest("the messages are longer than the model can take", field="messages")
    # The template writes bos and the like itself.
    ids: list[int] = front.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _entry(message: ChatMessage, path: str) -> dict[str, Any]:
    """A message as templates expect it."""
    if not message.role:
        raise InvalidRequest(f"{path}.role is empty", field=f"{path}.role")
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        entry["name"] = message.name
    if message.tool_call_id:
        entry["tool_call_id"] = message.tool_call_id
    if message.reasoning:
        # The two names that templates have for it.
        entry["reasoning"] = entry["reasoning_content"] = message.reasoning
    if message.tool_calls and message.tool_calls_json:
        name = f"{path}.tool_calls_json"
        raise InvalidRequest(f"{name}: tool_calls are given, too; leave {name} out", field=name)
    if message.tool_calls:
        calls = call_entries(list(message.tool_calls), path)
        entry["tool_calls"] = [_with_arguments_read(call) for call in calls]
    if message.tool_calls_json:
        calls = json_field(message.tool_calls_json, f"{path}.tool_calls_json")
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise InvalidRequest(
                f"{path}.tool_calls_json: expected a JSON array of objects", field=f"{path}.tool_calls_json"
            )
        if calls:
            entry["tool_calls"] = [_with_arguments_read(call) for call in calls]
    return entry


def _with_arguments_read(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object, which templates write as they need: OpenAI has JSON text there.

    Arguments that are no JSON object become an empty one, as with vLLM: a model wrote them, and the conversation
    would have no way on.
    """
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else {}}}
