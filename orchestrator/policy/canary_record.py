"""What the canary knows and says: runs, outcomes, actions, and the records of workers and links. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.spec.config import Role
from orchestrator.policy.canary_probe import Answers


@dataclass(frozen=True, slots=True)
class Run:
    """Ask one worker alone, or, with ``prefill_id``, have it decode behind that one."""

    worker_id: str
    prefill_id: str | None = None

    @property
    def workers(self) -> tuple[str, ...]:
        """Those that spend time on it."""
        return (self.worker_id,) if self.prefill_id is None else (self.prefill_id, self.worker_id)

    @property
    def probe(self) -> str:
        """Name of the kind, for metrics."""
        return "alone" if self.prefill_id is None else "handoff"


@dataclass(frozen=True, slots=True)
class TakeOut:
    """A worker computes wrongly: no request may go on there, and none of its KV may be used."""

    worker_id: str
    sentence: str


@dataclass(frozen=True, slots=True)
class RefuseLink:
    """KV that goes this way arrives wrong, though both ends are right: pair them no more."""

    prefill_id: str
    decode_id: str
    sentence: str


@dataclass(frozen=True, slots=True)
class AcceptLink:
    """A refused link gives right answers again."""

    prefill_id: str
    decode_id: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """Workers differ, and nothing shows which of them is right."""

    worker_ids: tuple[str, ...]
    sentence: str


Action = TakeOut | RefuseLink | AcceptLink | Undecided


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to: the largest deviation, at which prompt, from what."""

    right: bool
    nat: float
    prompt: str
    against: str


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """A worker that can be asked. ``incarnation`` is new for every start of its engine."""

    worker_id: str
    role: Role
    incarnation: str
    revision: str = ""


@dataclass(slots=True)
class WorkerRecord:
    """What is known of one incarnation, and counts over all incarnations of the name."""

    identity: WorkerIdentity
    since_s: float = 0.0
    """When it came into service; time before that is not its users'."""
    serving: bool = False
    spent_s: float = 0.0
    """Time of it that canaries took since then."""
    costs_s: dict[Run, float] = field(default_factory=dict)
    """Least that each run took here: what it costs an engine that has nothing else to do."""
    last_s: dict[Run, float] = field(default_factory=dict)
    answers: Answers = field(default_factory=dict)
    earlier: Answers = field(default_factory=dict)
    strikes: int = 0
    runs: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    nat: float = 0.0
    """Largest deviation in its last run."""
    largest_right_nat: float = 0.0
    last_ok_s: float | None = None
    fault: str = ""
    """Sentence of its last fault, also of an incarnation that is gone."""

    def share(self, now_s: float) -> float:
        """Share of its time in service that canaries took."""
        return self.spent_s / (now_s - self.since_s) if self.serving and now_s > self.since_s else 0.0


@dataclass(slots=True)
class LinkRecord:
    """What is known of one link between two incarnations."""

    incarnations: tuple[str, str]
    right: bool | None = None
    at_s: float = 0.0
    bad_since_s: float = 0.0
    strikes: int = 0
    refused: bool = False
    nat: float = 0.0
    prompt: str = ""
