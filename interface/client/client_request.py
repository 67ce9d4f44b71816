"""A `GenerateRequest` from Python arguments. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from google.protobuf.json_format import ParseDict, ParseError

from baton.v1 import inference_pb2
from cluster.errors import InvalidRequest
from orchestrator.request.efforts import EFFORTS

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class GenerateOptions(TypedDict, total=False):
    """Everything `generate` takes by name. Give one of ``prompt``, ``messages`` and ``prompt_token_ids``.

    ``model`` may be left out: a cluster serves one. ``messages`` are OpenAI's: role, content (text, or parts of text)
    and, for tools, name, tool_calls and tool_call_id; ``reasoning`` of an earlier turn. ``chat_template_kwargs`` are
    further variables for the chat template. ``reasoning_budget_tokens`` wins over ``reasoning_effort``;
    ``exclude_reasoning`` leaves the reasoning's text out. The rest is `Sampling` of the proto, by the same names.
    """

    model: str
    prompt: str
    messages: Sequence[Mapping[str, Any]]
    prompt_token_ids: Sequence[int]
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    """``auto``, ``none``, ``required``, or a function as OpenAI names it."""
    parallel_tool_calls: bool
    chat_template_kwargs: Mapping[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool
    reasoning_budget_tokens: int
    reasoning_effort: Effort
    enable_reasoning: bool
    exclude_reasoning: bool
    priority: int
    tenant: str
    session: str
    request_id: str
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    seed: int
    max_tokens: int
    min_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop_in_output: bool
    stop_in_reasoning: bool
    ignore_eos: bool
    logprobs: int
    logit_bias: Mapping[int, float]
    allowed_token_ids: Sequence[int]
    bad_words: Sequence[str]
    structured_output: inference_pb2.StructuredOutput
    n: int
    skip_special_tokens: bool
    prompt_logprobs: int
    inference_scaling: Mapping[str, Any]
    """Fields of `InferenceScaling`, as over HTTP: ``{"strategy": "vote", "budget": {"usd": 0.02}}``."""


_NOT_SAMPLING = frozenset(
    {"model", "prompt", "messages", "prompt_token_ids", "tools", "priority", "tenant", "session", "request_id"}
    | {"reasoning_budget_tokens", "reasoning_effort", "enable_reasoning", "exclude_reasoning"}
    | {
        "tool_choice",
        "parallel_tool_calls",
        "chat_template_kwargs",
        "add_generation_prompt",
        "continue_final_message",
        "inference_scaling",
    }
)
_MODES = {
    "auto": inference_pb2.ToolChoice.MODE_AUTO,
    "none": inference_pb2.ToolChoice.MODE_NONE,
    "required": inference_pb2.ToolChoice.MODE_REQUIRED,
}
_OF_CHATS = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
)


def build_request(options: GenerateOptions) -> inference_pb2.GenerateRequest:
    """The request that the options describe.

    Raises:
        InvalidRequest: an option is unknown, has the wrong type, or there is not exactly one input.

    Example:
        >>> build_request({"prompt": "Hi", "temperature": 0.5}).sampling.temperature
        0.5
    """
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    inputs = [name for name in ("prompt", "messages", "prompt_token_ids") if name in given]
    if len(inputs) != 1:
        raise InvalidRequest("give exactly one of prompt, messages and prompt_token_ids", field="prompt")
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    sampling = {key: value for key, value in given.items() if key not in _NOT_SAMPLING}
    plain = {key: given[key] for key in ("model", "priority", "tenant", "session", "request_id") if key in given}
    try:
        request = inference_pb2.GenerateRequest(sampling=inference_pb2.Sampling(**sampling), **plain)
        _put_input(request, given)
        _put_reasoning(request, given)
        if (scaling := given.get("inference_scaling")) is not None:
            ParseDict(dict(scaling), request.inference_scaling)
            request.inference_scaling.SetInParent()
    except (KeyError, TypeError, ValueError, ParseError) as error:
        raise InvalidRequest(f"an option has the wrong type or value: {error}") from error
    return request


def tokenize_request(options: GenerateOptions, *, special_tokens: bool) -> inference_pb2.TokenizeRequest:
    """The request for the tokens of a generation's input.

    Raises:
        InvalidRequest: as of `build_request`; or the input is tokens already.
    """
    made = build_request(options)
    request = inference_pb2.TokenizeRequest(model=made.model, add_special_tokens=special_tokens)
    match made.WhichOneof("input"):
        case "prompt":
            request.prompt = made.prompt
        case "chat":
            request.chat.CopyFrom(made.chat)
        case _:
            raise InvalidRequest("prompt_token_ids are tokens already; give prompt or messages", field="prompt")
    return request


def _put_tools(chat: inference_pb2.Chat, given: dict[str, Any]) -> None:
    for tool in given.get("tools", ()):
        function = tool["function"]
        made = chat.tools.add(name=function["name"], description=function.get("description") or "")
        if (parameters := function.get("parameters")) is not None:
            made.parameters_json = json.dumps(parameters)
        if (strict := function.get("strict")) is not None:
            made.strict = strict
    choice = given.get("tool_choice")
    if isinstance(choice, str):
        chat.tool_choice.mode = _MODES[choice]
    elif choice is not None:
        chat.tool_choice.name = choice["function"]["name"]
    if (parallel := given.get("parallel_tool_calls")) is not None:
        chat.parallel_tool_calls = parallel


def _put_input(request: inference_pb2.GenerateRequest, given: dict[str, Any]) -> None:
    if "prompt" in given:
        request.prompt = given["prompt"]
    elif "prompt_token_ids" in given:
        request.prompt_token_ids.SetInParent()
        request.prompt_token_ids.ids.extend(given["prompt_token_ids"])
    else:
        request.chat.SetInParent()
        request.chat.messages.extend(_message(message) for message in given["messages"])
    if "messages" not in given:
        if alone := next((name for name in _OF_CHATS if given.get(name)), None):
            raise InvalidRequest(f"{alone} go with messages", field=alone)
        return
    _put_tools(request.chat, given)
    if variables := given.get("chat_template_kwargs"):
        request.chat.template_variables_json = json.dumps(dict(variables))
    if "add_generation_prompt" in given:
        request.chat.add_generation_prompt = given["add_generation_prompt"]
    request.chat.continue_final_message = given.get("continue_final_message", False)


def _message(message: Mapping[str, Any]) -> inference_pb2.ChatMessage:
    fields = {key: value for key, value in message.items() if value is not None}
    if tool_calls := fields.pop("tool_calls", None):
        fields["tool_calls_json"] = json.dumps(tool_calls)
    if isinstance(parts := fields.get("content"), list | tuple):
        fields["content"] = "\n".join(part["text"] for part in parts)
    return inference_pb2.ChatMessage(**fields)


def _put_reasoning(request: inference_pb2.GenerateRequest, given: dict[str, Any]) -> None:
    if "reasoning_budget_tokens" in given:
        request.reasoning.budget_tokens = given["reasoning_budget_tokens"]
    if (effort := given.get("reasoning_effort")) is not None:
        if effort not in EFFORTS:
            raise InvalidRequest(f"reasoning_effort: expected one of {', '.join(EFFORTS)}", field="reasoning_effort")
        request.reasoning.effort = EFFORTS[effort]
    if "enable_reasoning" in given:
        request.reasoning.enabled = given["enable_reasoning"]
    if given.get("exclude_reasoning"):
        request.reasoning.exclude = True
