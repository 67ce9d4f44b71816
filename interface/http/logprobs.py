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
    """Sort what came with some deltas. Tokens of tool calls are no content."""
    rows = Rows([], [])
    for phase, entries in deltas:
        if phase != inference_pb2.PHASE_TOOL_CALL:
            (rows.reasoning if phase == inference_pb2.PHASE_REASONING else rows.content).extend(entries)
    return rows


def chat_logprobs(rows: Rows, top: int) -> dict[str, Any]:
    """The ``logprobs`` of a chat choice or delta.

    Args:
        rows: One per output token.
        top: Alternatives asked for per token; the chosen one counts among them if it is likely enough.
    """
    shown: dict[str, Any] = {"content": token_logprobs(rows.content, top), "refusal": None}
    if rows.reasoning:
        shown["reasoning_content"] = token_logprobs(rows.reasoning, top)
    return shown


def token_logprobs(rows: Iterable[inference_pb2.TokenLogprobs], top: int) -> list[dict[str, Any]]:
    """One object per token, with the likeliest ``top`` beside it."""
    return [{**_entry(row.chosen), "top_logprobs": [_entry(item) for item in _best(row, top)]} for row in rows]


class CompletionLogprobs:
    """Builds the ``logprobs`` of one completion choice; offsets go on from one delta to the next.

    ``content_chars`` are those of the prompt's tokens, where it is echoed and its log-probabilities came before.
    """

    def __init__(self, top: int, content_chars: int = 0) -> None:
        self._top = top
        self.content_chars = content_chars
        self._reasoning_chars = 0

    def take_prompt(self, piece: inference_pb2.PromptLogprobs) -> dict[str, Any]:
        """The next tokens of an echoed prompt; the first one has no log-probability."""
        shown, self.content_chars = self._columns(piece.tokens, self.content_chars)
        if piece.first_position == 0:
            shown["token_logprobs"][0] = shown["top_logprobs"][0] = None
        return shown

    def take(self, rows: Rows) -> dict[str, Any]:
        """The next tokens. The chosen token is always among the alternatives, so there may be ``top + 1``."""
        shown, self.content_chars = self._columns(rows.content, self.content_chars)
        if rows.reasoning:
            shown["reasoning_content"], self._reasoning_chars = self._columns(rows.reasoning, self._reasoning_chars)
        return shown

    def _columns(self, rows: Iterable[inference_pb2.TokenLogprobs], offset_chars: int) -> tuple[dict[str, Any], int]:
        tokens, logprobs, tops, offsets = [], [], [], []
        for row in rows:
            tokens.append(row.chosen.text)
            logprobs.append(_written(row.chosen))
            best = {item.text: _written(item) for item in reversed(_best(row, self._top))}
            tops.append({row.chosen.text: _written(row.chosen), **best})
            offsets.append(offset_chars)
            offset_chars += len(row.chosen.text)
        columns = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}
        return columns, offset_chars


def _best(row: inference_pb2.TokenLogprobs, top: int) -> list[inference_pb2.Logprob]:
    by_id = {item.token_id: item for item in (*row.top, row.chosen)}
    return sorted(by_id.values(), key=lambda item: -item.logprob)[:top]


def listed(piece: inference_pb2.PromptLogprobs, top: int) -> list[dict[int, dict[str, Any]] | None]:
    """Some of a prompt's tokens as vLLM's ``prompt_logprobs`` has them, with so many alternatives."""
    rows: list[dict[int, dict[str, Any]] | None] = [
        {
            item.token_id: {"logprob": _written(item), "rank": item.rank, "decoded_token": item.text}
            for item in (row.chosen, *row.top[:top])
        }
        for row in piece.tokens
    ]
    if piece.first_position == 0:
        rows[0] = None
    return rows


def _entry(item: inference_pb2.Logprob) -> dict[str, Any]:
    return {"token": item.text, "logprob": _written(item), "bytes": list(item.text.encode())}


def _written(item: inference_pb2.Logprob) -> float:
    """JSON has no infinity; this is what OpenAI writes."""
    return max(item.logprob, -9999.0)
