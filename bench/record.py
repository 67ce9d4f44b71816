"""What happened to one request, as its client saw it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are seconds since it was sent, except ``start_s``: since the start of the run.

    A message may carry several tokens. The client saw them at one moment, so that is one gap to the message before
    and a gap of zero for each further token: gaps always number ``output_tokens - 1``.
    """

    index: int
    isl_tokens: int
    osl_tokens: int
    start_s: float = 0.0
    lag_s: float = 0.0
    """How much later than planned it was sent; the client's fault, not the server's."""
    end_s: float = 0.0
    message_s: list[float] = field(default_factory=list)
    """Arrival of each message that carried tokens."""
    output_tokens: int = 0
    reasoning_tokens: int = 0
    prompt_tokens: int = 0
    first_answer_s: float | None = None
    failure: str = ""
    """Empty, or the kind: ``connect``, ``timeout``, ``http 429``, ``grpc UNAVAILABLE``, ``broken``, ``short``..."""
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether it ended as asked."""
        return not self.failure

    @property
    def ttft_s(self) -> float | None:
        """Sent to first token."""
        return self.message_s[0] if self.message_s else None

    @property
    def e2e_s(self) -> float | None:
        """Sent to last token."""
        return self.message_s[-1] if self.message_s else None

    @property
    def tpot_s(self) -> float | None:
        """``(E2E - TTFT) / (OSL - 1)``; None for one token."""
        if len(self.message_s) < 1 or self.output_tokens < 2:
            return None
        return (self.message_s[-1] - self.message_s[0]) / (self.output_tokens - 1)

    def gaps_s(self) -> list[float]:
        """Gaps between tokens as the client saw them.

        Example:
            >>> RequestRecord(0, 1, 4, message_s=[0.1, 0.2, 0.4], output_tokens=4).gaps_s()
            [0.1, 0.2, 0.0]
        """
        gaps = [later - sooner for sooner, later in zip(self.message_s, self.message_s[1:], strict=False)]
        return gaps + [0.0] * max(0, self.output_tokens - 1 - len(gaps))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for ``--out``."""
        return {
            "index": self.index,
            "start_s": self.start_s,
            "lag_s": self.lag_s,
            "isl_tokens": self.prompt_tokens or self.isl_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "ttft_s": self.ttft_s,
            "ttfat_s": self.first_answer_s,
            "e2e_s": self.e2e_s,
            "tpot_s": self.tpot_s,
            "messages": len(self.message_s),
            "failure": self.failure,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a stream. ``token_ids`` is -1 where the server does not count them."""

    at_s: float
    text: bool
    answer: bool
    token_ids: int = -1


def settle(record: RequestRecord, messages: Sequence[Message], usage_tokens: int | None, *, exact: bool) -> None:
    """Fill in tokens and message times, and judge a stream that ended well.

    Tokens are counted from token ids, else from the server's usage, else one per message. Messages without text (a
    role, a finish reason) carry a token only as far as usage says that there are more tokens than texts.

    Args:
        record: Filled in; its failure is set when tokens are missing.
        messages: As they came.
        usage_tokens: Output tokens by the server, if it said.
        exact: Whether fewer tokens than asked is a failure (``ignore_eos`` was set).
    """
    if any(message.token_ids >= 0 for message in messages):
        carrying = [message for message in messages if message.token_ids > 0]
        record.output_tokens = sum(message.token_ids for message in carrying)
    else:
        carrying = [message for message in messages if message.text]
        if usage_tokens is None:
            record.output_tokens = len(carrying)
        else:
            record.output_tokens = usage_tokens
            silent = [message for message in messages if not message.text]
            # The first silent ones: a closing message comes last.
            carrying = sorted(carrying + silent[: max(0, usage_tokens - len(carrying))], key=lambda each: each.at_s)
    record.message_s = [message.at_s for message in carrying]
    record.first_answer_s = next((message.at_s for message in carrying if message.answer), None)
    if record.failure:
        return
    if not record.output_tokens:
        record.failure, record.detail = "empty", "the stream ended well and had no token"
    elif exact and record.output_tokens < record.osl_tokens:
        record.failure = "short"
        record.detail = f"{record.output_tokens} of {record.osl_tokens} tokens"
