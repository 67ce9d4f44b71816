"""What the controller knows of one worker."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from baton.internal.v1 import registry_pb2
from cluster.placement import WorkerPlan
from cluster.ray_runtime import ProcessId, WorkerHandle
from cluster.spec.config import PoolSettings, Role
from orchestrator.policy.readiness import LOADED, on_its_way


@dataclass(slots=True)
class ManagedWorker:
    """One worker of the plan, through all its incarnations. `WorkerPool` alone changes it; others read it."""

    plan: WorkerPlan
    pool: PoolSettings
    handle: WorkerHandle | None = None
    member: registry_pb2.Member = field(default_factory=registry_pb2.Member)
    restarts: int = 0
    processes: list[ProcessId] = field(default_factory=list)
    """The actor and its children, to end what outlives it."""
    draining: bool = False
    """The controller drains it, and decides what becomes of it."""
    role: Role = Role.DECODE
    """What it does at present; the plan says what it was started for, and its name keeps that."""
    since_s: float = field(default_factory=time.monotonic)
    """When it came into its state."""
    load: dict[str, Any] | None = None
    """Its engine's load at its last health check, at ``load_s`` (monotonic)."""
    load_s: float = 0.0
    unwanted: threading.Event = field(default_factory=threading.Event)
    """It is not to serve, though it has not finished starting."""
    standby: bool = False
    """Once it is ready it waits, and another serves (`orchestrator.policy.standby`)."""
    returns: bool = False
    """It drains, and starts again."""
    start_failed: bool = False
    """Its last start failed; the next one may, too."""

    @classmethod
    def planned(cls, plan: WorkerPlan, pool: PoolSettings) -> ManagedWorker:
        """A worker that is to be started."""
        return cls(plan, pool, role=plan.role, standby=plan.standby)

    @property
    def worker_id(self) -> str:
        """Its name, of the plan."""
        return self.plan.worker_id

    @property
    def up(self) -> bool:
        """Whether it could serve: it is ready, or on standby."""
        return self.member.state in LOADED

    @property
    def starting(self) -> bool:
        """Whether it has not served yet."""
        return self.member.state in ("", "starting")

    @property
    def on_its_way(self) -> bool:
        """See `orchestrator.policy.readiness.on_its_way`."""
        given_up = self.draining or self.start_failed or self.unwanted.is_set()
        return on_its_way(self.role, loaded=self.up, standby=self.standby, given_up=given_up)
