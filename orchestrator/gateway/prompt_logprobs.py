"""Log-probabilities of one prompt, on their way from the leg that computed it to the caller. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from baton.internal.v1 import worker_pb2
from baton.v1 import inference_pb2 as pb

PIECE_ENTRIES = 2048
"""Log-probabilities in one event, about: their texts take some milliseconds, in which no other stream goes on."""


class PromptLogprobs:
    """Keeps the log-probabilities of a prompt until they are sent, packed as they came.

    Args:
        tokenizer: A `tokenizers.Tokenizer`, for the texts.
        prompt_ids: The prompt's tokens.
        wanted: Whether this choice brings them; one of a request does, unless its caller has them already.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], *, wanted: bool) -> None:
        self.awaited = wanted
        """The next leg that computes the prompt is to give them."""
        self._tokenizer = tokenizer
        self._prompt_ids = prompt_ids
        self._scores: worker_pb2.PromptScores | None = None

    @property
    def arrived(self) -> bool:
        """Whether there is something to send."""
        return self._scores is not None

    def take(self, scores: worker_pb2.PromptScores) -> None:
        """A leg computed the prompt. Should another one have done so before, these are the same again."""
        if self.awaited:
            self.awaited = False
            self._scores = scores

    def events(self) -> Iterator[pb.PromptLogprobs]:
        """All of them, once."""
        scores, self._scores = self._scores, None
        if scores is None:
            return
        ranks = np.frombuffer(scores.ranks, dtype="<u4")
        columns = len(scores.token_ids) // max(1, len(scores.ranks))
        token_ids = np.frombuffer(scores.token_ids, dtype="<u4").reshape(len(ranks), columns)
        logprobs = np.frombuffer(scores.logprobs, dtype="<f4").reshape(len(ranks), columns)
        first = pb.Logprob(token_id=self._prompt_ids[0], text=self._text(self._prompt_ids[0]))
        piece = pb.PromptLogprobs(tokens=[pb.TokenLogprobs(chosen=first)])
        rows_a_piece = max(1, PIECE_ENTRIES // max(1, columns))
        for index, (ids, values, rank) in enumerate(zip(token_ids, logprobs, ranks, strict=True), start=1):
            if len(piece.tokens) >= rows_a_piece:
                yield piece
                piece = pb.PromptLogprobs(first_position=index)
            piece.tokens.append(self._row(ids.tolist(), values.tolist(), int(rank)))
        yield piece

    def _row(self, token_ids: list[int], logprobs: list[float], rank: int) -> pb.TokenLogprobs:
        entries = [
            pb.Logprob(token_id=token_id, logprob=logprob, text=self._text(token_id), rank=index)
            for index, (token_id, logprob) in enumerate(zip(token_ids, logprobs, strict=True))
        ]
        entries[0].rank = rank
        return pb.TokenLogprobs(chosen=entries[0], top=entries[1:])

    def _text(self, token_id: int) -> str:
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text
