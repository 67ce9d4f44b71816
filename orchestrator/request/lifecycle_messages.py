"""What goes into a request's lifecycle and what comes out: its states, events and actions. Data alone.

The state machine over them is `orchestrator.request.lifecycle`, which has all these names too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.errors import ServingError
from kv_transfer.ticket import HandoffTicket


class State(StrEnum):
    """Where a request is."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"
    ENDED = "ended"


class Handoff(StrEnum):
    """How decode takes over.

    FIRST_TOKEN: prefill's token goes to the client at once and decode continues after it.
    PLAIN: prefill's token is dropped and decode samples the first one itself, because the engine must count it as
    its own output (penalties, seeds, grammar).
    """

    FIRST_TOKEN = "first_token"
    PLAIN = "plain"


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placed:
    """The router chose workers. ``prefill_id`` None: the holder prefills by itself."""

    prefill_id: str | None
    decode_id: str


@dataclass(frozen=True, slots=True)
class LegOutput:
    """New tokens of a leg; ``finish_reason`` is empty while it goes on. ``ticket`` comes with a prefill's end."""

    leg_id: str
    token_ids: tuple[int, ...]
    finish_reason: str = ""
    ticket: HandoffTicket | None = None


@dataclass(frozen=True, slots=True)
class LegFailed:
    """A leg ended without a result."""

    leg_id: str
    error: ServingError


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker is gone, with every leg on it."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class StopMatched:
    """The gateway found the end in the text: a stop string."""

    reason: str


@dataclass(frozen=True, slots=True)
class Turned:
    """The gateway wants the ledger to go on otherwise: what the decode leg says from here on is dropped, ``token_ids``
    go into the ledger, and the same decode worker goes on from that.

    With the end marker of a trace in it, what follows is the *closing leg*.
    """

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """An engine counts over the output from here on (a grammar, behind the reasoning).

    The next token must be one that the decode worker counts, not prefill's; with ``begun`` it has counted one, and no
    other worker could go on with the same meaning.
    """

    begun: bool


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The caller cancelled or went away."""


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The request's deadline is over."""


@dataclass(frozen=True, slots=True)
class Displaced:
    """The request lost its place in the queue: to another one, or because its model is served no more."""

    error: ServingError


@dataclass(frozen=True, slots=True)
class Moved:
    """The request is to decode at ``decode_id``, where KV is reserved.

    A decoding one is handed over by its present worker; one that is still prefilling goes there when it is done.
    """

    decode_id: str


@dataclass(frozen=True, slots=True)
class Preempted:
    """The decoding request gives up its blocks and waits; its ledger is prefilled again once there is KV."""


Event = (
    Placed
    | Preempted
    | Displaced
    | Moved
    | LegOutput
    | LegFailed
    | WorkerLost
    | StopMatched
    | Turned
    | Counted
    | Cancelled
    | DeadlinePassed
)

# --- actions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartLeg:
    """Run ``token_ids`` on a worker for at most ``max_tokens`` tokens.

    ``export`` asks the engine to keep the KV for a handoff; ``ticket`` lets it read KV that another one kept.
    ``generated_tokens`` of the input are output already, not prompt.
    """

    leg_id: str
    worker_id: str
    token_ids: tuple[int, ...]
    generated_tokens: int
    max_tokens: int
    export: bool = False
    ticket: HandoffTicket | None = None


@dataclass(frozen=True, slots=True)
class AbortLeg:
    """Stop a leg and free its blocks."""

    leg_id: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class ReleaseTicket:
    """Tell the source, through ``worker_id``, that nobody will read these blocks.

    ``worker_id`` is the decode worker that was to read them; where it is gone, any other one will do.
    """

    worker_id: str
    ticket: HandoffTicket


@dataclass(frozen=True, slots=True)
class FreeReservation:
    """Give back the KV reserved on a worker."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class SendTokens:
    """Tokens for the caller."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AskPlacement:
    """Find workers for the request (again). ``avoid`` failed it before."""

    avoid: frozenset[str]


@dataclass(frozen=True, slots=True)
class Finish:
    """All done."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """Ended without a result."""

    error: ServingError


Action = StartLeg | AbortLeg | ReleaseTicket | FreeReservation | SendTokens | AskPlacement | Finish | Fail
