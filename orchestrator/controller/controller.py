"""The controller: has the workers of every model started, watched and replaced, and reports them to gateways.

It decides nothing about requests. Gateways learn the membership from its registry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.internal_rpc import InternalRpc
from cluster.model import model_path
from cluster.placement import assign, worker_plans
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import read_tree
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
        self.registry = RegistryService(
            self._drain, self._change_role, self._check_answers, self._add_model, self._remove_model
        )
        self._new_model = partial(
            ModelController,
            registry=self.registry,
            runtime=runtime,
            on_progress=on_progress,
            log_folder=log_folder,
            may_take=self._may_take,
            give_back=give_back,
        )
        self.models = {name: self._new_model(spec) for name, spec in portfolio.models.items()}
        self._changing = asyncio.Lock()
        """Models are added and removed one at a time."""

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
        await self._publish_models()
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

    # --- models that come and go ------------------------------------------------------------------------------

    async def add_model(self, name: str, entry_yaml: str) -> str:
        """Start the workers of one more model, and let gateways serve it; returns the name that callers ask for.

        Raises:
            ConfigError: the entry is wrong, or something has its name.
            ServingError: a worker cannot be placed or started; then all is as before.
        """
        async with self._changing:
            changed = self._portfolio.added(name, read_tree(entry_yaml, "the new model"))
            (served,) = changed.models.keys() - self._portfolio.models.keys()
            spec = changed.models[served]
            model_path.check(spec.model.path)
            assignment = assign(worker_plans(spec), await asyncio.to_thread(self._runtime.nodes), may_wait=True)
            before, self._portfolio = self._portfolio, changed
            self.models[served] = model = self._new_model(spec)
            try:
                await model.start(assignment.node_of)
            except BaseException as failed:
                self._portfolio = before
                await self._end_model(served)
                if isinstance(failed, BaseExceptionGroup) and len(failed.exceptions) == 1:
                    raise failed.exceptions[0] from failed
                raise
            await self._publish_models()
            return served

    async def remove_model(self, served_name: str, timeout_s: float) -> AsyncIterator[list[registry_pb2.WorkerDrain]]:
        """Refuse a model's new requests, wait for those it has, and stop its workers; how far each of them is.

        Raises:
            ConfigError: there is no such model, it is the last one, or a route names it.
        """
        async with self._changing:
            changed = self._portfolio.removed(served_name)
            model = self.models[served_name]
            await self._publish_models(leaving=served_name)
            async for progress in model.wind_down(timeout_s):
                yield progress
            self._portfolio = changed
            await self._end_model(served_name)

    async def _end_model(self, served_name: str) -> None:
        await self.models.pop(served_name).end()
        await self._publish_models()

    async def _publish_models(self, leaving: str = "") -> None:
        await self.registry.publish_models(
            [
                registry_pb2.ModelEntry(
                    served_name=name,
                    spec_json=spec.model_dump_json(exclude_unset=True),
                    worker_prefix=spec.worker_prefix,
                    leaving=name == leaving,
                )
                for name, spec in self._portfolio.models.items()
            ]
        )

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

    async def _add_model(self, request: registry_pb2.AddModelRequest) -> registry_pb2.AddModelResponse:
        began_s = time.monotonic()
        served = await self.add_model(request.name, request.entry_yaml)
        ids = [worker.worker_id for worker in self.models[served].pool.workers()]
        elapsed_s = time.monotonic() - began_s
        return registry_pb2.AddModelResponse(elapsed_s=elapsed_s, served_name=served, worker_ids=ids)

    async def _remove_model(
        self, request: registry_pb2.RemoveModelRequest
    ) -> AsyncIterator[registry_pb2.DrainResponse]:
        began_s, timeout_s = time.monotonic(), request.timeout_s or self._portfolio.first.drain.timeout_s
        async for workers in self.remove_model(request.served_name, timeout_s):
            elapsed_s = time.monotonic() - began_s
            yield registry_pb2.DrainResponse(workers=workers, elapsed_s=elapsed_s, timeout_s=timeout_s)

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
