"""The prefill worker as Ray starts it."""

from __future__ import annotations

from cluster.engine.vllm_engine import VllmEngine
from cluster.spec.config import ClusterSpec, PoolSettings, Role
from prefill_workers.profile import engine_settings
from workers.leg_run import LegKinds
from workers.worker_host import WorkerHost


class PrefillWorker(WorkerHost):
    """Computes prompts and keeps their KV until decode has read it."""

    def __init__(self, spec: ClusterSpec, pool: PoolSettings, worker_id: str, host: str, leg_kinds: LegKinds) -> None:
        super().__init__(
            worker_id,
            Role.PREFILL,
            host,
            lambda: VllmEngine(engine_settings(spec, pool)),
            leg_kinds,
            spec.security,
            stall_timeout_s=spec.health.stall_timeout_s,
        )
