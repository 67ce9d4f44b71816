"""Small stand-ins for a gateway's parts, so that each can be tested alone: a run, a fleet, a link, a clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from baton.internal.v1 import worker_pb2
from baton.v1 import inference_pb2 as pb
from cluster.spec.config import Role, parse
from kv_transfer.ticket import HandoffTicket
from orchestrator.gateway.siblings import PrefixSharing, SharedPrompt, Sibling
from orchestrator.policy.router import Placement, WorkerView
from orchestrator.request.lifecycle import Event, LegOutput, Lifecycle, Placed, Preempted, State
from orchestrator.request.prepare import PreparedRequest, prepare
from tests.fakes.tokenizer import MARKERS, front

BLOCK = 32
SPEC = parse("""
model: {path: m, served_name: fake, max_model_len_tokens: 4096, reasoning: {}}
pools: {prefill: {replicas: 1}, decode: {replicas: 1}}
""")
FRONT = front(markers=MARKERS, max_model_len_tokens=4096)
_numbers = itertools.count()


def prepared(isl_tokens: int = 64, max_tokens: int = 100, **fields: Any) -> PreparedRequest:
    """A checked request of so many tokens; ``fields`` are the API's."""
    sampling = pb.Sampling(temperature=0.0, max_tokens=max_tokens, n=fields.pop("n", 1))
    ids = pb.TokenIds(ids=[65] * isl_tokens)
    request = pb.GenerateRequest(prompt_token_ids=ids, sampling=sampling, **fields)
    return prepare(request, FRONT, SPEC, now_s=time.monotonic())


class FakeRun:
    """A run that only remembers what it was asked; its lifecycle is a real one."""

    def __init__(
        self, request: PreparedRequest | None = None, index: int = 0, prompt: SharedPrompt | None = None
    ) -> None:
        self.request = request or prepared()
        self.sibling = Sibling(prompt or SharedPrompt("", 1, BLOCK, PrefixSharing()))
        self.index = index
        self.number = next(_numbers)
        self.hashes: list[int] = []
        self.life = Lifecycle(f"r.{self.number:x}", self.request.prompt_ids, self.request.max_tokens)
        self.waits_for_headroom = self.preempted = False
        self.answer_tokens = 0
        self.posted: list[Event] = []
        self.placements: list[tuple[str | None, str]] = []

    @property
    def movable(self) -> bool:
        return self.life.resumable

    def post(self, event: Event) -> None:
        self.posted.append(event)
        self.life.handle(event)

    def placed(self, prefill_id: str | None, decode_id: str) -> None:
        self.waits_for_headroom = False
        self.placements.append((prefill_id, decode_id))
        self.sibling.placed(prefill_id, decode_id)
        self.life.handle(Placed(prefill_id, decode_id))

    def preempt(self) -> bool:
        done = bool(self.life.handle(Preempted()))
        if done:
            self.preempted = self.waits_for_headroom = True
        return done

    def decodes(self, decode_id: str, tokens: int = 1) -> FakeRun:
        """Have it decode there, and have made so many tokens."""
        if self.life.state is State.QUEUED:
            self.life.handle(Placed(None, decode_id))
        if self.life.state is State.PREFILLING:
            ticket = HandoffTicket("t", str(self.life.prefill_id), "i", self.life.context_tokens, 1, 1e9, "{}")
            self.life.handle(LegOutput(str(self.life.leg_id), (65,), "length", ticket))
        self.life.handle(LegOutput(str(self.life.leg_id), (65,) * tokens))
        return self


@dataclass
class FakeFleet:
    """A fleet of nothing but views; reservations take headroom."""

    workers: dict[str, WorkerView] = field(default_factory=dict)
    reserved: dict[str, dict[str, int]] = field(default_factory=dict)
    emptying: list[str] = field(default_factory=list)
    leaving: dict[str, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.workers)

    def add(self, worker_id: str, total_blocks: int = 100, **fields: Any) -> None:
        role = Role(worker_id.split("-")[0])
        self.workers[worker_id] = WorkerView(worker_id, role, total_blocks, total_blocks, **fields)

    def views(self, peak_blocks: Mapping[str, int] | None = None) -> list[WorkerView]:
        peaks = peak_blocks or {}
        return [
            replace(
                view,
                reserved_blocks=sum(self.reserved.get(key, {}).values()),
                running_requests=len(self.reserved.get(key, {})),
                peak_blocks=peaks.get(key),
            )
            for key, view in self.workers.items()
        ]

    def cached_tokens(self, hashes: Sequence[int], isl_tokens: int) -> dict[str, int]:
        return {}

    def running_requests(self, worker_id: str) -> int:
        return self.others.get(worker_id, 0)

    def reserve_placement(
        self, request_id: str, placement: Placement, uncached_tokens: int, shared: tuple[str, int] | None = None
    ) -> None:
        self.reserve(request_id, placement.decode_id, placement.reserve_blocks)

    def reserve(self, request_id: str, worker_id: str, blocks: int) -> None:
        self.reserved.setdefault(worker_id, {})[request_id] = blocks

    def holds(self, request_id: str, worker_id: str) -> bool:
        return request_id in self.reserved.get(worker_id, {})

    def to_empty(self) -> list[str]:
        return self.emptying

    def awaits_decode(self) -> bool:
        return any(not view.accepting and view.role is Role.DECODE for view in self.workers.values())

    def freed_by(self, worker_id: str, request_id: str, held_blocks: int) -> int:
        return self.reserved.get(worker_id, {}).get(request_id, held_blocks)

    def expect_leave(self, worker_id: str, leg_id: str, blocks: int) -> Callable[[], None]:
        self.leaving[leg_id] = blocks
        return partial(self.leaving.__delitem__, leg_id)


class FakeLink:
    """A worker's link that keeps what it was given."""

    def __init__(self, worker_id: str, address: str, *, on_lost: Any, on_load: Any, rpc: Any = None) -> None:
        self.worker_id, self.on_lost, self.on_load = worker_id, on_lost, on_load
        self.last_event_s = 0.0
        self.started: dict[str, tuple[worker_pb2.SubmitLeg, Callable[[worker_pb2.LegOutput], None]]] = {}
        self.aborted: list[str] = []
        self.released: list[str] = []

    def submit(
        self, message: worker_pb2.SubmitLeg, handler: Callable[[worker_pb2.LegOutput], None], on_token: object = None
    ) -> None:
        self.started[message.leg_id] = (message, handler)

    def abort(self, leg_id: str) -> None:
        self.aborted.append(leg_id)

    def release(self, ticket: Any, now_s: float) -> None:
        self.released.append(ticket.ticket_id)

    def silence(self) -> None:
        self.on_lost = lambda _: None

    async def close(self) -> None:
        pass


class Clock:
    """A time that moves by hand, and timers on it."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now_s + delay_s, call))

    def advance(self, seconds: float) -> None:
        """Move on, and call what is due."""
        self.now_s += seconds
        due = [call for at_s, call in self.timers if at_s <= self.now_s]
        self.timers = [(at_s, call) for at_s, call in self.timers if at_s > self.now_s]
        for call in due:
            call()
