"""An OpenAI request body as `GenerateRequest`s. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from baton.v1 import inference_pb2
from interface.http.completions.messages import read_chat
from interface.http.fields import Fields, is_token_id
from interface.http.generate_fields import finish, read_generate_fields, read_model, read_request_id
from interface.http.known import REFUSED_IN_COMPLETIONS
from interface.http.scaling import read_scaling

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's and vLLM's limit for a completion that names none. A chat that names none takes the cluster's."""


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One HTTP request, ready to run.

    ``requests`` has one entry per prompt; choice ``c`` of prompt ``p`` is choice ``p * choices + c`` of the reply.
    ``echo`` holds the prompt's text for each request, where it is to come back before the answer; `with_texts` puts
    in those of prompts that came as token ids. ``ignored`` names the fields that were let through without effect.
    """

    chat: bool
    request_id: str
    model: str
    requests: tuple[inference_pb2.GenerateRequest, ...]
    choices: int
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: int | None = None
    return_token_ids: bool = False
    echo: tuple[str, ...] = ()
    prompt_logprobs: int | None = None
    ignored: frozenset[str] = frozenset()

    @property
    def exclude_reasoning(self) -> bool:
        """Whether the reply leaves the reasoning out."""
        return self.requests[0].reasoning.exclude

    @property
    def reply_id(self) -> str:
        """The id as OpenAI forms it."""
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{self.request_id}"


def read_chat_call(tree: Any, *, request_id: str = "") -> HttpCall:
    """Read the body of ``/v1/chat/completions``.

    Raises:
        InvalidRequest: a field is unknown, malformed or unsupported.
    """
    fields = Fields(tree)
    model, request_id = read_model(fields), read_request_id(fields, request_id)
    chat = read_chat(fields)
    fields.refuse({"echo": ((False,), "is not supported in a chat")})
    fields.refuse({"add_special_tokens": ((False,), "is not supported; the chat template adds what the model needs")})
    logprobs = _chat_logprobs(fields)
    options = _stream_options(fields)
    request = read_generate_fields(fields, model, request_id, logprobs)
    request.chat.CopyFrom(chat)
    if (scaling := read_scaling(fields)) is not None:
        request.inference_scaling.CopyFrom(scaling)
    prompt_logprobs = _prompt_logprobs(fields, request.sampling, options[0])
    call = _call(fields, True, model, request_id, [request], logprobs, options)
    return replace(call, prompt_logprobs=prompt_logprobs)


def read_completion_call(tree: Any, *, request_id: str = "", max_prompts: int = 256) -> HttpCall:
    """Read the body of ``/v1/completions``.

    Raises:
        InvalidRequest: a field is unknown, malformed or unsupported.
    """
    fields = Fields(tree)
    model, request_id = read_model(fields), read_request_id(fields, request_id)
    prompts = _prompts(fields, max_prompts)
    fields.refuse({"add_special_tokens": ((True,), "is not supported; send token ids to leave them out")})
    fields.refuse(REFUSED_IN_COMPLETIONS)
    echo = bool(fields.flag("echo"))
    logprobs = fields.integer("logprobs")
    options = _stream_options(fields)
    template = read_generate_fields(fields, model, request_id, logprobs)
    if not template.sampling.HasField("max_tokens"):
        template.sampling.max_tokens = DEFAULT_COMPLETION_TOKENS
    prompt_logprobs = _prompt_logprobs(fields, template.sampling, options[0])
    if echo and (logprobs is not None or template.sampling.max_tokens == 0):
        # Those of an echoed prompt are among `logprobs`; and without any output, the prompt is all that is computed.
        template.sampling.prompt_logprobs = max(logprobs or 0, prompt_logprobs or 0)
    requests = [_with_prompt(template, prompt, i if len(prompts) > 1 else None) for i, prompt in enumerate(prompts)]
    texts = tuple(prompt if isinstance(prompt, str) else "" for prompt in prompts) if echo else ()
    call = _call(fields, False, model, request_id, requests, logprobs, options, texts)
    return replace(call, prompt_logprobs=prompt_logprobs)


async def with_texts(call: HttpCall, detokenize: Callable[[str, Sequence[int]], Awaitable[str]]) -> HttpCall:
    """The call with the text of each prompt that came as token ids and is to be echoed.

    Raises:
        ServingError: there is no such model, or no such token.
    """
    if not call.echo or not call.requests[0].HasField("prompt_token_ids"):
        return call
    texts = [await detokenize(call.model, request.prompt_token_ids.ids) for request in call.requests]
    return replace(call, echo=tuple(texts))


def _call(
    fields: Fields,
    chat: bool,
    model: str,
    request_id: str,
    requests: list[inference_pb2.GenerateRequest],
    logprobs: int | None,
    options: tuple[bool, bool, bool],
    echo: tuple[str, ...] = (),
) -> HttpCall:
    return_token_ids = bool(fields.flag("return_token_ids"))
    finish(fields)
    stream, include_usage, continuous_usage = options
    return HttpCall(
        chat=chat,
        request_id=request_id,
        model=model,
        requests=tuple(requests),
        choices=requests[0].sampling.n,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        logprobs=logprobs,
        return_token_ids=return_token_ids,
        echo=echo,
        ignored=frozenset(fields.ignored),
    )


def _chat_logprobs(fields: Fields) -> int | None:
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs")
    if not wanted:
        if top:
            raise fields.wrong("top_logprobs", "needs logprobs: true")
        return None
    return top or 0


def _prompt_logprobs(fields: Fields, sampling: inference_pb2.Sampling, stream: bool) -> int | None:
    count = fields.integer("prompt_logprobs")
    if count is None:
        return None
    if stream:
        raise fields.wrong(
            "prompt_logprobs", "is not supported in streams; leave out stream, or use echo with logprobs"
        )
    sampling.prompt_logprobs = count
    return count


def _stream_options(fields: Fields) -> tuple[bool, bool, bool]:
    """Whether to stream, to send usage at the end, and to send it with every chunk."""
    stream, tree = bool(fields.flag("stream")), fields.tree("stream_options")
    if tree is None:
        return stream, False, False
    if not stream:
        raise fields.wrong("stream_options", "needs stream: true")
    options = fields.inside(tree, "stream_options")
    include, continuous = bool(options.flag("include_usage")), bool(options.flag("continuous_usage_stats"))
    # Padding against traffic analysis, on by default with OpenAI; no answer depends on it.
    options.drop(frozenset({"include_obfuscation"}), "stream_options.")
    options.finish()
    return stream, include, include and continuous


def _prompts(fields: Fields, max_prompts: int) -> list[str | list[int]]:
    value = fields.raw("prompt")
    if value is None:
        raise fields.wrong("prompt", "missing")
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(map(is_token_id, value)):
            return [value]
        if len(value) > max_prompts:
            raise fields.wrong("prompt", f"expected at most {max_prompts} prompts in one request")
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, list) and item and all(map(is_token_id, item)) for item in value):
            return value
    raise fields.wrong("prompt", "expected a string, an array of strings, token ids, or an array of arrays of these")


def _with_prompt(
    template: inference_pb2.GenerateRequest, prompt: str | list[int], index: int | None
) -> inference_pb2.GenerateRequest:
    request = inference_pb2.GenerateRequest()
    request.CopyFrom(template)
    if index is not None:
        request.request_id = f"{template.request_id}-{index}"
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.prompt_token_ids.ids.extend(prompt)
    return request
