"""Log-probabilities of one choice, on their way from its legs to its deltas. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from baton.v1 import inference_pb2 as pb


class ChoiceLogprobs:
    """Keeps entries in step with the ledger: one for each of its tokens that no delta has carried yet.

    Args:
        tokenizer: A `tokenizers.Tokenizer`, for the entries' texts.
        sampling: Says how many alternatives are asked for, if any.
    """

    def __init__(self, tokenizer: Any, sampling: pb.Sampling) -> None:
        self._tokenizer = tokenizer
        self._wanted = sampling.logprobs if sampling.HasField("logprobs") else None
        self._entries: deque[pb.TokenLogprobs] = deque()
        self._arrived: dict[str, deque[pb.TokenLogprobs]] = {}

    def arrive(self, leg_id: str, entries: Iterable[pb.TokenLogprobs]) -> None:
        """A leg's message brought entries; its tokens may still wait to be taken in."""
        self._arrived.setdefault(leg_id, deque()).extend(entries)

    def take(self, leg_id: str, tokens: int) -> None:
        """So many tokens of the leg are taken in."""
        if arrived := self._arrived.get(leg_id):
            self._entries.extend(arrived.popleft() for _ in range(min(tokens, len(arrived))))

    def forget(self, leg_id: str) -> None:
        """The leg was given up: nothing more of it is taken in."""
        self._arrived.pop(leg_id, None)

    def drop(self, tokens: int) -> None:
        """The newest tokens that were taken in do not go into the ledger."""
        for _ in range(min(tokens, len(self._entries))):
            self._entries.pop()

    def add_certain(self, token_ids: Sequence[int]) -> None:
        """The gateway put tokens into the ledger itself."""
        if self._wanted is not None:
            chosen = (pb.Logprob(token_id=token_id, rank=1) for token_id in token_ids)
            self._entries.extend(pb.TokenLogprobs(chosen=each) for each in chosen)

    def send(self, tokens: int) -> list[pb.TokenLogprobs]:
        """The entries of the next so many tokens, with their texts."""
        if self._wanted is None:
            return []
        return [self._with_text(self._entries.popleft()) for _ in range(min(tokens, len(self._entries)))]

    def _with_text(self, entry: pb.TokenLogprobs) -> pb.TokenLogprobs:
        wanted = self._wanted or 0
        for logprob in (entry.chosen, *entry.top):
            logprob.text = self._tokenizer.decode([logprob.token_id], skip_special_tokens=False)
        if wanted and all(top.token_id != entry.chosen.token_id for top in entry.top) and entry.chosen.rank <= wanted:
            entry.top.insert(0, entry.chosen)
        ordered = sorted(entry.top, key=lambda top: top.rank)[:wanted]
        del entry.top[:]
        entry.top.extend(ordered)
        return entry
