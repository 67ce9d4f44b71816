"""What the registry publishes, put together from what the pool, the pairs and the canaries hold."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.controller.canary_log import CanaryLog
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.pair_table import PairTable
from orchestrator.policy.canary import Canary
from orchestrator.registry import RegistryService


class Membership:
    """Publishes the workers to gateways. Owns nothing: it is a view of what the arguments own.

    Args:
        registry: Sends it to all watchers.
        model: Served name of the model that the workers hold.
        pairs: Says who exchanges KV.
        canary: Says which links are refused.
        findings: Says what canaries found.
    """

    def __init__(
        self, registry: RegistryService, model: str, pairs: PairTable, canary: Canary, findings: CanaryLog
    ) -> None:
        self._registry = registry
        self._model = model
        self._pairs = pairs
        self._canary = canary
        self._findings = findings

    async def publish(self, workers: Sequence[ManagedWorker]) -> None:
        """Publish these workers as all that the model has."""
        members = [worker.member for worker in workers if worker.member.incarnation]
        pairs = self._pairs.serving(workers, self._canary.refused)
        starting = sum(worker.on_its_way for worker in workers)
        await self._registry.publish(self._model, members, pairs, starting, self._findings.report())
