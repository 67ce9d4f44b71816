"""Responses that were stored, bounded by number, bytes and age. Pure: the time is an argument."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it is kept: as JSON, whose bytes can be counted."""

    tenant: str
    response_id: str
    object_json: bytes
    """The reply."""
    items_json: bytes
    """What the model was given; the instructions are left out, since they hold for one response."""
    own_items: int
    """So many of them, at the end, came with its own request."""
    session: str
    stored_s: float
    events: bytes = b""
    """Of a background response that was asked for as a stream."""

    @property
    def size_bytes(self) -> int:
        """What it takes."""
        return len(self.object_json) + len(self.items_json) + len(self.events)

    def object(self) -> dict[str, Any]:
        """The reply."""
        made: dict[str, Any] = json.loads(self.object_json)
        return made

    def items(self) -> list[dict[str, Any]]:
        """What the model was given."""
        given: list[dict[str, Any]] = json.loads(self.items_json)
        return given


class ResponseStore:
    """Owns what one gateway keeps. What was stored first goes first; what a caller reads stays no longer for that."""

    def __init__(self, *, max_responses: int, max_bytes: int, max_age_s: float) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._by_id: OrderedDict[str, StoredResponse] = OrderedDict()
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        """What is kept. Items that a conversation's responses share are in each."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._by_id)

    def put(self, response: StoredResponse, now_s: float) -> None:
        """Keep a response, in place of an earlier state of it; others go where the limits say so."""
        self._drop(response.response_id)
        if response.size_bytes > self._max_bytes or not self._max_responses:
            return
        self._by_id[response.response_id] = response
        self._bytes += response.size_bytes
        self._trim(now_s)

    def get(self, tenant: str, response_id: str, now_s: float) -> StoredResponse | None:
        """A tenant's response; None where there is none, or it is another's."""
        self._trim(now_s)
        found = self._by_id.get(response_id)
        return found if found is not None and found.tenant == tenant else None

    def remove(self, tenant: str, response_id: str, now_s: float) -> bool:
        """Forget a tenant's response; whether there was one."""
        found = self.get(tenant, response_id, now_s) is not None
        if found:
            self._drop(response_id)
        return found

    def _trim(self, now_s: float) -> None:
        while self._by_id:
            oldest = next(iter(self._by_id.values()))
            fits = len(self._by_id) <= self._max_responses and self._bytes <= self._max_bytes
            if fits and now_s - oldest.stored_s < self._max_age_s:
                return
            self._drop(oldest.response_id)

    def _drop(self, response_id: str) -> None:
        if (dropped := self._by_id.pop(response_id, None)) is not None:
            self._bytes -= dropped.size_bytes


def response_id_of(any_id: str) -> str:
    """The response that an id names: its own, or that of the response whose output item it is.

    Example:
        >>> response_id_of("msg_1f_0"), response_id_of("resp_1f")
        ('resp_1f', 'resp_1f')
    """
    return f"resp_{any_id.split('_')[1]}" if any_id.count("_") == 2 else any_id


def as_json(tree: Any) -> bytes:
    """A tree as it is kept."""
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
