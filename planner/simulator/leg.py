"""One piece of work on one engine: a leg of a request, as `orchestrator.request.lifecycle` starts it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto


class LegState(Enum):
    """Where a leg is within its engine."""

    WAITING = auto()
    LOADING = auto()
    LOADED = auto()
    PREFILLING = auto()
    DECODING = auto()
    EXPORTED = auto()
    OVER = auto()


@dataclass(slots=True, eq=False)
class Leg:
    """Work and progress of one leg.

    Args:
        leg_id: As in the lifecycle.
        request: Index of the request in the run.
        input_tokens: Prompt and earlier output that the leg begins with.
        output_tokens: Tokens it will make before it ends, at least 1. The engine learns it only by getting there.
        stops: Whether its last token is the end of the request, not a limit.
        reason_left_tokens: Of its tokens, those before the first answer token; negative once that one is out.
        reserve_blocks: Blocks that were reserved for the request here.
        hashes: Full units of the prompt, for sharing with other requests.
        cached_tokens: Prompt tokens held to be cached wherever the leg runs (a request log knows no more).
        remote: Whether its KV comes from another worker.
        export: Whether its KV stays for another worker.
        last_token_s: When the request's last token came; negative before the first.
    """

    leg_id: str
    request: int
    input_tokens: int
    output_tokens: int
    stops: bool
    reason_left_tokens: int
    reserve_blocks: int = 0
    hashes: tuple[int, ...] = ()
    cached_tokens: int = 0
    remote: bool = False
    export: bool = False
    last_token_s: float = -1.0

    state: LegState = LegState.WAITING
    # Tokens made, those sent to the caller, and those with KV or found here.
    made_tokens: int = 0
    sent_tokens: int = 0
    computed_tokens: int = 0
    hit_tokens: int = 0
    queued_tokens: int = 0
    private_blocks: int = 0
    pinned: list[int] = field(default_factory=list)
    # Where it stood when it joined the decode batch, and its number in the order of joining.
    joined_order: int = -1
    joined_step: int = 0
    joined_context: int = 0
    joined_made: int = 0
    overran: bool = True
    slow_before: int = 0
    slow_gaps: int = 0
    preemptions: int = 0
    first_token_s: float = -1.0
    answer_s: float = -1.0

    @property
    def known_tokens(self) -> int:
        """Tokens whose KV must be there before the next one can be sampled by a prefill."""
        return self.input_tokens + self.made_tokens

    @property
    def tokens_left(self) -> int:
        """Output tokens still to make."""
        return self.output_tokens - self.made_tokens
