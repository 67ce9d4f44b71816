"""How long an engine step takes: what the simulator asks of the cost models, and a stated affine one.

The simulator owns no performance model. ``cost.py`` beside each worker pool and beside the KV transfer fits these
protocols; `AffineCost` fits them too, from constants measured on an engine or made up for a test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Chunk = tuple[int, int]
"""New tokens of a prompt computed in a step, and the tokens of context before them."""


class DecodeCost(Protocol):
    """Time of decode steps."""

    def step_s(self, batch_size: int, context_tokens: int) -> float:
        """Seconds for one token of each of ``batch_size`` requests, whose contexts sum to ``context_tokens``."""
        ...


class PrefillCost(Protocol):
    """Time of prefill steps."""

    def chunk_s(self, chunks: Sequence[Chunk]) -> float:
        """Seconds for one step over these chunks."""
        ...


class MixedCost(Protocol):
    """Time of a step that carries prompt chunks and decode tokens together."""

    def mixed_step_s(self, batch_size: int, context_tokens: int, chunks: Sequence[Chunk] = ()) -> float:
        """Seconds for one step over the chunks and one token of each decoding request."""
        ...


class TransferCost(Protocol):
    """Time of a KV transfer that has its link to itself."""

    def transfer_s(self, kv_bytes: int) -> float:
        """Seconds to move ``kv_bytes``."""
        ...


@dataclass(frozen=True, slots=True)
class AffineCost:
    """A step of stated constants: a base, and so much per request, per context token and per prompt token.

    Attention of a prompt chunk is charged per pair of new token and token before it.

    Example:
        >>> cost = AffineCost(decode_base_s=0.01, decode_request_s=1e-5, decode_context_s=1e-8, prefill_token_s=1e-4)
        >>> round(cost.step_s(100, 100_000), 6)
        0.012
        >>> round(cost.prefill_s(1000, cached_tokens=200), 6)
        0.1
        >>> cost.mixed_step_s(0, 0, [(1000, 0)]) == cost.chunk_s([(1000, 0)])
        True
    """

    decode_base_s: float
    decode_request_s: float = 0.0
    decode_context_s: float = 0.0
    prefill_base_s: float = 0.0
    prefill_token_s: float = 0.0
    prefill_pair_s: float = 0.0

    def step_s(self, batch_size: int, context_tokens: int) -> float:
        """Seconds of one decode step."""
        return self.decode_base_s + self.decode_request_s * batch_size + self.decode_context_s * context_tokens

    def chunk_s(self, chunks: Sequence[Chunk]) -> float:
        """Seconds of one prefill step."""
        tokens = sum(new for new, _ in chunks)
        pairs = sum(new * (before + new / 2) for new, before in chunks)
        return self.prefill_base_s + self.prefill_token_s * tokens + self.prefill_pair_s * pairs

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds to prefill one prompt alone in one step."""
        return self.chunk_s([(new_tokens, cached_tokens)])

    def mixed_step_s(self, batch_size: int, context_tokens: int, chunks: Sequence[Chunk] = ()) -> float:
        """Seconds of a step that does both: the larger base, and the rest of both."""
        if not batch_size:
            return self.chunk_s(chunks)
        if not chunks:
            return self.step_s(batch_size, context_tokens)
        both = self.chunk_s(chunks) + self.step_s(batch_size, context_tokens)
        return both - min(self.prefill_base_s, self.decode_base_s)


@dataclass(frozen=True, slots=True)
class SeparateCost:
    """A mixed step charged as a prefill step and then a decode step: an upper bound where no better model is had."""

    decode: DecodeCost
    prefill: PrefillCost

    def mixed_step_s(self, batch_size: int, context_tokens: int, chunks: Sequence[Chunk] = ()) -> float:
        """Seconds of both steps, one after the other."""
        decode_s = self.decode.step_s(batch_size, context_tokens) if batch_size else 0.0
        return decode_s + (self.prefill.chunk_s(chunks) if chunks else 0.0)


@dataclass(frozen=True, slots=True)
class AffineTransfer:
    """``latency_s`` and then so many bytes a second."""

    bytes_per_s: float
    latency_s: float = 0.0

    def transfer_s(self, kv_bytes: int) -> float:
        """Seconds to move ``kv_bytes`` over an idle link.

        Example:
            >>> AffineTransfer(bytes_per_s=50e9, latency_s=0.001).transfer_s(50_000_000)
            0.002
        """
        return self.latency_s + kv_bytes / self.bytes_per_s


Piece = tuple[float, float, int, int]
"""Seconds at the low end, seconds per context token, low end, high end."""

_FIRST_KNOT_TOKENS, _RATIO = 256, 1.125


class StepTable:
    """`DecodeCost.step_s` as straight lines between knots, so that many steps are added up in closed form.

    The knots in context tokens stand at 0, 256 and then 12.5 % apart. A cost that is affine in the context comes
    back exactly. A curved one is off by at most ``h**2 / 8 * max|f''|``; for a soft maximum
    ``(c**p + m**p)**(1/p)`` of a constant and a term linear in the context the error at ``p = 4`` is 0.13 %.
    """

    def __init__(self, cost: DecodeCost) -> None:
        self._cost = cost
        self._pieces: dict[tuple[int, int], Piece] = {}
        self._log_ratio = math.log(_RATIO)

    def piece(self, batch_size: int, context_tokens: int) -> Piece:
        """The line that holds at this batch and context."""
        index = 0
        if context_tokens >= _FIRST_KNOT_TOKENS:
            index = 1 + int(math.log(context_tokens / _FIRST_KNOT_TOKENS) / self._log_ratio + 1e-9)
        key = (batch_size, index)
        found = self._pieces.get(key)
        if found is None:
            low, high = _knot(index), _knot(index + 1)
            at_low, at_high = self._cost.step_s(batch_size, low), self._cost.step_s(batch_size, high)
            found = self._pieces[key] = (at_low, (at_high - at_low) / (high - low), low, high)
        return found


def _knot(index: int) -> int:
    return 0 if index == 0 else round(_FIRST_KNOT_TOKENS * _RATIO ** (index - 1))
