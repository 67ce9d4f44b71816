"""The workers as one gateway sees them: members from the registry, a link and the load of each, KV promised."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from baton.internal.v1 import registry_pb2, worker_pb2
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import Role
from kv_transfer.ticket import TicketBook
from orchestrator.policy.prefix_index import PrefixIndex
from orchestrator.policy.readiness import LOADED
from orchestrator.policy.router import WorkerView
from orchestrator.policy.silence import CutOff
from workers.worker_link import WorkerLink

log = logging.getLogger("baton.gateway")

PREFILL_RATE_PRIOR_TOKENS_PER_S = 10_000.0
KNOWN_STATES = (*LOADED, "draining")
"""Of workers that a gateway keeps a link to. One on standby is linked to, so that it serves the moment it is to."""
LOADS_TO_TELL = 2
"""The first load after a leg's end may be of the engine's last step before it."""
RECONNECT_S = 1.0
"""After a broken stream. gRPC itself backs off further while the address does not answer."""


@dataclass(slots=True)
class FleetWorker:
    """One worker incarnation and what this gateway has on it."""

    member: registry_pb2.Member
    link: WorkerLink
    load: worker_pb2.WorkerLoad = field(default_factory=worker_pb2.WorkerLoad)
    reserved: dict[str, int] = field(default_factory=dict)
    """Blocks promised, by request."""
    queued_tokens: dict[str, int] = field(default_factory=dict)
    """Uncached prompt tokens of legs not yet prefilled."""
    legs: set[str] = field(default_factory=set)
    connected: bool = False
    """Whether the worker has reported on this link; until then nothing is sent there."""
    leaving: dict[str, int] = field(default_factory=dict)
    """Blocks of legs that made way, by leg, until a load tells of it."""
    left: dict[str, int] = field(default_factory=dict)
    """Loads after which that is over, by leg that has ended."""

    @property
    def draining(self) -> bool:
        """Whether it is being emptied: the controller says so, or the worker itself."""
        return self.member.state == "draining" or self.load.draining

    @property
    def role(self) -> Role:
        """Role of the worker."""
        return Role(self.member.role)

    @property
    def used_blocks(self) -> int:
        """Blocks in use, without those that are being freed."""
        return max(0, min(self.load.used_blocks, self.member.total_blocks) - sum(self.leaving.values()))

    def freed_by(self, request_id: str, held_blocks: int) -> int:
        """Blocks of headroom that a request would leave which holds so many, and was promised what it was."""
        used, promised = self.used_blocks, sum(self.reserved.values())
        without = max(0, used - held_blocks, promised - self.reserved.get(request_id, 0))
        return max(used, promised) - without

    def has_left(self, leg_id: str) -> None:
        """A leg has ended, and one of the next loads tells of it."""
        if leg_id in self.leaving:
            self.left[leg_id] = LOADS_TO_TELL

    def take_load(self, load: worker_pb2.WorkerLoad) -> None:
        """The worker told its load."""
        freed, self.load = load.used_blocks < self.load.used_blocks, load
        self.left = {leg_id: loads - 1 for leg_id, loads in self.left.items()}
        for leg_id in [leg_id for leg_id, loads in self.left.items() if freed or not loads]:
            del self.left[leg_id]
            self.leaving.pop(leg_id, None)

    def view(
        self,
        usual_tokens_per_s: float = PREFILL_RATE_PRIOR_TOKENS_PER_S,
        peak_blocks: int | None = None,
        refuses: frozenset[str] = frozenset(),
    ) -> WorkerView:
        """What the router is told. A running request's blocks are in the promise already, so the larger counts.

        ``usual_tokens_per_s`` stands in for a prefill rate that the worker has not shown yet.
        """
        used = self.used_blocks
        return WorkerView(
            worker_id=self.member.worker_id,
            role=self.role,
            total_blocks=self.member.total_blocks,
            free_blocks=self.member.total_blocks - used,
            reserved_blocks=max(0, sum(self.reserved.values()) - used),
            running_requests=len(self.legs),
            queued_tokens=sum(self.queued_tokens.values()),
            prefill_tokens_per_s=self.load.prefill_tokens_per_s or usual_tokens_per_s,
            domain=self.member.domain or self.member.node,
            accepting=self.connected and self.member.state == "ready" and not self.load.draining and not self.load.hung,
            peak_blocks=peak_blocks,
            revision=self.member.revision,
            spot=self.member.spot,
            refuses=refuses,
        )


class Fleet:
    """All workers. ``on_change`` is called when a request that waits might now be placed."""

    def __init__(
        self,
        *,
        on_change: Callable[[], None],
        on_lost: Callable[[str], None],
        silence_timeout_s: float = 15.0,
        rpc: InternalRpc | None = None,
    ) -> None:
        self._rpc = rpc
        self.workers: dict[str, FleetWorker] = {}
        self.tickets = TicketBook()
        self.prefixes: PrefixIndex | None = None
        self.pairs: dict[tuple[str, str], registry_pb2.Pair] = {}
        self._on_change = on_change
        self._on_lost = on_lost
        self._closing: set[asyncio.Task[None]] = set()
        self._wanted: dict[str, registry_pb2.Member] = {}
        self._silence_timeout_s = silence_timeout_s
        self._cut_off = CutOff(silence_timeout_s)
        self._was_cut_off = False
        self._looked_s = -math.inf

    def views(self, peak_blocks: Mapping[str, int] | None = None) -> list[WorkerView]:
        """What the router is told of all workers, with the forecast peaks of those that have one."""
        peaks = peak_blocks or {}
        known = [worker.load.prefill_tokens_per_s for worker in self.workers.values()]
        known = [rate for rate in known if rate]
        usual = sum(known) / len(known) if known else PREFILL_RATE_PRIOR_TOKENS_PER_S
        refused: dict[str, frozenset[str]] = {}
        for (prefill, decode), pair in self.pairs.items():
            if pair.refused:
                refused[decode] = refused.get(decode, frozenset()) | {prefill}
        return [
            worker.view(usual, peaks.get(worker_id), refused.get(worker_id, frozenset()))
            for worker_id, worker in self.workers.items()
        ]

    def update(self, members: Iterable[registry_pb2.Member], pairs: Iterable[registry_pb2.Pair]) -> None:
        """Take a new membership: connect to new incarnations, drop those that are gone."""
        self.pairs = {(pair.prefill, pair.decode): pair for pair in pairs}
        wanted = {member.worker_id: member for member in members if member.state in KNOWN_STATES}
        self._wanted = wanted
        for worker_id, worker in list(self.workers.items()):
            member = wanted.get(worker_id)
            if member is None or member.incarnation != worker.member.incarnation:
                self.drop(worker_id)
            else:
                worker.member = member
        for worker_id, member in wanted.items():
            if worker_id not in self.workers:
                self._add(member)
        self._on_change()

    def _add(self, member: registry_pb2.Member) -> None:
        if self.prefixes is None:
            self.prefixes = PrefixIndex(member.block_size_tokens)
        self.prefixes.add_worker(member.worker_id, member.total_blocks)
        self.tickets.worker_up(member.worker_id, member.incarnation)
        link = WorkerLink(
            member.worker_id, member.address, on_lost=self._link_lost, on_load=self._take_load, rpc=self._rpc
        )
        self.workers[member.worker_id] = FleetWorker(member, link)
        log.info("worker %s joined as %s", member.worker_id, member.role)

    def _link_lost(self, worker_id: str) -> None:
        """A stream broke. If the worker is alive all the same (a cut link), it is used again when it answers."""
        self.drop(worker_id)
        asyncio.get_running_loop().call_later(RECONNECT_S, self._rejoin, worker_id)

    def _rejoin(self, worker_id: str) -> None:
        member = self._wanted.get(worker_id)
        if member is not None and worker_id not in self.workers:
            self._add(member)

    def drop(self, worker_id: str) -> None:
        """A worker is gone: its tickets are refused and its requests told."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        worker.link.silence()
        self.tickets.worker_down(worker_id)
        if self.prefixes is not None:
            self.prefixes.remove_worker(worker_id)
        task = asyncio.create_task(worker.link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self._on_lost(worker_id)

    def _take_load(self, load: worker_pb2.WorkerLoad) -> None:
        worker = self.workers.get(load.worker_id)
        if worker is not None and worker.member.incarnation == load.incarnation:
            freed = load.used_blocks < worker.load.used_blocks
            news = load.draining != worker.load.draining or load.hung != worker.load.hung
            worker.take_load(load)
            if load.hung and worker.legs:
                log.warning("worker %s makes no progress; its requests go on elsewhere", load.worker_id)
                self._link_lost(load.worker_id)
            elif freed or news or not worker.connected:
                worker.connected = True
                self._on_change()

    def drop_silent(self, now_s: float) -> None:
        """Give up workers that have said nothing for too long: a stopped process keeps its connections open.

        Call it often. After a pause of its own (a stopped or starved gateway, a host that was cut off) each worker has
        its time anew, since what they said meanwhile was not read.
        """
        paused = now_s - self._looked_s > self._silence_timeout_s / 3
        self._looked_s = now_s
        if self._is_cut_off(now_s):
            return
        if paused or self._was_cut_off:
            self._was_cut_off = False
            for worker in self.workers.values():
                worker.link.last_event_s = max(worker.link.last_event_s, now_s)
            return
        for worker_id, worker in list(self.workers.items()):
            if worker.connected and now_s - worker.link.last_event_s >= self._silence_timeout_s:
                log.warning("worker %s is silent; its requests go on elsewhere", worker_id)
                self._link_lost(worker_id)

    def _is_cut_off(self, now_s: float) -> bool:
        """Whether nobody at all is heard, so that it is likely this gateway that is away."""
        heard_s = [worker.link.last_event_s for worker in self.workers.values() if worker.connected]
        heard = not heard_s or now_s - max(heard_s) < self._silence_timeout_s / 3
        cut_off = self._cut_off.observe(now_s, heard=heard, silent=len(heard_s))
        if cut_off and not self._was_cut_off:
            log.warning("no worker is heard: this gateway is cut off, or all of them are; none is given up yet")
        self._was_cut_off |= cut_off
        return cut_off

    async def close(self) -> None:
        """Close all links."""
        self._wanted = {}
        for worker_id in list(self.workers):
            self.drop(worker_id)
        await asyncio.gather(*self._closing, return_exceptions=True)
