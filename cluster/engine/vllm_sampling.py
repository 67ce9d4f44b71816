"""A leg's sampling in vLLM's terms. Pure: imports no vLLM."""

from __future__ import annotations

from typing import Any

from baton.v1.inference_pb2 import Sampling
from cluster.engine.protocol import EngineLeg

FLOATS_AND_COUNTS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
    "logprobs",
)  # fmt: skip
"""Fields that have the same name and meaning in vLLM; one that is not set keeps vLLM's default."""


def sampling_arguments(leg: EngineLeg) -> dict[str, Any]:
    """Arguments of vLLM's ``SamplingParams`` but for ``output_kind`` and ``structured_outputs``."""
    given = leg.sampling
    arguments: dict[str, Any] = {
        "max_tokens": leg.max_tokens,
        "min_tokens": leg.min_tokens,
        "detokenize": False,
        "ignore_eos": given.ignore_eos,
        "skip_clone": True,
    }
    for name in FLOATS_AND_COUNTS:
        if given.HasField(name):
            arguments[name] = getattr(given, name)
    if given.HasField("prompt_logprobs"):
        # Flat: as one object a token they would take several times the memory, for long prompts hundreds of MB.
        arguments |= {"prompt_logprobs": given.prompt_logprobs, "flat_logprobs": True}
    if given.stop_token_ids:
        arguments["stop_token_ids"] = list(given.stop_token_ids)
    if given.logit_bias:
        arguments["logit_bias"] = dict(given.logit_bias)
    if given.allowed_token_ids:
        arguments["allowed_token_ids"] = list(given.allowed_token_ids)
    if given.bad_words:
        arguments["bad_words"] = list(given.bad_words)
    if leg.transfer_params:
        arguments["extra_args"] = {"kv_transfer_params": dict(leg.transfer_params)}
    return arguments


def structured_arguments(sampling: Sampling) -> dict[str, Any] | None:
    """Arguments of vLLM's ``StructuredOutputsParams``; None where the output is free."""
    if not sampling.HasField("structured_output"):
        return None
    wanted = sampling.structured_output
    match wanted.WhichOneof("kind"):
        case "json_schema":
            return {"json": wanted.json_schema}
        case "regex":
            return {"regex": wanted.regex}
        case "grammar":
            return {"grammar": wanted.grammar}
        case "choices":
            return {"choice": list(wanted.choices.values)}
        case "json_object":
            return {"json_object": True}
        case "structural_tag":
            return {"structural_tag": wanted.structural_tag}
    return None


def grammar_start(leg: EngineLeg) -> dict[str, Any]:
    """Where the grammar begins; vLLM asks the parser only while ``reasoning_ended`` is False."""
    if leg.reasoning_ended is None:
        return {}
    return {
        "reasoning_ended": leg.reasoning_ended,
        "reasoning_parser_kwargs": {"end_ids": list(leg.reasoning_end_ids)},
    }
