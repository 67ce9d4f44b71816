"""Whether the workers of one pod load, serve or hang. Pure: what was seen goes in, the answers to the probes come out.

A loading engine reads weights, compiles or computes: its processes' counters move. One that hangs moves none of them,
however long it may legitimately load, so the two are distinguished without knowing how long loading takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.policy.readiness import LOADED


@dataclass(frozen=True, slots=True)
class Member:
    """What the registry says of a worker. ``host`` is the address of its pod."""

    worker_id: str
    host: str
    state: str


@dataclass(frozen=True, slots=True)
class Engine:
    """A worker's processes, as the node sees them.

    ``activity`` grows as long as they do anything: seconds of CPU plus mebibytes read.
    """

    pid: int
    activity: float


@dataclass(frozen=True, slots=True)
class Answers:
    """Of the three probes; ``why`` says in words what is waited for or wrong."""

    started: bool
    ready: bool
    alive: bool
    why: str


MIN_ACTIVITY_PER_S = 0.002
"""An idle Python process with an event loop was seen to use less than this; one that loads, a hundred times as much."""


@dataclass(slots=True)
class NodeHealth:
    """Follows one pod.

    Args:
        host: Address of the pod.
        stall_timeout_s: Seconds without activity after which a loading engine counts as hung.

    Example:
        >>> health = NodeHealth("10.0.0.1", stall_timeout_s=60)
        >>> health.see([Engine(7, 1.0)], [], now_s=0.0).why
        'loading'
        >>> health.see([Engine(7, 1.0)], [], now_s=61.0).alive
        False
    """

    host: str
    stall_timeout_s: float
    _active: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By engine: activity when last it counted, and when."""

    def see(self, engines: Iterable[Engine], members: Iterable[Member], *, now_s: float, ray: bool = True) -> Answers:
        """Take what is seen at a time; answer the probes.

        Args:
            engines: Worker processes on this pod.
            members: All workers the registry knows.
            now_s: Monotonic seconds.
            ray: Whether the pod's Ray node runs.
        """
        engines, members = list(engines), list(members)
        if not ray:
            return Answers(False, False, False, "Ray has not joined")
        here = [member for member in members if member.host == self.host and member.state != "lost"]
        stalled = self._stalled_s(engines, now_s)
        loading = len(engines) > len(here)
        if loading and stalled and min(stalled.values()) >= self.stall_timeout_s:
            return Answers(False, False, False, f"an engine has done nothing for {min(stalled.values()):.0f} s: hung")
        if loading:
            return Answers(False, False, True, "loading")
        if not here:
            # A free pod is ready once the cluster is: its place is for a replacement or for growth.
            complete = bool(members) and all(member.state in (*LOADED, "draining") for member in members)
            return Answers(complete, complete, True, "free" if complete else "waiting for a worker")
        waiting = [member.worker_id for member in here if member.state not in LOADED]
        if waiting:
            drains = all(member.state == "draining" for member in here if member.worker_id in waiting)
            why = "draining" if drains else f"{', '.join(waiting)}: pairs have not all completed their handshake"
            return Answers(True, False, True, why)
        return Answers(True, True, True, "ready")

    def _stalled_s(self, engines: list[Engine], now_s: float) -> Mapping[int, float]:
        """Seconds since each engine last did something."""
        for pid in set(self._active) - {engine.pid for engine in engines}:
            del self._active[pid]
        for engine in engines:
            activity, since_s = self._active.get(engine.pid, (-1.0, now_s))
            if activity < 0 or engine.activity - activity > MIN_ACTIVITY_PER_S * max(1.0, now_s - since_s):
                self._active[engine.pid] = (engine.activity, now_s)
        return {pid: now_s - since_s for pid, (_, since_s) in self._active.items()}
