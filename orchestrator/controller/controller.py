"""The controller: has the workers of every model started, watched and replaced, and reports them to gateways.

It decides nothing about requests. Gateways learn the membership from its registry.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.internal_rpc import InternalRpc
from cluster.model import model_path
from cluster.placement import assign, worker_plans
from cluster.ray_runtime import RayRuntime
from cluster.spec.portfolio import Portfolio
from orchestrator.controller.model_controller import ModelController
from orchestrator.controller.role_change import serve_role_change
from orchestrator.controller.worker_drain import DrainWork, GiveBack, serve_drain
from orchestrator.controller.worker_launch import Progress
from orchestrator.controller.worker_pool import check_drainable
from orchestrator.registry import RegistryService


class Controller:
    """Owns the registry, and a `ModelController` for each model; passes on to it what concerns its workers.

    Args:
        portfolio: The models, and the cluster.
        runtime: Ray.
        on_progress: Called with what happens.
        log_folder: Where logs go that must outlive Ray's session.
        give_back: Called with the nodes that a drained worker leaves empty, so that they and no others go.
    """

    def __init__(
        self,
        portfolio: Portfolio,
        runtime: RayRuntime,
        *,
        on_progress: Progress,
        log_folder: Path,
        give_back: GiveBack | None = None,
    ) -> None:
        self._portfolio = portfolio
        self._runtime = runtime
        self._rpc = InternalRpc(portfolio.first.security)
        self._server: Any = None
        self.registry = RegistryService(self._drain, self._change_role, self._check_answers)
        self.models = {
            name: ModelController(
                spec,
                self.registry,
                runtime,
                on_progress=on_progress,
                log_folder=log_folder,
                may_take=self._may_take,
                give_back=give_back,
            )
            for name, spec in portfolio.models.items()
        }

    @property
    def worker_pids(self) -> list[int]:
        """Processes of all workers, for a clean-up that must not depend on Ray."""
        return [pid for model in self.models.values() for pid in model.worker_pids]

    async def serve_registry(self, host: str, port: int = 0) -> str:
        """Start the registry; returns its address."""
        self._server = self._rpc.server()
        registry_pb2_grpc.add_RegistryServicer_to_server(self.registry, self._server)
        bound = self._rpc.bind(self._server, f"{host}:{port}")
        await self._server.start()
        return f"{host}:{bound}"

    async def start(self) -> None:
        """Place and start the workers of all models, let them into service, and watch them from then on.

        Raises:
            ServingError: a worker cannot be placed or started; the text says why.
        """
        specs = self._portfolio.models.values()
        for spec in specs:
            model_path.check(spec.model.path)
        plans = [plan for spec in specs for plan in worker_plans(spec)]
        assignment = assign(plans, await asyncio.to_thread(self._runtime.nodes), may_wait=True)
        try:
            async with asyncio.TaskGroup() as group:
                for model in self.models.values():
                    group.create_task(model.start(assignment.node_of))
        except BaseExceptionGroup as failed:
            if len(failed.exceptions) == 1:
                raise failed.exceptions[0] from failed
            raise

    async def stop(self) -> None:
        """Stop all workers in parallel, politely first."""
        await asyncio.gather(*(model.stop() for model in self.models.values()))
        if self._server is not None:
            await self._server.stop(grace=0.5)

    def _may_take(self, gpus: int) -> bool:
        """Whether so many GPUs are left of what all models share."""
        if self._portfolio.max_gpus is None:
            return True
        scaled = (self.models[name] for name, spec in self._portfolio.models.items() if spec.autoscaling.enabled)
        taken = sum(worker.pool.gpus_per_worker for model in scaled for worker in model.pool.workers())
        return taken + gpus <= self._portfolio.max_gpus

    # --- what the registry is asked ---------------------------------------------------------------------------

    def _drain(self, request: registry_pb2.DrainRequest) -> AsyncIterator[registry_pb2.DrainResponse]:
        return serve_drain(request, self.drain, self._portfolio.first.drain.timeout_s)

    def drain(
        self, worker_ids: Sequence[str], timeout_s: float, *, replace: bool = False, node_leaves: bool = False
    ) -> list[DrainWork]:
        """Empty workers of any models, then stop them; see `WorkerDrains.drain`.

        Raises:
            ConfigError: a worker is not known, not ready, or drains already; then none is drained.
        """
        by_model: dict[str, list[str]] = {}
        for worker_id in worker_ids:
            by_model.setdefault(self._model_of(worker_id), []).append(worker_id)
        for name, ids in by_model.items():
            check_drainable(self.models[name].pool.workers(), ids)
        return [
            self.models[name].drains.drain(ids, timeout_s, replace=replace, node_leaves=node_leaves)
            for name, ids in by_model.items()
        ]

    async def _change_role(self, request: registry_pb2.ChangeRoleRequest) -> registry_pb2.ChangeRoleResponse:
        return await serve_role_change(request, self.models[self._model_of(request.worker_id)].roles)

    async def _check_answers(self) -> AsyncIterator[registry_pb2.CheckAnswersResponse]:
        for model in self.models.values():
            async for row in model.canary.check():
                yield row

    def _model_of(self, worker_id: str) -> str:
        """The model that a worker holds; the first one's pool says what is wrong with a name that nothing has."""
        held = (name for name, model in self.models.items() if model.pool.find(worker_id) is not None)
        return next(held, next(iter(self.models)))
