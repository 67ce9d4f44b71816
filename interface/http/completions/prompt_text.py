"""Log-probabilities of a prompt in a whole reply, as JSON text. Pure.

They become text piece by piece as they come: for a long prompt they are tens of megabytes, which as objects would take
several times the memory, and be written in a second in which no stream goes on.
"""

from __future__ import annotations

import json
from typing import Any

from baton.v1 import inference_pb2
from interface.http.logprobs import CompletionLogprobs, listed


class PromptText:
    """Collects those of one prompt, for all its choices.

    Args:
        echoed: Alternatives in the ``logprobs`` of an echoed prompt; None where there are none.
        asked: Alternatives in ``prompt_logprobs``; None where these are not asked for.
    """

    def __init__(self, echoed: int | None, asked: int | None) -> None:
        self._columns: dict[str, list[bytes]] = {}
        self._echoed = None if echoed is None else CompletionLogprobs(echoed)
        self._asked = asked
        self._listed: list[bytes] = []

    @property
    def chars(self) -> int:
        """Characters of the echoed tokens."""
        return self._echoed.content_chars if self._echoed else 0

    def add(self, piece: inference_pb2.PromptLogprobs) -> None:
        """Take the next tokens."""
        if self._echoed is not None:
            for name, values in self._echoed.take_prompt(piece).items():
                self._columns.setdefault(name, []).append(_items(values))
        if self._asked is not None:
            self._listed.append(_items(listed(piece, self._asked)))

    def listed(self) -> bytes:
        """A member ``prompt_logprobs`` with a comma before it; empty where it is not asked for."""
        return b"" if self._asked is None else b',"prompt_logprobs":[' + b",".join(self._listed) + b"]"

    def with_output(self, logprobs: dict[str, Any]) -> bytes:
        """The ``logprobs`` of a choice: of the echoed prompt, and after it of its output."""
        if self._echoed is None:
            return written(logprobs)
        members = [
            written(name) + b":[" + b",".join(part for part in (*self._columns[name], _items(values)) if part) + b"]"
            if name in self._columns
            else written(name) + b":" + written(values)
            for name, values in logprobs.items()
        ]
        return b"{" + b",".join(members) + b"}"


def written(value: object) -> bytes:
    """JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def _items(values: list[Any]) -> bytes:
    return written(values)[1:-1]
