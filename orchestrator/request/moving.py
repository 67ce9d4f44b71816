"""Requests that move between decode workers with their KV: which are on their way, what each has on a worker. Pure.

What `orchestrator.policy.drain_moves` and `peak` decide from; gateways and the simulator both ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.policy.drain_moves import Hold
from orchestrator.request.lifecycle import Lifecycle, State


def hold_of(life: Lifecycle, worker_id: str, *, moving: bool) -> Hold | None:
    """What a request has on a worker that is to be emptied; None if nothing.

    Args:
        life: The request.
        worker_id: The worker.
        moving: It is on its way to another decode worker.

    Example:
        >>> life = Lifecycle("r", (1, 2), 8, state=State.PREFILLING, prefill_id="p0", decode_id="d0")
        >>> [hold_of(life, worker_id, moving=False) for worker_id in ("p0", "d0", "d1")]
        [<Hold.BUSY: 'busy'>, <Hold.RESERVED: 'reserved'>, None]
    """
    decodes = life.decode_id == worker_id
    is_read = moving and life.state is State.DECODING and not life.has_output
    if not decodes and not (life.prefill_id == worker_id and (life.state is State.PREFILLING or is_read)):
        return None
    if moving:
        return Hold.MOVING
    if life.state is State.PREFILLING:
        return Hold.RESERVED if decodes else Hold.BUSY
    if not life.resumable:
        return Hold.STAYS
    return Hold.DECODING if life.settled else Hold.BUSY


@dataclass(frozen=True, slots=True)
class _Move:
    target_id: str
    retries: int


class Moves:
    """Owns which requests are on their way, from the decision until they make tokens at the target.

    Example:
        >>> life, moves = Lifecycle("r", (1, 2), 8, state=State.DECODING, decode_id="d0"), Moves()
        >>> moves.begin(life, "d1")
        >>> moves.under_way(life)
        True
        >>> life.retries += 1  # the target was lost, and the request is prefilled again
        >>> moves.under_way(life)
        False
    """

    def __init__(self) -> None:
        self._begun: dict[str, _Move] = {}

    def under_way(self, life: Lifecycle) -> bool:
        """Whether a request is on its way: it has neither landed nor failed, so that it is prefilled again."""
        move = self._begun.get(life.request_id)
        return (
            move is not None
            and life.retries == move.retries
            and not (life.decode_id == move.target_id and life.has_output)
        )

    def begin(self, life: Lifecycle, target_id: str) -> None:
        """A decoding request is to move. A reservation alone that changes its place is none."""
        if life.state is State.DECODING:
            self._begun[life.request_id] = _Move(target_id, life.retries)

    def forget_over(self, lives: Mapping[str, Lifecycle], holds: Callable[[str, str], bool] | None = None) -> None:
        """Drop moves that are over: landed, ended, failed, or refused.

        Args:
            lives: Every request that has not ended, by its id.
            holds: Whether a request has blocks reserved on a worker: it gives them back if it could not move after
                all. None: requests take a move at once.
        """
        self._begun = {
            request_id: move
            for request_id, move in self._begun.items()
            if (life := lives.get(request_id)) is not None
            and self.under_way(life)
            and (holds is None or holds(request_id, move.target_id))
        }
