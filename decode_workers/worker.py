"""The decode and the colocated worker as Ray starts them."""

from __future__ import annotations

from cluster.engine.vllm_engine import VllmEngine
from cluster.spec.config import ClusterSpec, PoolSettings, Role
from decode_workers.profile import engine_settings
from workers.leg_run import LegKinds
from workers.worker_host import WorkerHost


class DecodeWorker(WorkerHost):
    """Reads the KV that prefill computed and generates to the end."""

    role = Role.DECODE

    def __init__(self, spec: ClusterSpec, pool: PoolSettings, worker_id: str, host: str, leg_kinds: LegKinds) -> None:
        role = self.role
        super().__init__(
            worker_id,
            role,
            host,
            lambda: VllmEngine(engine_settings(spec, pool, role)),
            leg_kinds,
            spec.security,
            stall_timeout_s=spec.health.stall_timeout_s,
        )


class ColocatedWorker(DecodeWorker):
    """Prefills and decodes in one engine, with no handoff."""

    role = Role.COLOCATED
