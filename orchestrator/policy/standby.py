"""Which workers serve where a pool has some on standby: started, loaded and paired, but given no requests.

There is one rule, and the controller and the simulator both go by it: a worker on standby that is ready takes the
place of one that is to serve and is not ready, and that one will be on standby once it is. So a pool grows, and a dead
worker is replaced, without the wait for a start, and what is started meanwhile is the next standby. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.spec.config import Role


@dataclass(frozen=True, slots=True)
class Place:
    """One worker of a pool. ``standby``: it is to wait, not to serve; ``ready``: it could serve at this moment.

    Workers that leave the pool are not listed; one that drains and comes back is, as not ready.
    """

    worker_id: str
    role: Role
    standby: bool
    ready: bool


@dataclass(frozen=True, slots=True)
class Exchange:
    """``promoted`` serves from here on; ``replaced`` is on standby in its place, once it is ready."""

    promoted: str
    replaced: str


def exchanges(workers: Iterable[Place]) -> list[Exchange]:
    """What is to be exchanged at this moment, in the order of the workers.

    Example:
        >>> dead = Place("decode-0", Role.DECODE, standby=False, ready=False)
        >>> spare = Place("decode-1", Role.DECODE, standby=True, ready=True)
        >>> exchanges([dead, spare])
        [Exchange(promoted='decode-1', replaced='decode-0')]
    """
    workers = list(workers)
    found: list[Exchange] = []
    for role in Role:
        of_role = [worker for worker in workers if worker.role is role]
        absent = [worker.worker_id for worker in of_role if not worker.standby and not worker.ready]
        spare = [worker.worker_id for worker in of_role if worker.standby and worker.ready]
        found += [Exchange(promoted, replaced) for promoted, replaced in zip(spare, absent, strict=False)]
    return found
