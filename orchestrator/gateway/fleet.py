"""The workers of one model as a gateway has them: members of the registry, links, reservations, legs and tickets.

The fleet alone changes what it holds. Others ask it for views and have it reserve, start and release; what happens on
its own accord is reported to its `FleetOwner`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from baton.internal.v1 import registry_pb2, worker_pb2
from cluster.errors import TicketRefused, WorkerDied
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import Role
from cluster.spec.objective_settings import CostSettings
from kv_transfer import ticket as tickets
from kv_transfer.ticket import HandoffTicket, TicketGuard
from orchestrator.gateway.fleet_worker import PREFILL_RATE_PRIOR_TOKENS_PER_S, FleetWorker, request_of
from orchestrator.gateway.pairs import Pairs
from orchestrator.gateway.silence import SilenceWatch
from orchestrator.policy.drain_moves import is_to_be_emptied
from orchestrator.policy.prefix_index import PrefixIndex
from orchestrator.policy.readiness import LOADED
from orchestrator.policy.router import Placement, WorkerView
from orchestrator.request.lifecycle import StartLeg
from workers.worker_link import TokenHandler, WorkerLink, ticket_message

log = logging.getLogger("baton.gateway")

KNOWN_STATES = (*LOADED, "draining")
"""Of workers that a gateway keeps a link to. One on standby is linked to, so that it serves the moment it is to."""
RECONNECT_S = 1.0
"""After a broken stream. gRPC itself backs off further while the address does not answer."""

OutputHandler = Callable[[worker_pb2.LegOutput], None]


class FleetOwner(Protocol):
    """Takes a fleet's reports."""

    def fleet_changed(self) -> None:
        """Workers came, went, freed KV or changed state: waiting requests may find KV, and moves may begin."""
        ...

    def kv_freed(self) -> None:
        """A reservation of KV was given back."""
        ...

    def prompt_read(self) -> None:
        """A worker has read a prompt: what was preempted may come back there."""
        ...

    def worker_lost(self, worker_id: str) -> None:
        """A worker is gone, and all legs on it."""
        ...


class Fleet:
    """Owns workers, links, pairs, reservations of KV, legs and tickets of one model.

    Args:
        owner: Takes reports.
        silence_timeout_s: A worker that is silent for so long is given up.
        ticket_deadline_s: Seconds within which a handoff must begin.
        cost: Prices of workers.
        rpc: How the cluster's processes call each other.
    """

    def __init__(
        self,
        owner: FleetOwner,
        *,
        silence_timeout_s: float = 15.0,
        ticket_deadline_s: float = 20.0,
        cost: CostSettings | None = None,
        rpc: InternalRpc | None = None,
    ) -> None:
        self._owner = owner
        self._ticket_deadline_s = ticket_deadline_s
        self._cost = cost or CostSettings()
        self._priced = bool(self._cost.usd_per_accelerator_hour or self._cost.usd_per_cpu_hour)
        self._rpc = rpc
        self.workers: dict[str, FleetWorker] = {}
        self.pairs = Pairs()
        self._tickets = TicketGuard()
        self._prefixes: PrefixIndex | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._wanted: dict[str, registry_pb2.Member] = {}
        self._silence = SilenceWatch(silence_timeout_s)
        self._watcher: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self.workers)

    # --- views ----------------------------------------------------------------------------------------------

    def views(self, peak_blocks: Mapping[str, int] | None = None) -> list[WorkerView]:
        """The router's view of all workers, with the forecast peaks of those that have one."""
        peaks = peak_blocks or {}
        known = [worker.load.prefill_tokens_per_s for worker in self.workers.values()]
        known = [rate for rate in known if rate]
        usual = sum(known) / len(known) if known else PREFILL_RATE_PRIOR_TOKENS_PER_S
        refused = self.pairs.refused()
        return [
            worker.view(usual, peaks.get(worker_id), refused.get(worker_id, frozenset()))
            for worker_id, worker in self.workers.items()
        ]

    def cached_tokens(self, hashes: Sequence[int], isl_tokens: int) -> dict[str, int]:
        """Tokens of a prompt that each worker likely has."""
        return self._prefixes.cached_tokens(hashes, isl_tokens) if self._prefixes else {}

    def running_requests(self, worker_id: str) -> int:
        """Requests on a worker as it reports them, those of other gateways included."""
        return self.workers[worker_id].load.running_requests

    def decode_used_blocks(self) -> dict[str, int]:
        """Blocks in use on each decode worker as it reports them."""
        return {key: each.load.used_blocks for key, each in self.workers.items() if each.role is Role.DECODE}

    def awaits_decode(self) -> bool:
        """Whether a decode worker is ready and is yet to report, so that nothing is sent there."""
        return any(worker.role is Role.DECODE and worker.joins for worker in self.workers.values())

    def to_empty(self) -> list[str]:
        """Workers to be emptied."""
        return [
            worker_id
            for worker_id, worker in self.workers.items()
            if is_to_be_emptied(worker.role, draining=worker.draining, decodes=bool(worker.reserved))
        ]

    def usd_per_request_s(self, worker_id: str) -> float:
        """A worker's price for a second, shared by the legs on it."""
        if not self._priced:
            return 0.0
        worker, cost = self.workers.get(worker_id), self._cost
        if worker is None:
            return 0.0
        member = worker.member
        per_hour = member.accelerators * cost.usd_per_accelerator_hour + member.cpus * cost.usd_per_cpu_hour
        return per_hour / 3600 / max(1, len(worker.legs))

    # --- reservations of KV -------------------------------------------------------------------------------------

    def reserve_placement(
        self, request_id: str, placement: Placement, uncached_tokens: int, shared: tuple[str, int] | None = None
    ) -> None:
        """Reserve a placed request its blocks, and count its prompt as queued where it will be read.

        ``shared`` names those of its blocks that it has in common with siblings, which are reserved once.
        """
        self.reserve(request_id, placement.decode_id, placement.reserve_blocks)
        if shared is not None:
            self.workers[placement.decode_id].share(request_id, *shared)
        reader = self.workers[placement.prefill_id or placement.decode_id]
        reader.queued_tokens[request_id] = uncached_tokens

    def reserve(self, request_id: str, worker_id: str, blocks: int) -> None:
        """Reserve a request blocks of a worker."""
        self.workers[worker_id].reserve(request_id, blocks)

    def holds(self, request_id: str, worker_id: str) -> bool:
        """Whether a request has blocks reserved on a worker."""
        worker = self.workers.get(worker_id)
        return worker is not None and request_id in worker.reserved

    def free(self, request_id: str, worker_id: str) -> None:
        """Take back what was reserved for a request."""
        for worker in self.workers.values():
            worker.unqueue(request_id)
        if holder := self.workers.get(worker_id):
            holder.free(request_id)
        self._owner.kv_freed()

    def freed_by(self, worker_id: str, request_id: str, held_blocks: int) -> int:
        """Headroom in blocks that a request with so many would leave on its worker."""
        return self.workers[worker_id].freed_by(request_id, held_blocks)

    def expect_leave(self, worker_id: str, leg_id: str, blocks: int) -> Callable[[], None]:
        """A leg is about to be preempted: its blocks count as free though the worker is yet to report it.

        Returns what to call if it was not preempted after all.
        """
        worker = self.workers[worker_id]
        worker.leaving[leg_id] = max(0, blocks - worker.shared_blocks(request_of(leg_id)))
        return partial(self._stays, worker_id, leg_id)

    def _stays(self, worker_id: str, leg_id: str) -> None:
        if worker_id in self.workers:
            self.workers[worker_id].leaving.pop(leg_id, None)

    # --- legs and tickets -----------------------------------------------------------------------------------

    def start_leg(
        self,
        action: StartLeg,
        message: worker_pb2.SubmitLeg,
        handler: OutputHandler,
        hashes: Sequence[int],
        on_token: TokenHandler,
    ) -> None:
        """Send a leg to its worker; its ticket is redeemed here and goes along.

        ``on_token`` gets single tokens with nothing else to be said of them, ``handler`` all other outputs.

        Raises:
            WorkerDied: the worker is gone.
            TicketRefused: the ticket may not be used.
        """
        worker = self.workers.get(action.worker_id)
        if worker is None:
            if action.ticket is not None:
                self.release_ticket(action.worker_id, action.ticket)
            raise WorkerDied("the worker is gone", worker_id=action.worker_id)
        if action.ticket is not None:
            now_s = time.monotonic()
            self._tickets.redeem(action.ticket, now_s=now_s)
            message.ticket.CopyFrom(ticket_message(action.ticket, now_s))
        worker.add_leg(action.leg_id)
        route = partial(self._route_output, action.worker_id, handler)
        worker.link.submit(message, route, partial(self._route_token, worker, action.leg_id, on_token))
        if self._prefixes:
            self._prefixes.record(action.worker_id, hashes)

    def abort_leg(self, leg_id: str, worker_id: str) -> None:
        """Stop a leg."""
        if worker := self.workers.get(worker_id):
            worker.drop_leg(leg_id)
            worker.link.abort(leg_id)

    def issue_ticket(self, worker_id: str, params_json: str, now_s: float) -> HandoffTicket:
        """Check what prefill returned.

        Raises:
            TicketRefused: it cannot be handed to decode.
        """
        worker = self.workers.get(worker_id)
        if worker is None:
            raise TicketRefused("the worker that wrote the ticket is gone", worker_id=worker_id)
        try:
            params = json.loads(params_json) if params_json else None
        except (ValueError, RecursionError) as error:
            raise TicketRefused("transfer parameters are not JSON", worker_id=worker_id) from error
        return tickets.issue(
            params,
            source_id=worker_id,
            incarnation=worker.member.incarnation,
            block_size_tokens=worker.member.block_size_tokens,
            deadline_s=now_s + self._ticket_deadline_s,
        )

    def release_ticket(self, worker_id: str, ticket: HandoffTicket) -> None:
        """Have the source free the ticket's blocks, through this decode worker or, if it is gone, any other."""
        now_s = time.monotonic()
        try:
            self._tickets.redeem(ticket, now_s=now_s)
        except TicketRefused:
            return  # gone with its engine, or read already
        others = (worker for worker in self.workers.values() if worker.role is Role.DECODE)
        if worker := self.workers.get(worker_id) or next(others, None):
            worker.link.release(ticket, now_s)

    def _route_output(self, worker_id: str, handler: OutputHandler, output: worker_pb2.LegOutput) -> None:
        """A leg's message: note its first token and its end, and hand it to its run."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            if output.finish_reason:
                worker.drop_leg(output.leg_id)
                worker.has_left(output.leg_id)
            elif worker.queued_tokens and worker.prompt_read(output.leg_id):
                self._owner.prompt_read()
        handler(output)

    def _route_token(self, worker: FleetWorker, leg_id: str, on_token: TokenHandler, token_id: int) -> None:
        """A leg's token, and nothing else: note whether it is the first one, and hand it to its run."""
        if worker.queued_tokens and worker.prompt_read(leg_id):
            self._owner.prompt_read()
        on_token(token_id)

    # --- members --------------------------------------------------------------------------------------------

    def update(self, members: Iterable[registry_pb2.Member], pairs: Iterable[registry_pb2.Pair]) -> None:
        """Take a new membership: connect to new incarnations, drop those that are gone."""
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch_silence())
        self.pairs.update(pairs)
        wanted = {member.worker_id: member for member in members if member.state in KNOWN_STATES}
        self._wanted = wanted
        lost = False
        for worker_id, worker in list(self.workers.items()):
            member = wanted.get(worker_id)
            if member is None or member.incarnation != worker.member.incarnation:
                self._drop(worker_id)
                lost = True
            else:
                worker.member = member
        for worker_id, member in wanted.items():
            if worker_id not in self.workers:
                self._add(member)
        if lost:
            # Those that lost a worker take it in first: they give back what they have elsewhere, and go before others.
            asyncio.get_running_loop().call_soon(self._owner.fleet_changed)
        else:
            self._owner.fleet_changed()

    def drop_silent(self, now_s: float) -> None:
        """Give up workers that have been silent for too long; see `SilenceWatch`."""
        heard_s = {key: worker.link.last_event_s for key, worker in self.workers.items() if worker.connected}
        verdict = self._silence.check(now_s, heard_s)
        if verdict.cut_off:
            log.warning("no worker is heard: this gateway is cut off, or all of them are; none is given up yet")
        if verdict.renew:
            for worker in self.workers.values():
                worker.link.last_event_s = max(worker.link.last_event_s, now_s)
        for worker_id in verdict.silent:
            log.warning("worker %s is silent; its requests go on elsewhere", worker_id)
            self._link_lost(worker_id)

    async def close(self) -> None:
        """Close all links."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        self._wanted = {}
        for worker_id in list(self.workers):
            self._drop(worker_id)
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _watch_silence(self) -> None:
        while True:
            try:
                self.drop_silent(time.monotonic())
            except Exception:
                log.exception("a check for silent workers failed; the next one comes")
            await asyncio.sleep(self._silence.every_s)

    def _add(self, member: registry_pb2.Member) -> None:
        if self._prefixes is None:
            self._prefixes = PrefixIndex(member.block_size_tokens)
        self._prefixes.add_worker(member.worker_id, member.total_blocks)
        self._tickets.worker_up(member.worker_id, member.incarnation)
        link = WorkerLink(
            member.worker_id, member.address, on_lost=self._link_lost, on_load=self._take_load, rpc=self._rpc
        )
        self.workers[member.worker_id] = FleetWorker(member, link)
        log.info("worker %s joined as %s", member.worker_id, member.role)

    def _drop(self, worker_id: str) -> None:
        """A worker is gone: its tickets are refused from here on."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        worker.link.silence()
        self._tickets.worker_down(worker_id)
        if self._prefixes is not None:
            self._prefixes.remove_worker(worker_id)
        task = asyncio.create_task(worker.link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self._owner.worker_lost(worker_id)

    def _link_lost(self, worker_id: str) -> None:
        """A stream broke. If the worker is alive all the same (a cut link), it is used again when it answers."""
        self._drop(worker_id)
        asyncio.get_running_loop().call_later(RECONNECT_S, self._rejoin, worker_id)

    def _rejoin(self, worker_id: str) -> None:
        member = self._wanted.get(worker_id)
        if member is not None and worker_id not in self.workers:
            self._add(member)

    def _take_load(self, load: worker_pb2.WorkerLoad) -> None:
        worker = self.workers.get(load.worker_id)
        if worker is not None and worker.member.incarnation == load.incarnation:
            freed = load.used_blocks < worker.load.used_blocks
            news = load.draining != worker.load.draining or load.hung != worker.load.hung
            worker.take_load(load)
            if load.hung and worker.legs:
                log.warning("worker %s makes no progress; its requests go on elsewhere", load.worker_id)
                self._link_lost(load.worker_id)
            elif news or not worker.connected:
                worker.connected = True
                self._owner.fleet_changed()
            elif freed:
                # A run whose leg has just ended gives its reservation back first.
                asyncio.get_running_loop().call_soon(self._owner.fleet_changed)
