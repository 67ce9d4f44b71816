"""The spec's ``model`` section: what is served, and how it reasons."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.settings import Settings

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How hard a caller asks the model to think."""


class ReasoningSettings(Settings):
    """How this model marks its reasoning. Leave the section out for a model that does not think."""

    start: str = Field("<think>", min_length=1)
    """Text that opens the reasoning. The chat template may already end with it."""
    end: str = Field("</think>", min_length=1)
    """Text that closes the reasoning and begins the answer."""
    effort_budgets_tokens: dict[Effort, Annotated[int, Field(ge=0)]] = {  # noqa: RUF012  # pydantic copies it
        "none": 0,
        "low": 512,
        "medium": 4096,
        "high": 32768,
    }
    """Thinking budget in tokens for each effort a caller may name. ``minimal``, ``xhigh`` and ``max`` take the nearest
    effort that is here."""
    answer_reserve_tokens: int = Field(64, ge=1)
    """Tokens of ``max_tokens`` kept for the answer: the reasoning is closed before it takes them. At most half of
    ``max_tokens`` is kept."""
    closing_window_tokens: int = Field(16, ge=0)
    """A trace that is to be closed is closed at the end of a line, if one comes when fewer tokens than these are left
    of its budget: behind half a line a model tends to think on. A budget below it holds no line and is none."""
    hard_stop_slack_tokens: int = Field(16, ge=0)
    """Tokens past the budget that may count as reasoning: the markers, and what a model thinks behind a closed marker
    until it closes the reasoning once more. So many tokens of an answer are held back after a trace was closed."""


class ModelSettings(Settings):
    """The model that every worker serves."""

    path: str = Field(min_length=1)
    """Folder with config.json, weights and tokenizer, the same on every node. ``~`` and ``${VAR}`` are expanded."""
    served_name: str = Field(min_length=1)
    """Name that callers ask for."""
    max_model_len_tokens: int = Field(ge=1)
    """Longest prompt plus output, in tokens."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of weights and KV. Engines of different types cannot exchange KV."""
    quantization: Literal["fp8"] | None = None
    """Weight quantisation made at load time; leave out to load what the folder holds."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of KV blocks; ``auto`` follows ``dtype``."""
    trust_remote_code: bool = False
    """Let the model folder run code of its own."""
    chat_template: str | None = Field(None, min_length=1)
    """File with a Jinja chat template to use in place of the model's own; a relative path is below ``path``. ``~`` and
    ``${VAR}`` are expanded. Gateways read it when they start."""
    accept_reasoning_effort: bool = False
    """Let a model without ``reasoning`` take requests for an effort or a thinking budget, and answer without thinking;
    for clients that send one to every model. Otherwise they are refused, as OpenAI does."""
    reasoning: ReasoningSettings | None = None
    """Reasoning markers and budgets, for a model that thinks."""
    reasoning_parser: str = Field("auto", min_length=1)
    """How the model marks its reasoning, by vLLM's name for its family, such as ``qwen3`` or ``deepseek_r1``; ``auto``
    goes by the model's type and chat template. Where ``reasoning`` is left out, it is filled in from that. ``none``:
    only what ``reasoning`` says."""
    tool_parser: str = Field("auto", min_length=1)
    """How the model writes tool calls, by vLLM's name for its family, such as ``hermes`` or ``llama3_json``; ``auto``
    goes by the model's type and chat template. A gateway loads it when it starts if it is named here, else for the
    first request with tools. ``none``: calls stay text."""
