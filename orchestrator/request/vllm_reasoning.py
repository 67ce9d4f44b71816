"""Markers of the reasoning from vLLM's own parser, for families whose markers `model_parsers` does not list."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import ConfigError
from cluster.model.model_parsers import NONE, REASONING_TEXTS
from cluster.spec.model_settings import ModelSettings, ReasoningSettings


def with_vllm_markers(settings: ModelSettings, folder: Path) -> ModelSettings:
    """Settings that `model_parsers.with_parsers` gave, with the markers of their parser where they have none yet.

    It imports vLLM only for a family that is not listed, and is then as slow.

    Args:
        settings: The spec's ``model`` section.
        folder: The model's.

    Raises:
        ConfigError: the parser does not fit the tokenizer, or its markers are no fixed texts.
    """
    name, given = settings.reasoning_parser, settings.reasoning or ReasoningSettings.model_validate({})
    if name == NONE or name in REASONING_TEXTS or {"start", "end"} & given.model_fields_set:
        return settings
    from transformers import AutoTokenizer
    from vllm.reasoning import ReasoningParserManager

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=settings.trust_remote_code)
    try:
        parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer)
    except Exception as error:  # vLLM's parsers raise any class
        raise ConfigError(
            f"model.reasoning_parser={name}: vLLM's parser does not fit this model ({error}); name another, or none"
        ) from error
    start, end = parser.reasoning_start_str, parser.reasoning_end_str
    if not start or not end:
        raise ConfigError(
            f"model.reasoning_parser={name}: vLLM's parser names no texts that open and close the reasoning; set "
            "model.reasoning.start and model.reasoning.end"
        )
    # Checked, not copied: another reading of the spec has to find that they are set.
    filled = ReasoningSettings.model_validate({**given.model_dump(exclude_unset=True), "start": start, "end": end})
    return settings.model_copy(update={"reasoning": filled})
