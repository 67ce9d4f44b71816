"""Fields of OpenAI's and vLLM's requests that Baton does not act on: which are harmless, and which are refused.

A field that would change the answer is never ignored: the caller would get something else than was asked for.
"""

from __future__ import annotations

from typing import Any

HARMLESS = frozenset(
    {
        "metadata",  # a label on OpenAI's dashboard
        "store",  # nothing is stored here, whatever it says
        "service_tier",  # one tier
        "safety_identifier",
        "prompt_cache_retention",  # prefixes are cached as long as they fit
        "parallel_tool_calls",  # of a completion, which has no tools
        "stream_interval",  # tokens are sent as they come
        "guided_decoding_backend",  # whichever keeps the constraint
        "cache_control",  # prefixes are cached whether asked for or not
        "client_metadata",
        "provider",  # which of OpenRouter's providers may serve; here is one
        "usage",  # OpenRouter's; usage is always complete, and in streams goes by stream_options
        "litellm_call_id",
        "litellm_metadata",
        "litellm_session_id",
        "litellm_trace_id",
    }
)
"""In the body."""

HARMLESS_IN_MESSAGE = frozenset(
    {
        "id",
        "index",
        "object",
        "status",
        "created_at",
        "timestamp",
        "metadata",
        "cache_control",
        "parsed",  # what the openai package made of the content
        "citations",
        "reasoning_details",  # OpenRouter's and LiteLLM's other forms of the reasoning
        "reasoning_signature",
        "thinking_blocks",
        "provider_specific_fields",  # LiteLLM
        "provider_options",  # AI SDK
        "providerOptions",
        "provider_metadata",
        "providerMetadata",
        "additional_kwargs",  # LangChain
        "response_metadata",
        "usage_metadata",
    }
)
"""In a message: what clients keep beside the text."""

HARMLESS_IN_PART = frozenset(
    {"cache_control", "annotations", "logprobs", "id", "index", "providerOptions", "provider_options"}
)
"""In a part of a message's content."""

HARMLESS_IN_TOOL = frozenset({"cache_control", "metadata", "eager_input_streaming"})
"""In a tool or its function."""

_ONE_CHOICE = "beam search is not supported; use n"
_TEMPLATE = "is not supported; the cluster's template is used (model.chat_template in the spec)"
_CHAT = "is for chats; a completion's prompt is sent as it is"
_KV = "a client may not steer KV transfer"
_TOOLS = "the older functions interface is not supported; use tools"

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), "is not supported; use n"),
    "use_beam_search": ((False,), _ONE_CHOICE),
    "length_penalty": ((1, 1.0), _ONE_CHOICE),
    "early_stopping": ((False,), _ONE_CHOICE),
    "spaces_between_special_tokens": ((True,), "is not supported; special tokens are joined by spaces"),
    "truncate_prompt_tokens": ((-1,), "a prompt is never cut; send one that fits"),
    "truncation_side": ((), "a prompt is never cut; send one that fits"),
    "logprob_token_ids": (([],), "is not supported; use logprobs"),
    "watermarking": ((False,), "is not supported"),
    "suffix": (("",), "is not supported; the model completes at the end only"),
    "prompt_embeds": ((), "is not supported; send text or token ids"),
    "cache_salt": ((), "is not supported; prefixes are shared between callers"),
    "ec_transfer_params": ((), _KV),
    "vllm_xargs": (({},), "is not supported"),
    "repetition_detection": ((), "is not supported"),
    "logits_processors": (([],), "is not supported"),
    "return_tokens_as_token_ids": ((False,), "is not supported; use return_token_ids"),
    "return_token_offsets": ((False,), "is not supported"),
    "return_prompt_text": ((False,), "is not supported"),
    "routed_experts_prompt_start": ((0,), "is not supported"),
    "documents": (([],), "is not supported; put documents into messages"),
    "chat_template": ((), _TEMPLATE),
    "mm_processor_kwargs": (({},), "the model takes text only"),
    "media_io_kwargs": (({},), "the model takes text only"),
    "separate_reasoning": ((True,), "reasoning is always separated; include_reasoning: false leaves it out"),
    "stream_reasoning": ((True,), "reasoning is streamed as it comes; include_reasoning: false leaves it out"),
    "guided_whitespace_pattern": ((), "is not supported"),
    "functions": (([],), _TOOLS),
    "function_call": (("none",), _TOOLS),
    "modalities": ((["text"],), "the model answers in text only"),
    "audio": ((), "the model answers in text only"),
    "prediction": ((), "is not supported"),
    "web_search_options": ((), "is not supported"),
    "verbosity": (("medium",), "is not supported"),
}
"""For each field the values that say what is done anyway, and the sentence for all others."""

REFUSED_IN_COMPLETIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    "chat_template_kwargs": (({},), _CHAT),
    "continue_final_message": ((False,), _CHAT),
    "add_generation_prompt": ((False,), _CHAT),
}
"""The same for what only a chat has."""
