"""What the workers of each role are: the one place that knows both kinds of legs."""

from __future__ import annotations

from cluster.engine.protocol import Engine
from cluster.spec.config import Role
from decode_workers.decode_legs import DecodeLegs
from decode_workers.worker import ColocatedWorker, DecodeWorker
from prefill_workers.prefill_legs import PrefillLegs
from prefill_workers.worker import PrefillWorker
from workers.leg_run import LegKind
from workers.worker_host import WorkerHost

ACTORS: dict[Role, type[WorkerHost]] = {
    Role.PREFILL: PrefillWorker,
    Role.DECODE: DecodeWorker,
    Role.COLOCATED: ColocatedWorker,
}
"""Actor by role; each takes the spec, its pool, the worker's id, its address and `leg_kinds`."""


def leg_kinds(engine: Engine) -> tuple[LegKind, ...]:
    """Both kinds, for a worker of any role: its role may change, and a drained decode worker exports its KV."""
    return (PrefillLegs(), DecodeLegs(engine))
