"""Log-probabilities in OpenAI's two forms: one for chats, one for completions. Pure.

The content's tokens stand where OpenAI has them, and those of the reasoning, markers included, beside them under
``reasoning_content``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from baton.v1 import inference_pb2

PhaseRows = tuple[inference_pb2.Phase, Sequence[inference_pb2.TokenLogprobs]]
"""What came with one delta."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One entry per output token, by phase."""

    content: list[inference_pb2.TokenLogprobs]
    reasoning: list[inference_pb2.TokenLogprobs]


def by_phase(deltas: Iterable[PhaseRows]) -> Rows:
    """Sort what came with some deltas."""
    rows = Rows([], [])
    for phase, entries in deltas:
        (rows.reasoning if phase == inference_pb2.PHASE_REASONING else rows.content).extend(entries)
    return rows


def chat_logprobs(rows: Rows, top: int) -> dict[str, Any]:
    """The ``logprobs`` of a chat choice or delta.

    Args:
        rows: One per output token.
        top: Alternatives asked for per token; the chosen one counts among them if it is likely enough.
    """
    shown: dict[str, Any] = {"content": _chat_rows(rows.content, top), "refusal": None}
    if rows.reasoning:
        shown["reasoning_content"] = _chat_rows(rows.reasoning, top)
    return shown


class CompletionLogprobs:
    """Builds the ``logprobs`` of one completion choice; offsets go on from one delta to the next."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._content_chars = self._reasoning_chars = 0

    def take(self, rows: Rows) -> dict[str, Any]:
        """The next tokens. The chosen token is always among the alternatives, so there may be ``top + 1``."""
        shown, self._content_chars = self._columns(rows.content, self._content_chars)
        if rows.reasoning:
            shown["reasoning_content"], self._reasoning_chars = self._columns(rows.reasoning, self._reasoning_chars)
        return shown

    def _columns(self, rows: Iterable[inference_pb2.TokenLogprobs], offset_chars: int) -> tuple[dict[str, Any], int]:
        tokens, logprobs, tops, offsets = [], [], [], []
        for row in rows:
            tokens.append(row.chosen.text)
            logprobs.append(row.chosen.logprob)
            best = {item.text: item.logprob for item in reversed(_best(row, self._top))}
            tops.append({row.chosen.text: row.chosen.logprob, **best})
            offsets.append(offset_chars)
            offset_chars += len(row.chosen.text)
        columns = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}
        return columns, offset_chars


def _chat_rows(rows: Iterable[inference_pb2.TokenLogprobs], top: int) -> list[dict[str, Any]]:
    return [{**_entry(row.chosen), "top_logprobs": [_entry(item) for item in _best(row, top)]} for row in rows]


def _best(row: inference_pb2.TokenLogprobs, top: int) -> list[inference_pb2.Logprob]:
    by_id = {item.token_id: item for item in (*row.top, row.chosen)}
    return sorted(by_id.values(), key=lambda item: -item.logprob)[:top]


def _entry(item: inference_pb2.Logprob) -> dict[str, Any]:
    return {"token": item.text, "logprob": item.logprob, "bytes": list(item.text.encode())}
