"""vLLM's reasoning parser for the markers of the spec: it shows the engine where a grammar begins.

Imported by vLLM in the engine core's process (`structured_outputs_config.reasoning_parser_plugin`). The gateway
separates reasoning and answer by itself; of the parser vLLM needs nothing but the end, and only
of what an engine generated: an end marker of an earlier turn, in the prompt, is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vllm.reasoning import ReasoningParser, ReasoningParserManager

from cluster.engine.reasoning_end import PARSER, ends_within


@ReasoningParserManager.register_module(PARSER)
class MarkerReasoningParser(ReasoningParser):
    """Finds the end marker. ``end_ids`` come with each request (`EngineLeg.reasoning_end_ids`)."""

    def __init__(self, tokenizer: Any, *, end_ids: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(tokenizer, **kwargs)
        self._end_ids = tuple(end_ids)

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Asked about a prompt where the request does not say; a leg always does (`EngineLeg.reasoning_ended`)."""
        return False

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Whether the marker ended in the newest tokens."""
        return ends_within(input_ids, len(list(delta_ids)), self._end_ids)

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Not used: the gateway does it."""
        raise NotImplementedError

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Not used: the gateway does it."""
        raise NotImplementedError

    def extract_reasoning_streaming(self, *args: Any, **kwargs: Any) -> Any:
        """Not used: the gateway does it."""
        raise NotImplementedError
