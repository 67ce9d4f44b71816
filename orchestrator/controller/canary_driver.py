"""Runs canaries on the workers of a controller, and has those that compute wrongly removed.

What to run, who is wrong and what follows is decided by `orchestrator.policy.canary`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from baton.internal.v1 import registry_pb2
from cluster.engine.protocol import WeightSums
from cluster.errors import ServingError
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import ClusterSpec, Role
from orchestrator.controller import reference_file
from orchestrator.controller.canary_ask import ask, prompts_for
from orchestrator.controller.canary_log import CanaryLog
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.worker_pool import WorkerPool
from orchestrator.policy.canary import Canary
from orchestrator.policy.canary_record import AcceptLink, Action, RefuseLink, Run, TakeOut, Undecided, WorkerIdentity

log = logging.getLogger("baton.canary")

TICK_S = 1.0
POLL_S = 0.02
AT_ONCE = 8
"""Runs at a time, each on workers of its own."""
PUBLISH_EVERY_S = 10.0
WEIGHTS_S = 0.02
"""Of each run, for reading weights: the engine makes no step meanwhile."""
ADMISSION_WEIGHTS_S = 2.0
"""Before a worker serves; what is left is read later, a piece at a time."""


class Consequences(Protocol):
    """Where the findings go: what follows from them is not the driver's."""

    async def take_out(self, worker_id: str, sentence: str) -> None:
        """A worker that serves computes wrongly."""
        ...

    async def refuse_link(self, prefill_id: str, decode_id: str, sentence: str) -> None:
        """Two workers are right, and wrong together."""
        ...


class CanaryDriver:
    """Owns the canaries under way.

    Args:
        core: Decides which run is next and which worker is wrong.
        findings: Keeps what is found.
        pool: Whose workers.
        spec: The cluster.
        rpc: How the cluster's processes call each other.
    """

    def __init__(
        self, core: Canary, findings: CanaryLog, pool: WorkerPool, spec: ClusterSpec, rpc: InternalRpc
    ) -> None:
        self.core = core
        self._findings = findings
        self._pool = pool
        self._rpc = rpc
        self._settings = spec.health.canary
        self._model_path = spec.model.path
        self._consequences: Consequences | None = None
        self._busy: set[str] = set()
        self._admitting: set[str] = set()
        self._refused: dict[str, str] = {}
        self._sought_reference = False
        self._published_s = 0.0
        self._turn = 0

    def report_to(self, consequences: Consequences) -> None:
        """Have what is found about workers that serve go there."""
        self._consequences = consequences

    # --- before and while workers serve ----------------------------------------------------------------------

    async def admit(self, new: Sequence[str]) -> dict[str, str]:
        """Ask new workers before they serve; what is wrong with those that may not, in words."""
        if not self._settings.enabled:
            return {}
        self._admitting |= set(new)
        try:
            await self._find_reference(new)
            self._know()
            began_s = time.monotonic()
            runs = self.core.admission(new)
            await asyncio.gather(*(self._when_free(run) for run in runs if run.prefill_id is None))
            for run in runs:
                if run.prefill_id is not None and not self._refused.keys() & set(run.workers):
                    await self._when_free(run)
            while self.core.trouble(new):
                urgent = self.core.next_urgent(frozenset(self._busy))
                if urgent is None:
                    await asyncio.sleep(POLL_S)
                elif not self._refused.keys() & set(urgent.workers):
                    await self._execute(urgent)
            log.info("canaries of %s took %.2f s", ", ".join(new), time.monotonic() - began_s)
            return {worker_id: self._refused[worker_id] for worker_id in new if worker_id in self._refused}
        finally:
            self._admitting -= set(new)
            for worker_id in new:
                self._refused.pop(worker_id, None)

    def serve(self, worker_id: str) -> None:
        """A worker came into service."""
        if self._settings.enabled:
            self.core.serve(worker_id, time.monotonic())

    async def run(self) -> None:
        """Ask workers as their turn comes, until cancelled."""
        if not self._settings.enabled:
            return
        tasks: set[asyncio.Task[str]] = set()
        tick_s = min(TICK_S, self._settings.interval_s / 4)
        try:
            while True:
                self._know()
                while len(tasks) < AT_ONCE and (run := self.core.next_run(time.monotonic(), frozenset(self._busy))):
                    self._busy |= set(run.workers)
                    tasks.add(asyncio.create_task(self._execute(run)))
                if not tasks:
                    await asyncio.sleep(tick_s)
                    continue
                done, tasks = await asyncio.wait(tasks, timeout=tick_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not task.cancelled() and task.exception() is not None:
                        log.error("a canary failed", exc_info=task.exception())
        finally:
            for task in tasks:
                task.cancel()

    async def check(self) -> AsyncIterator[registry_pb2.CheckAnswersResponse]:
        """Ask every worker and every pair at once; what each came to."""
        self._know()
        for run in self.core.all_runs():
            began_s = time.monotonic()
            problem = await self._when_free(run)
            outcome = self.core.outcomes.get(run) if not problem else None
            row = registry_pb2.CheckAnswersResponse(
                worker_id=run.worker_id,
                prefill_id=run.prefill_id or "",
                duration_s=time.monotonic() - began_s,
                sentence=problem,
            )
            if outcome is not None:
                row.right, row.deviation_nat = outcome.right, outcome.nat
                row.prompt, row.against = outcome.prompt, outcome.against
                record = self.core.workers.get(run.worker_id)
                if not outcome.right and record is not None:
                    row.sentence = record.fault or "differs; it is asked again"
            yield row

    # --- one run ----------------------------------------------------------------------------------------------

    def _known_workers(self) -> dict[str, ManagedWorker]:
        return {
            worker.worker_id: worker
            for worker in self._pool.workers()
            if worker.handle is not None
            and worker.member.incarnation
            and not worker.draining
            and (worker.up or worker.worker_id in self._admitting)
        }

    def _know(self) -> None:
        self.core.know(
            WorkerIdentity(worker_id, Role(worker.role), worker.member.incarnation, worker.member.revision)
            for worker_id, worker in self._known_workers().items()
        )

    async def _find_reference(self, new: Sequence[str]) -> None:
        if self._sought_reference:
            return
        self._sought_reference = True
        member = self._known_workers()[new[0]].member
        self.core.reference = await asyncio.to_thread(reference_file.find, self._model_path, prompts_for(member))
        if self.core.reference is None:
            log.info("no reference for the model: workers are judged against one another (`baton model check`)")

    async def _when_free(self, run: Run) -> str:
        while self._busy & set(run.workers):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return await self._execute(run)

    async def _execute(self, run: Run) -> str:
        """Do a run and what follows from it; why there was no answer, or nothing."""
        known = self._known_workers()
        if not known.keys() >= set(run.workers):
            self._busy -= set(run.workers)
            return "it is gone, or drains"
        self._busy |= set(run.workers)
        began_s = time.monotonic()
        members = {worker_id: known[worker_id].member for worker_id in run.workers}
        incarnations = {worker_id: member.incarnation for worker_id, member in members.items()}
        self._turn += 1
        try:
            spent_s = await self._read_weights(known[run.worker_id]) if run.prefill_id is None else 0.0
            asked = await ask(run, members, self._rpc, turn=self._turn)
        except (ServingError, TimeoutError) as error:
            log.warning("no answer to the canary %s: %s", _name(run), error or "it took too long")
            self.core.unanswered(run, time.monotonic())
            return str(error) or "it took too long"
        finally:
            self._busy -= set(run.workers)
        self._know()
        now = self._known_workers()
        if any(key not in now or now[key].member.incarnation != value for key, value in incarnations.items()):
            return "it is gone, or drains"
        now_s = time.monotonic()
        cost_s = {key: value + (spent_s if key == run.worker_id else 0.0) for key, value in asked.cost_s.items()}
        self.core.spent(run, cost_s, began_s)
        if run.prefill_id is None:
            actions = self.core.alone(run.worker_id, asked.answers, now_s)
        else:
            actions = self.core.handoff(run.prefill_id, run.worker_id, asked.answers, now_s)
        outcome = self.core.outcomes[run]
        if not outcome.right:
            log.warning(
                "canary %s: off by %.3g nat from %s, prompt %s",
                _name(run),
                outcome.nat,
                outcome.against,
                outcome.prompt,
            )
        for action in actions:
            await self._act(action)
        if not self._admitting and (not outcome.right or now_s - self._published_s >= PUBLISH_EVERY_S):
            self._published_s = now_s
            await self._pool.publish()
        return ""

    async def _read_weights(self, worker: ManagedWorker) -> float:
        """Read some of the weights; the seconds that the engine stood for it."""
        worker_id, weights = worker.worker_id, self.core.weights
        admitting = worker_id in self._admitting
        spent_s = 0.0
        while True:
            budget_s = ADMISSION_WEIGHTS_S / 8 if admitting else WEIGHTS_S
            found = await self._pool.call(worker, "read_weights", weights.next_piece(worker_id), budget_s)
            if found is None:
                return spent_s
            sums = WeightSums(**found)
            weights.read(worker_id, sums)
            spent_s += sums.duration_s
            if not admitting or weights.complete(worker_id) or spent_s >= ADMISSION_WEIGHTS_S:
                return spent_s

    async def _act(self, action: Action) -> None:
        consequences, admitting = self._consequences, self._admitting
        match action:
            case TakeOut(worker_id, sentence):
                self._findings.note(worker_id, sentence)
                if worker_id in admitting:
                    self._refused[worker_id] = sentence
                elif consequences is not None:
                    await consequences.take_out(worker_id, sentence)
            case RefuseLink(prefill_id, decode_id, sentence):
                self._findings.note(decode_id, sentence)
                if consequences is not None:
                    await consequences.refuse_link(prefill_id, decode_id, sentence)
            case AcceptLink(prefill_id, decode_id):
                self._findings.note(decode_id, f"the link {prefill_id} -> {decode_id} gives right answers again")
                await self._pool.publish()
            case Undecided(worker_ids, sentence):
                for worker_id in worker_ids:
                    if worker_id in admitting:
                        self._refused[worker_id] = sentence
                self._findings.note(worker_ids[0], sentence)


def _name(run: Run) -> str:
    return run.worker_id if run.prefill_id is None else f"{run.prefill_id} -> {run.worker_id}"
