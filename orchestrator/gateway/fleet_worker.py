"""One worker as a gateway keeps it: its link, its load, and what this gateway has on it. Changed by the fleet alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.internal.v1 import registry_pb2, worker_pb2
from cluster.spec.config import Role
from orchestrator.policy.router import WorkerView
from workers.worker_link import WorkerLink

PREFILL_RATE_PRIOR_TOKENS_PER_S = 10_000.0
LOADS_TO_SHOW = 2
"""The first load after a leg's end may be of the engine's last step before it."""


@dataclass(slots=True)
class FleetWorker:
    """One worker incarnation and what this gateway has on it."""

    member: registry_pb2.Member
    link: WorkerLink
    load: worker_pb2.WorkerLoad = field(default_factory=worker_pb2.WorkerLoad)
    reserved: dict[str, int] = field(default_factory=dict)
    """Blocks reserved, by request, and by name those that several share."""
    sharers: dict[str, str] = field(default_factory=dict)
    """By request, the name of the reservation that it shares with its siblings."""
    queued_tokens: dict[str, int] = field(default_factory=dict)
    """Uncached prompt tokens of legs not yet prefilled."""
    unsent: set[str] = field(default_factory=set)
    """Requests with a reservation that no leg here has taken up yet: the worker's load says nothing of them."""
    legs: set[str] = field(default_factory=set)
    _legs_of: dict[str, int] = field(default_factory=dict)
    """How many of them are a request's."""
    connected: bool = False
    """Whether the worker has reported on this link; until then nothing is sent there."""
    leaving: dict[str, int] = field(default_factory=dict)
    """Blocks of preempted legs, by leg, until a load without them is reported."""
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
    def joins(self) -> bool:
        """Whether it is ready and is yet to report, so that nothing is sent there."""
        return self.member.state == "ready" and not self.connected

    @property
    def used_blocks(self) -> int:
        """Blocks in use, without those that are being freed."""
        return max(0, min(self.load.used_blocks, self.member.total_blocks) - sum(self.leaving.values()))

    @property
    def running_requests(self) -> int:
        """Requests with a leg here, those included whose first leg is about to be sent."""
        return len(self.legs) + sum(request_id in self.queued_tokens for request_id in self.unsent)

    def reserve(self, request_id: str, blocks: int) -> None:
        """Reserve blocks to a request."""
        self.reserved[request_id] = blocks
        if not self._has_leg(request_id):
            self.unsent.add(request_id)

    def share(self, request_id: str, name: str, blocks: int) -> None:
        """Take blocks that are reserved to a request as those of this name, which are reserved once for all sharers."""
        self.reserved[request_id] -= blocks
        self.sharers[request_id] = name
        if name not in self.reserved:
            self.reserved[name] = blocks
            self.unsent.add(name)

    def free(self, request_id: str) -> None:
        """Take back what was reserved to a request; what it shares goes with the last sharer."""
        self.reserved.pop(request_id, None)
        self.unsent.discard(request_id)
        name = self.sharers.pop(request_id, None)
        if name is not None and name not in self.sharers.values():
            del self.reserved[name]
            self.unsent.discard(name)

    def shared_blocks(self, request_id: str) -> int:
        """Blocks of a request that stay when it goes, since siblings have them, too."""
        name = self.sharers.get(request_id)
        alone = name is None or sum(each == name for each in self.sharers.values()) == 1
        return 0 if alone or name is None else self.reserved[name]

    def freed_by(self, request_id: str, held_blocks: int) -> int:
        """Blocks of headroom that a request would leave which holds so many, and has its reservation."""
        used, reserved = self.used_blocks, sum(self.reserved.values())
        unsent, name = self._unsent_blocks(), self.sharers.get(request_id, "")
        shared = self.shared_blocks(request_id)
        own = self.reserved.get(request_id, 0) + (0 if shared else self.reserved.get(name, 0))
        without = max(unsent, used + unsent - max(0, held_blocks - shared), reserved - own)
        return max(used + unsent, reserved) - without

    def add_leg(self, leg_id: str) -> None:
        """A leg is sent."""
        request_id = request_of(leg_id)
        if leg_id not in self.legs:
            self.legs.add(leg_id)
            self._legs_of[request_id] = self._legs_of.get(request_id, 0) + 1
        self.unsent -= {request_id, self.sharers.get(request_id, request_id)}

    def drop_leg(self, leg_id: str) -> None:
        """A leg no longer occupies the worker."""
        request_id = request_of(leg_id)
        if leg_id in self.legs:
            self.legs.discard(leg_id)
            left = self._legs_of.pop(request_id) - 1
            if left:
                self._legs_of[request_id] = left
        self.unqueue(request_id)

    def unqueue(self, request_id: str) -> None:
        """Count a request's prompt no more, unless a leg of it runs: a later one, or one whose reservation moved."""
        if request_id in self.queued_tokens and not self._has_leg(request_id):
            del self.queued_tokens[request_id]

    def prompt_read(self, leg_id: str) -> bool:
        """A leg has made a token; whether it is the first one, so that its prompt no longer queues."""
        return self.queued_tokens.pop(request_of(leg_id), None) is not None

    def has_left(self, leg_id: str) -> None:
        """A leg has ended, which one of the next loads will show."""
        if leg_id in self.leaving:
            self.left[leg_id] = LOADS_TO_SHOW

    def take_load(self, load: worker_pb2.WorkerLoad) -> None:
        """The worker reported its load."""
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
        """The router's view.

        A running request's blocks are in the reservation already, so the larger counts; beside both, what is in use
        and what is not even sent.

        ``usual_tokens_per_s`` stands in for a prefill rate that the worker has not shown yet.
        """
        used = self.used_blocks
        return WorkerView(
            worker_id=self.member.worker_id,
            role=self.role,
            total_blocks=self.member.total_blocks,
            free_blocks=self.member.total_blocks - used,
            reserved_blocks=max(self._unsent_blocks(), sum(self.reserved.values()) - used),
            running_requests=self.running_requests,
            queued_tokens=sum(self.queued_tokens.values()),
            prefill_tokens_per_s=self.load.prefill_tokens_per_s or usual_tokens_per_s,
            domain=self.member.domain or self.member.node,
            accepting=self.connected and self.member.state == "ready" and not self.load.draining and not self.load.hung,
            peak_blocks=peak_blocks,
            revision=self.member.revision,
            spot=self.member.spot,
            refuses=refuses,
        )

    def _unsent_blocks(self) -> int:
        return sum(self.reserved[request_id] for request_id in self.unsent)

    def _has_leg(self, request_id: str) -> bool:
        return request_id in self._legs_of


def request_of(leg_id: str) -> str:
    """The request of a leg."""
    return leg_id.rsplit("/", 1)[0]
