"""A cluster of fake engines whose model writes tool calls, as Hermes does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import cache

from transformers import PreTrainedTokenizerFast

from orchestrator.policy.phases import ReasoningMarkers
from orchestrator.request.call_parsing import CallParsing
from tests.fakes.live_cluster import Cluster, cluster_of
from tests.fakes.tokenizer import END_THINK, THINK, byte_tokenizer

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city":"Bern STOP"}}\n</tool_call>'
OUTPUT = [THINK, *b"Hm.", END_THINK, *b"I look.\n", *CALL.encode(), 0]
MARKERS = ReasoningMarkers((THINK,), (END_THINK,), (tuple(b"<tool_call>"),))


@cache
def hermes() -> CallParsing:
    parsing = CallParsing("hermes", "", PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()))
    parsing.load()  # seconds, in which no request is to wait
    return parsing


def says(output: Sequence[int]) -> Callable[[Sequence[int]], int]:
    """A model that writes this behind the assistant's mark."""
    mark = list(b"assistant:")

    def rule(ledger: Sequence[int]) -> int:
        start = next(i for i in range(len(ledger), 0, -1) if list(ledger[i - len(mark) : i]) == mark)
        return output[min(len(ledger) - start, len(output) - 1)]

    return rule


@contextlib.asynccontextmanager
async def calling_cluster(*workers: str, output: Sequence[int] = OUTPUT) -> AsyncIterator[Cluster]:
    async with cluster_of(*(workers or ("prefill-0", "decode-0")), rule=says(output), eos_id=0) as made:
        front = made.gateway.model.front
        made.gateway.model.front = replace(front, calls=hermes(), eos_ids=frozenset({0}), markers=MARKERS)
        yield made
