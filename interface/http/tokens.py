"""`/tokenize` and `/detokenize`, in vLLM's form. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from baton.v1 import inference_pb2
from interface.http.completions.messages import read_chat
from interface.http.fields import Fields
from interface.http.known import HARMLESS, REFUSED


@dataclass(frozen=True, slots=True)
class TokenizeCall:
    """What is to be tokenised: a prompt or a chat, as a generation would have it."""

    request: inference_pb2.GenerateRequest
    special_tokens: bool
    """Whether a prompt gets the model's own special tokens, such as bos. A chat has those of its template."""
    texts: bool
    """Whether the tokens' texts are wanted beside their ids."""


def read_tokenize_call(tree: Any) -> TokenizeCall:
    """Read the body of ``/tokenize``.

    Raises:
        InvalidRequest: a field is unknown, malformed or unsupported.

    Example:
        >>> read_tokenize_call({"prompt": "Hi"}).special_tokens
        True
    """
    fields = Fields(tree)
    request = inference_pb2.GenerateRequest(model=fields.text("model") or "")
    special_tokens = fields.flag("add_special_tokens")
    if fields.has("messages"):
        request.chat.CopyFrom(read_chat(fields))
        if special_tokens:
            text = "is not supported for messages; the chat template adds what the model needs"
            raise fields.wrong("add_special_tokens", text)
    else:
        prompt = fields.text("prompt")
        if prompt is None:
            raise fields.wrong("prompt", "missing; send prompt or messages")
        request.prompt = prompt
    texts = bool(fields.flag("return_token_strs"))
    _finish(fields)
    return TokenizeCall(request, special_tokens is not False, texts)


def read_detokenize_call(tree: Any) -> tuple[str, list[int]]:
    """Read the body of ``/detokenize``: the model's name, empty where none is named, and the ids.

    Raises:
        InvalidRequest: a field is unknown, malformed or unsupported.
    """
    fields = Fields(tree)
    model, token_ids = fields.text("model") or "", fields.ids("tokens")
    if token_ids is None:
        raise fields.wrong("tokens", "missing")
    _finish(fields)
    return model, token_ids


def tokens_object(token_ids: list[int], texts: list[str] | None, max_model_len_tokens: int) -> dict[str, Any]:
    """The reply of ``/tokenize``."""
    return {"count": len(token_ids), "max_model_len": max_model_len_tokens, "tokens": token_ids, "token_strs": texts}


def _finish(fields: Fields) -> None:
    fields.drop(HARMLESS)
    fields.drop_vendors()
    fields.refuse(REFUSED)
    fields.finish()
