"""The models of a gateway: those that its spec has, then what the registry adds and takes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from baton.internal.v1 import registry_pb2
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import ClusterSpec
from cluster.spec.portfolio import Portfolio
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.model_serving import ModelServing
from orchestrator.request.model_front import ModelFront

log = logging.getLogger("baton.gateway")

LoadModel = Callable[[ClusterSpec], tuple[ClusterSpec, ModelFront]]
"""Reads a model's tokeniser and template; returns its spec with what the model's folder adds. May take seconds."""


class ModelsServed:
    """Owns what serves each model.

    Args:
        portfolio: The models to begin with, and the cluster.
        fronts: What a gateway knows of each of them, by name.
        metrics: Where each model has its own.
        load: See `LoadModel`; without it no model can be added.
    """

    def __init__(
        self,
        portfolio: Portfolio,
        fronts: Mapping[str, ModelFront],
        metrics: GatewayMetrics,
        load: LoadModel | None = None,
    ) -> None:
        self.leaving: set[str] = set()
        """Models that are being removed: they get no new requests."""
        self._shared = portfolio.first
        self._metrics = metrics
        self._load = load
        self._report: Callable[[ModelServing], asyncio.Task[None]] | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By model: it is being loaded, or reports."""
        self._members = registry_pb2.WatchMembersResponse()
        self.serving: dict[str, ModelServing] = {}
        """By the name that callers ask for; the first one is for requests that name none."""
        for name, spec in portfolio.models.items():
            self._serve(name, spec, fronts[name])

    def update(self, message: registry_pb2.WatchMembersResponse) -> None:
        """Take the models and their workers from the registry."""
        self._members = message
        self.leaving.clear()
        self.leaving.update(entry.served_name for entry in message.models if entry.leaving)
        if message.models:
            self._reconcile(message.models)
        for name in self.serving:
            self._take_members(name)

    def report_to(self, controller: str, rpc: InternalRpc) -> None:
        """Have every model that is scaled report its requests to the controller at this address, from now on."""

        def report(model: ModelServing) -> asyncio.Task[None]:
            interval_s = model.spec.autoscaling.report_interval_s
            return asyncio.create_task(model.journal.report_to(controller, interval_s, rpc))

        self._report = report
        for name in self.serving:
            self._start_report(name)

    async def close(self) -> None:
        """End all links; streams still open end with an error."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for model in self.serving.values():
            await model.close()

    # --- models that come and go ------------------------------------------------------------------------------

    def _reconcile(self, entries: Sequence[registry_pb2.ModelEntry]) -> None:
        listed = {entry.served_name: entry for entry in entries}
        for name, entry in listed.items():
            if name not in self.serving and name not in self._tasks and self._load is not None:
                self._tasks[name] = asyncio.create_task(self._add(name, entry, self._load))
        for name in self.serving.keys() - listed.keys():
            if task := self._tasks.pop(name, None):
                task.cancel()
            self._tasks[name] = asyncio.create_task(self._remove(name))

    async def _add(self, name: str, entry: registry_pb2.ModelEntry, load: LoadModel) -> None:
        try:
            spec = ClusterSpec.model_validate_json(entry.spec_json).with_worker_prefix(entry.worker_prefix)
            here = spec.model_copy(update={"gateway": self._shared.gateway})
            spec, front = await asyncio.to_thread(load, here)
        except Exception:  # the others go on; it is tried again with the next message
            log.exception("the model %s cannot be served here", name)
            return
        finally:
            self._tasks.pop(name, None)
        self._serve(name, spec, front)
        self._take_members(name)
        self._start_report(name)
        log.info("serving the model %s", name)

    async def _remove(self, name: str) -> None:
        model = self.serving.pop(name)
        self._metrics.forget_model(name)
        await model.close()
        self._tasks.pop(name, None)
        log.info("the model %s is gone", name)

    def _serve(self, name: str, spec: ClusterSpec, front: ModelFront) -> None:
        self.serving[name] = ModelServing(spec, front, self._metrics.of_model(name, spec.slo))

    def _start_report(self, name: str) -> None:
        model = self.serving[name]
        if self._report is not None and model.spec.autoscaling.enabled:
            self._tasks[name] = self._report(model)

    def _take_members(self, name: str) -> None:
        """Give a model its part of the last membership. Members without a model are the first one's."""
        message, first = self._members, next(iter(self.serving))
        members = [member for member in message.members if (member.model or first) == name]
        ids = {member.worker_id for member in members}
        pairs = [pair for pair in message.pairs if pair.prefill in ids]
        starting = message.starting_by_model.get(name, 0)
        if name == first and not message.starting_by_model:
            starting = message.starting_decode_workers  # of a controller that is older than models by name
        self.serving[name].update_members(members, pairs, starting_decode_workers=starting)
