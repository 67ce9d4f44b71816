"""Tokens of a text or a chat, and text of tokens, for callers who count them. No worker takes part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from baton.v1.inference_pb2 import GenerateRequest
from cluster.errors import InvalidRequest
from cluster.spec.model_settings import ReasoningSettings
from orchestrator.request.model_front import ModelFront
from orchestrator.request.prompt import prompt_ids, template_variables
from orchestrator.request.reasoning_ask import read_ask

T = TypeVar("T")

ON_LOOP_ITEMS = 20_000
"""Characters or tokens up to which it is done at once: at some 1 MB/s, more would hold up every other stream."""
MAX_THREADS = 2
"""Long texts at once: long prompts of generations use the same threads."""


class Tokenization:
    """Tokenises and detokenises with one model's tokeniser. Owns how much of that runs at once.

    How long a text may be is bounded by the interface alone: callers count those that are too long for the model, too.
    """

    def __init__(self, front: ModelFront, reasoning: ReasoningSettings | None = None) -> None:
        self._front = front
        self._reasoning = reasoning
        self._threads = asyncio.Semaphore(MAX_THREADS)

    async def tokenize(self, request: GenerateRequest, *, special_tokens: bool) -> list[int]:
        """The ids that the request's input has; ``special_tokens`` counts for text, which alone can do without.

        Raises:
            InvalidRequest: the input is malformed.
        """

        def ids() -> list[int]:
            if request.WhichOneof("input") != "prompt":
                variables = template_variables(request)
                ask = read_ask(request, variables, self._reasoning)
                return list(prompt_ids(request, self._front, {**ask.template_variables(), **variables}))
            found: Any = self._front.tokenizer.encode(request.prompt, add_special_tokens=special_tokens)
            return list(found.ids)

        return await self._do(ids, request.ByteSize())

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included.

        Raises:
            InvalidRequest: an id is out of the vocabulary.
        """
        bad = next((token for token in token_ids if token >= self._front.vocab_size), None)
        if bad is not None:
            most = self._front.vocab_size - 1
            raise InvalidRequest(f"tokens: id {bad} is out of the vocabulary (0 to {most})", field="tokens")

        def text() -> str:
            decoded: str = self._front.tokenizer.decode(list(token_ids), skip_special_tokens=False)
            return decoded

        return await self._do(text, len(token_ids))

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it; empty for an id that it does not have."""
        return [self._front.tokenizer.id_to_token(token) or "" for token in token_ids]

    async def _do(self, work: Callable[[], T], items: int) -> T:
        if items <= ON_LOOP_ITEMS:
            return work()
        async with self._threads:
            return await asyncio.to_thread(work)
