"""When each worker and each link answers a canary, and what follows from the answers. Pure: no clock, no RPC.

`Canary` gets workers, time and the results of runs; it says what to run next and what to do. A run is a
worker alone, or a link: prefill on one worker, the rest on another. Each failure is confirmed by a second run before
anything is done, since a particle's hit on one product is no broken card; a confirmed one takes the worker out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from cluster.spec.config import Role
from orchestrator.policy.canary_blame import Fault, Link, judge, judge_links
from orchestrator.policy.canary_probe import Answers, farthest
from orchestrator.policy.canary_record import (
    AcceptLink,
    Action,
    LinkRecord,
    Outcome,
    RefuseLink,
    Run,
    TakeOut,
    Undecided,
    WorkerIdentity,
    WorkerRecord,
)
from orchestrator.policy.canary_weights import WeightRecord

CONFIRMATIONS = 2
"""Failing runs in a row that count as a fault."""
ADMISSION_LINKS = 2
"""Of each new worker, tried before it serves; the others have their turn later."""
VOTERS = 6
"""Other workers whose answers one is compared with where there is no reference."""
LINKS_TO_TELL = 2
"""Other links of each end that are tried when one is bad, to tell link and ends apart."""


class Canary:
    """The state of all canaries of one pairing domain.

    Args:
        interval_s: Seconds after which each worker and each link is asked again, unless that costs too much.
        max_share: Most of a worker's time in service that canaries may take.
        tolerance_nat: How far right answers may be apart.
        reference: Right answers, where they are known.
    """

    def __init__(
        self, *, interval_s: float, max_share: float, tolerance_nat: float, reference: Answers | None = None
    ) -> None:
        self._interval_s = interval_s
        self._max_share = max_share
        self.tolerance_nat = tolerance_nat
        self.reference = reference
        self.workers: dict[str, WorkerRecord] = {}
        self.weights = WeightRecord()
        self._links: dict[Link, LinkRecord] = {}
        self._urgent: deque[Run] = deque()
        self.outcomes: dict[Run, Outcome] = {}
        self._present: set[str] = set()
        self._suspects: set[str] = set()
        """Prefill workers whose partner was replaced for a bad link."""

    # --- who there is ---------------------------------------------------------------------------------------

    def know(self, identities: Iterable[WorkerIdentity]) -> None:
        """All workers that can be asked at present."""
        present = {identity.worker_id: identity for identity in identities}
        for worker_id, identity in present.items():
            old = self.workers.get(worker_id)
            if old is None or old.identity.incarnation != identity.incarnation:
                new = WorkerRecord(identity)
                if old is not None:
                    new.runs, new.failures, new.fault = old.runs, old.failures, old.fault
                    new.largest_right_nat = old.largest_right_nat
                self.workers[worker_id] = new
                self.weights.forget(worker_id)
            else:
                old.identity = identity
        self._present = set(present)
        for worker_id in self.workers.keys() - present.keys():
            self.weights.forget(worker_id)
            record = self.workers[worker_id]
            record.answers, record.serving = {}, False
        self._links = {
            link: record
            for link, record in self._links.items()
            if all(worker_id in present for worker_id in link) and record.incarnations == self._incarnations(link)
        }
        self._urgent = deque(run for run in self._urgent if all(each in present for each in run.workers))

    def serve(self, worker_id: str, now_s: float) -> None:
        """The worker came into service."""
        record = self.workers[worker_id]
        if not record.serving:
            record.serving, record.since_s, record.spent_s = True, now_s, 0.0
            record.last_s = dict.fromkeys(self._runs_of(worker_id), now_s)

    def admission(self, new: Iterable[str]) -> list[Run]:
        """What to run before new workers serve: each alone, then some links of each."""
        fresh = set(new)
        alone = [Run(worker_id) for worker_id in sorted(fresh)]
        links: list[Run] = []
        tried = dict.fromkeys(fresh, 0)
        for link in self._pairs():
            if any(tried.get(worker_id, ADMISSION_LINKS) < ADMISSION_LINKS for worker_id in link):
                links.append(Run(link[1], link[0]))
                for worker_id in fresh.intersection(link):
                    tried[worker_id] += 1
        return alone + links

    def all_runs(self) -> list[Run]:
        """Every worker alone, then every link."""
        return [*map(Run, sorted(self._present)), *(Run(decode, prefill) for prefill, decode in self._pairs())]

    def _incarnations(self, link: Link) -> tuple[str, str]:
        return self.workers[link[0]].identity.incarnation, self.workers[link[1]].identity.incarnation

    def _pairs(self) -> list[Link]:
        identities = [self.workers[worker_id].identity for worker_id in sorted(self._present)]
        return [
            (prefill.worker_id, decode.worker_id)
            for prefill in identities
            for decode in identities
            if (prefill.role, decode.role) == (Role.PREFILL, Role.DECODE) and prefill.revision == decode.revision
        ]

    def _runs_of(self, worker_id: str) -> list[Run]:
        return [
            Run(worker_id),
            *(Run(decode, prefill) for prefill, decode in self._pairs() if worker_id in (prefill, decode)),
        ]

    # --- when -----------------------------------------------------------------------------------------------

    def next_run(self, now_s: float, busy: frozenset[str] = frozenset()) -> Run | None:
        """What to run at this time on workers that are not ``busy`` with a canary, or None."""
        urgent = self.next_urgent(busy)
        if urgent is not None:
            return urgent
        best: tuple[float, Run] | None = None
        for run in self._scheduled():
            if busy & set(run.workers):
                continue
            due_s = max(self._due_s(run, worker_id) for worker_id in run.workers)
            if due_s <= now_s and (best is None or due_s < best[0]):
                best = (due_s, run)
        return None if best is None else best[1]

    def next_urgent(self, busy: frozenset[str] = frozenset()) -> Run | None:
        """A run that confirms or explains a failure, or None."""
        for index, run in enumerate(self._urgent):
            if not busy & set(run.workers):
                del self._urgent[index]
                return run
        return None

    def _scheduled(self) -> list[Run]:
        serving = [worker_id for worker_id in sorted(self._present) if self.workers[worker_id].serving]
        links = [Run(decode, prefill) for prefill, decode in self._pairs()]
        return [*map(Run, serving), *(run for run in links if all(self.workers[each].serving for each in run.workers))]

    def _due_s(self, run: Run, worker_id: str) -> float:
        """When the interval is over and the worker has served long enough to pay for what it cost, and will cost."""
        record = self.workers[worker_id]
        # What a link that was never tried costs is not known; not more than the dearest run so far.
        cost_s = record.costs_s.get(run) or max(record.costs_s.values(), default=0.0)
        return max(
            record.last_s.get(run, record.since_s) + self._interval_s,
            record.since_s + (record.spent_s + cost_s) / self._max_share,
        )

    def unanswered(self, run: Run, now_s: float) -> None:
        """A run came to nothing: whether a worker lives is for others to find out."""
        for worker_id in run.workers:
            if worker_id in self.workers:
                self.workers[worker_id].last_s[run] = now_s

    def spent(self, run: Run, cost_s: Mapping[str, float], now_s: float) -> None:
        """A run began at ``now_s`` and took so long on each worker; counted is the least that it ever took there."""
        for worker_id, took_s in cost_s.items():
            record = self.workers.get(worker_id)
            if record is None:
                continue
            least_s = record.costs_s[run] = min(took_s, record.costs_s.get(run, took_s))
            record.last_s[run] = now_s
            if record.serving:
                record.spent_s += least_s

    # --- what it came to ------------------------------------------------------------------------------------

    def alone(self, worker_id: str, answers: Answers, now_s: float) -> list[Action]:
        """A worker answered alone."""
        record = self.workers[worker_id]
        record.runs += 1
        record.answers = answers
        others = [key for key in sorted(self._present - {worker_id}) if self.workers[key].answers]
        voters = [] if self.reference is not None else others[:VOTERS]
        known = {key: self.workers[key].answers for key in (worker_id, *voters)}
        earlier = {key: self.workers[key].earlier for key in known if self.workers[key].serving}
        blame = judge(known, tolerance_nat=self.tolerance_nat, reference=self.reference, earlier=earlier)
        for other in blame.wrong.keys() - {worker_id}:
            # One more answer made a majority against it.
            if not self.workers[other].strikes:
                self._again(Run(other))
        damage = self.weights.damage(worker_id)
        fault = blame.wrong.get(worker_id)
        nat, prompt, against = self._nearest(worker_id, known, earlier)
        record.nat = fault.nat if fault is not None else nat
        right = fault is None and not damage and worker_id not in blame.undecided
        self.outcomes[Run(worker_id)] = Outcome(right, record.nat, fault.prompt if fault else prompt, against)
        if fault is None and not damage and worker_id not in blame.undecided:
            record.strikes = 0
            record.last_ok_s = now_s
            record.largest_right_nat = max(record.largest_right_nat, nat)
            record.earlier = record.earlier or answers
            return []
        probe = "weights" if damage and fault is None else "alone"
        record.failures[probe] = record.failures.get(probe, 0) + 1
        record.strikes += 1
        if record.strikes < CONFIRMATIONS:
            self._again(Run(worker_id))
            return []
        if fault is not None or damage:
            record.fault = _sentence(worker_id, fault, damage, self.tolerance_nat)
            return [TakeOut(worker_id, record.fault)]
        sentence = (
            f"{' and '.join(blame.undecided)} answer the same prompts differently, and nothing shows which is right: "
            "`baton model check` writes a reference that would"
        )
        record.fault = sentence
        return [Undecided(blame.undecided, sentence)]

    def _nearest(
        self, worker_id: str, known: Mapping[str, Answers], earlier: Mapping[str, Answers]
    ) -> tuple[float, str, str]:
        """How far a worker's answers are from what they are judged by: the nearest where that is other workers."""
        answers = known[worker_id]
        if self.reference is not None:
            return *farthest(answers, self.reference), "the model's reference"
        others = [(*farthest(answers, known[key]), key) for key in known if key != worker_id]
        if others:
            return min(others)
        return *farthest(answers, earlier.get(worker_id, {})), "earlier answers"

    def handoff(self, prefill_id: str, decode_id: str, answers: Answers, now_s: float) -> list[Action]:
        """A decode worker answered behind a prefill worker."""
        link = (prefill_id, decode_id)
        record = self._links.setdefault(link, LinkRecord(self._incarnations(link)))
        for worker_id in link:
            self.workers[worker_id].runs += 1
        expected = self._expected(link)
        nat, prompt = farthest(answers, expected) if expected else (0.0, "")
        against = "the model's reference" if self.reference is not None else "answers without a handoff"
        self.outcomes[Run(decode_id, prefill_id)] = Outcome(nat <= self.tolerance_nat, nat, prompt, against)
        self.workers[decode_id].nat = nat
        record.at_s = now_s
        if nat <= self.tolerance_nat:
            record.right, record.strikes = True, 0
            self.workers[decode_id].largest_right_nat = max(self.workers[decode_id].largest_right_nat, nat)
            if record.refused:
                record.refused = False
                return [AcceptLink(prefill_id, decode_id)]
            return []
        record.right, record.nat, record.prompt = False, nat, prompt
        record.strikes += 1
        if record.strikes == 1:
            record.bad_since_s = now_s
        for worker_id in link:
            failures = self.workers[worker_id].failures
            failures["handoff"] = failures.get("handoff", 0) + 1
        if record.refused:
            return []
        if record.strikes < CONFIRMATIONS:
            # First whether the ends are right alone, then which other links are.
            for run in (Run(prefill_id), Run(decode_id), *self._others(link), Run(decode_id, prefill_id)):
                self._again(run)
            return []
        if any(self.workers[worker_id].strikes for worker_id in link):
            return []  # an end is wrong alone; that explains the link
        return self._blame(link, record)

    def _blame(self, link: Link, record: LinkRecord) -> list[Action]:
        # What links were before says nothing of what broke since.
        known = {
            key: each.right
            for key, each in self._links.items()
            if each.right is not None and not each.refused and each.at_s >= record.bad_since_s
        }
        blame = judge_links(known, frozenset(self._suspects))
        far = f"{record.nat:.3g} nat" if record.nat < float("inf") else "not a number"
        said = f"answers behind the handoff {link[0]} -> {link[1]} are off by {far} (prompt {record.prompt})"
        for worker_id in link:
            if worker_id not in blame.workers:
                continue
            if worker_id == link[1]:
                self._suspects.add(link[0])
                why = "it is right alone, and the other end is right with others or reads nothing"
            else:
                why = "its partner is right with others, or was replaced for this before"
            self.workers[worker_id].fault = f"{worker_id} gives wrong KV: {said}; {why}"
            return [TakeOut(worker_id, self.workers[worker_id].fault)]
        if link in blame.links:
            record.refused = True
            return [
                RefuseLink(*link, f"the link {link[0]} -> {link[1]} is refused: {said}, both are right with others")
            ]
        return []

    def _expected(self, link: Link) -> Answers:
        if self.reference is not None:
            return self.reference
        prefill, decode = (self.workers[worker_id] for worker_id in link)
        return {**prefill.answers, **decode.answers}

    def _others(self, link: Link) -> list[Run]:
        """Links that share one end with this one, those of unknown outcome first."""
        pairs = [pair for pair in self._pairs() if pair != link]
        same_prefill = [pair for pair in pairs if pair[0] == link[0]][:LINKS_TO_TELL]
        same_decode = [pair for pair in pairs if pair[1] == link[1]][:LINKS_TO_TELL]
        return [Run(decode, prefill) for prefill, decode in (*same_prefill, *same_decode)]

    def _again(self, run: Run) -> None:
        if run not in self._urgent:
            self._urgent.append(run)

    @property
    def refused(self) -> list[Link]:
        """Links that may not be used."""
        return [link for link, record in self._links.items() if record.refused]

    def trouble(self, worker_ids: Sequence[str]) -> bool:
        """Whether a run that concerns one of these is still to be confirmed."""
        return any(set(run.workers) & set(worker_ids) for run in self._urgent)


def _sentence(worker_id: str, fault: Fault | None, damage: str, tolerance_nat: float) -> str:
    if fault is None:
        return f"{worker_id} has damaged weights: {damage}"
    far = f"off by {fault.nat:.3g} nat" if fault.nat < float("inf") else "not numbers"
    tail = f"; its weights are damaged, too: {damage}" if damage else ""
    return (
        f"{worker_id} computes wrongly: its log-probabilities for prompt {fault.prompt} are {far} from {fault.against} "
        f"(rounding explains {tolerance_nat:g}){tail}"
    )
