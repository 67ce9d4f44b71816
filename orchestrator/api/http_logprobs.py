"""Log-probabilities in OpenAI's two forms: one for chats, one for completions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from baton.v1 import inference_pb2

Rows = Iterable[inference_pb2.TokenLogprobs]


def chat_logprobs(rows: Rows, top: int) -> dict[str, Any]:
    """The ``logprobs`` of a chat choice or delta, reasoning tokens included, as vLLM has it.

    Args:
        rows: One per output token.
        top: Alternatives asked for per token; the chosen one counts among them if it is likely enough.
    """
    return {
        "content": [{**_entry(row.chosen), "top_logprobs": [_entry(item) for item in _best(row, top)]} for row in rows],
        "refusal": None,
    }


class CompletionLogprobs:
    """Builds the ``logprobs`` of one completion choice; offsets go on from one delta to the next."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._offset_chars = 0

    def take(self, rows: Rows) -> dict[str, Any]:
        """The next tokens. The chosen token is always among the alternatives, so there may be ``top + 1``."""
        tokens, logprobs, tops, offsets = [], [], [], []
        for row in rows:
            tokens.append(row.chosen.text)
            logprobs.append(row.chosen.logprob)
            best = {item.text: item.logprob for item in reversed(_best(row, self._top))}
            tops.append({row.chosen.text: row.chosen.logprob, **best})
            offsets.append(self._offset_chars)
            self._offset_chars += len(row.chosen.text)
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def _best(row: inference_pb2.TokenLogprobs, top: int) -> list[inference_pb2.Logprob]:
    by_id = {item.token_id: item for item in (*row.top, row.chosen)}
    return sorted(by_id.values(), key=lambda item: -item.logprob)[:top]


def _entry(item: inference_pb2.Logprob) -> dict[str, Any]:
    return {"token": item.text, "logprob": item.logprob, "bytes": list(item.text.encode())}
