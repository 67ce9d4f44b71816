"""Which workers exchange KV: every prefill-decode pair completes a handshake once, before either is called ready."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterable, Sequence

from baton.internal.v1 import registry_pb2
from cluster.errors import TransferError
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import Role, TransferSettings
from kv_transfer.transport import Endpoint, choose
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.warm_up import WarmUp
from orchestrator.controller.worker_launch import Progress

log = logging.getLogger("baton.controller")

PAIR_ROLES = (Role.PREFILL.value, Role.DECODE.value)

WorkerPair = tuple[ManagedWorker, ManagedWorker]
"""A prefill worker and a decode worker."""


class PairTable:
    """Owns the pairs that have completed their handshake, and by which transport.

    Args:
        transfer: The spec's section; says which transports are allowed.
        rpc: How the cluster's processes call each other.
        on_progress: Called for each pair.
    """

    def __init__(self, transfer: TransferSettings, rpc: InternalRpc, *, on_progress: Progress) -> None:
        self._transfer = transfer
        self._rpc = rpc
        self._progress = on_progress
        self._pairs: dict[tuple[str, str], registry_pb2.Pair] = {}
        self._warmed: dict[tuple[str, str], tuple[str, str]] = {}
        """Incarnations of the pairs that have completed their handshake."""

    def known(self) -> set[tuple[str, str]]:
        """Names of the pairs, prefill first; a worker that changed its role may be in some that do not serve."""
        return set(self._pairs)

    async def shake_hands(self, pairs: Sequence[WorkerPair], *, alone: Sequence[ManagedWorker] = ()) -> None:
        """Run a tiny handoff in each pair without a handshake, and a tiny request on each worker that needs no peer.

        Raises:
            ServingError: a pair cannot exchange KV; the text says why.
        """
        members = {worker.worker_id: worker.member for worker in (*alone, *itertools.chain(*pairs))}
        warm_up = WarmUp(members, self._rpc)
        try:
            for worker in alone:
                await warm_up.alone(worker.worker_id)
            for prefill, decode in pairs:
                await self._shake(warm_up, prefill, decode)
        finally:
            await warm_up.close()

    async def _shake(self, warm_up: WarmUp, prefill: ManagedWorker, decode: ManagedWorker) -> None:
        names = (prefill.worker_id, decode.worker_id)
        incarnations = (prefill.member.incarnation, decode.member.incarnation)
        if self._warmed.get(names) == incarnations:
            return  # before one of them changed its role
        transport = choose(_endpoint(prefill), _endpoint(decode), self._transfer.transports)
        if transport is None:
            raise TransferError(
                f"{names[0]} and {names[1]} share no allowed transport; add one to transfer.transports "
                "or place them nearer"
            )
        handshake_s = await warm_up.pair(*names)
        self._warmed[names] = incarnations
        self._pairs[names] = registry_pb2.Pair(
            prefill=names[0], decode=names[1], transport=transport.value, handshake_s=handshake_s
        )
        log.info("pair %s -> %s: %s, handshake %.3f s", *names, transport.value, handshake_s)
        self._progress(
            f"{names[0]} → {names[1]}", "paired", f"{transport.value}, handshake {handshake_s * 1000:.0f} ms"
        )

    def serving(
        self, workers: Iterable[ManagedWorker], refused: Collection[tuple[str, str]]
    ) -> list[registry_pb2.Pair]:
        """Pairs to publish, those of ``refused`` marked; pairs of other workers than ``workers`` are dropped."""
        workers = list(workers)
        present = {worker.worker_id for worker in workers}
        self._pairs = {names: pair for names, pair in self._pairs.items() if set(names) <= present}
        roles = {worker.worker_id: worker.member.role for worker in workers if worker.member.incarnation}
        pairs = [
            pair for pair in self._pairs.values() if (roles.get(pair.prefill), roles.get(pair.decode)) == PAIR_ROLES
        ]
        for pair in pairs:
            pair.refused = (pair.prefill, pair.decode) in refused
        return pairs


def pairs_with(new: Collection[str], workers: Iterable[ManagedWorker]) -> list[WorkerPair]:
    """Prefill-decode pairs of ``workers`` that have one of ``new`` in them and run the same engine version."""
    workers = list(workers)
    prefills = [worker for worker in workers if worker.role is Role.PREFILL]
    decodes = [worker for worker in workers if worker.role is Role.DECODE]
    pairs = []
    for prefill, decode in itertools.product(prefills, decodes):
        if not {prefill.worker_id, decode.worker_id} & set(new):
            continue
        if prefill.member.revision == decode.member.revision:
            pairs.append((prefill, decode))
        else:
            log.warning(
                "%s runs %s and %s runs %s: not paired",
                prefill.worker_id, prefill.member.revision, decode.worker_id, decode.member.revision,
            )  # fmt: skip
    return pairs


def _endpoint(worker: ManagedWorker) -> Endpoint:
    assert worker.handle is not None
    node = worker.handle.node
    return Endpoint(
        worker.worker_id,
        node.host,
        on_cpu=worker.pool.accelerators_per_worker == 0,
        nvlink_domain=node.nvlink_domain,
        rdma=node.rdma,
    )
