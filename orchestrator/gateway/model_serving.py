"""One model served: its fleet and placer, the tasks beside them, and the runs between them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from baton.internal.v1 import registry_pb2
from baton.v1 import cluster_pb2
from cluster.errors import NoReadyWorker
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import ClusterSpec, Role
from orchestrator.gateway.choice_figures import ChoiceFigures
from orchestrator.gateway.choice_output import ChoiceOutput
from orchestrator.gateway.choice_run import ChoiceRun
from orchestrator.gateway.fleet import Fleet
from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.journal import RequestJournal
from orchestrator.gateway.metrics import ModelMetrics
from orchestrator.gateway.pace import Pace
from orchestrator.gateway.peaks import Peaks
from orchestrator.gateway.placer import Placer
from orchestrator.gateway.preemption import Preemption
from orchestrator.gateway.request_moves import RequestMoves
from orchestrator.gateway.siblings import PrefixSharing, SharedPrompt, Sibling
from orchestrator.gateway.tokenization import Tokenization
from orchestrator.gateway.traffic import Traffic
from orchestrator.policy.prefix_index import block_hashes
from orchestrator.request.lifecycle import Displaced, WorkerLost
from orchestrator.request.model_front import ModelFront
from orchestrator.request.output_text import LineEnds
from orchestrator.request.prepare import PreparedRequest


class ModelServing:
    """Owns the runs of one model; composes what serves them, and passes on what one part reports to another.

    Args:
        spec: The cluster as it is for this model.
        front: The model's tokeniser, template and limits.
        metrics: The model's.
    """

    def __init__(self, spec: ClusterSpec, front: ModelFront, metrics: ModelMetrics) -> None:
        self.spec = spec
        self.front = front
        self.runs: dict[int, ChoiceRun] = {}
        """Every choice that is queued or runs, by number."""
        self.counts: Counter[str] = Counter()
        """Requests that have finished, failed or were rejected."""
        self.metrics = metrics
        self.traffic = Traffic()
        self.journal = RequestJournal(front.name, self.traffic, self.runs)
        self.tokenization = Tokenization(front, spec.model.reasoning)
        self._numbers = itertools.count()
        self.reasoning = spec.model.reasoning
        self.pace = Pace()
        self._retry_budget = spec.transfer.retry_budget
        self._line_ends = LineEnds(front.tokenizer)
        block_size_tokens = next(pool.engine.block_size_tokens for _, pool in spec.pools.items())
        scaling = spec.autoscaling
        self.forecast = OutputForecast(spec.gateway.forecast_osl_tokens, block_size_tokens)
        self._sharing = PrefixSharing(lambda result: metrics.strategies.siblings.labels(result).inc())
        self.fleet = Fleet(
            self,
            silence_timeout_s=spec.health.silence_timeout_s,
            ticket_deadline_s=spec.transfer.ticket_deadline_s,
            cost=spec.cost,
            rpc=InternalRpc(spec.security),
        )
        self.moves = RequestMoves(
            self.fleet,
            self.runs,
            self.forecast,
            metrics,
            moves_at_once=spec.drain.moves_at_once,
            rebalances=scaling.enabled,
        )
        self.preemption = Preemption(
            self.fleet,
            self.runs,
            self.forecast,
            is_moving=self.moves.is_moving,
            local_prefill_below_tokens=spec.transfer.local_prefill_below_tokens,
            on_preempted=metrics.preempted.inc,
        )
        self.placer = Placer(
            self.fleet,
            self.forecast,
            self.preemption,
            spec.transfer,
            spec.gateway.max_queued_requests,
            lambda tenant: spec.tenant(tenant).weight,
            peaks=Peaks(self.fleet, self.runs, self.forecast) if scaling.enabled else None,
            patience_s=scaling.preempt_after_s if scaling.enabled else None,
        )

    def shared_prompt(self, request: PreparedRequest) -> SharedPrompt:
        """What the choices of a request share; of one that is alone, nothing."""
        name = f"{request.request_id}.{next(self._numbers):x}"
        shared_tokens = len(request.prompt_ids) if request.choices > 1 else 1
        return SharedPrompt(name, shared_tokens, self.forecast.block_size_tokens, self._sharing)

    def new_run(
        self, request: PreparedRequest, index: int, prompt: SharedPrompt, received_s: float, received_unix_s: float
    ) -> ChoiceRun:
        """A choice of a request that came at this time, on the monotonic and on the wall clock. Iterating starts it."""
        return ChoiceRun(
            request,
            index,
            next(self._numbers),
            block_hashes(request.prompt_ids, self.forecast.block_size_tokens),
            self._retry_budget,
            ChoiceOutput(request, index, self.front, self.reasoning, self._line_ends),
            self.fleet,
            self,
            ChoiceFigures(self.metrics, index, received_s, received_unix_s),
            Sibling(prompt),
        )

    def usd_per_request_s(self, runs: Sequence[ChoiceRun]) -> float:
        """Price of a second for one of these runs, or for one that is yet to start: the highest there is."""
        worker_ids = {run.life.decode_id for run in runs if run.life.decode_id is not None}
        holders = [key for key, worker in self.fleet.workers.items() if worker.role is not Role.PREFILL]
        return max((self.fleet.usd_per_request_s(key) for key in worker_ids or holders), default=0.0)

    def states(self) -> Counter[str]:
        """Runs by the state of their lifecycle."""
        return Counter(run.life.state.value for run in self.runs.values())

    def update_members(
        self,
        members: Sequence[registry_pb2.Member],
        pairs: Sequence[registry_pb2.Pair],
        *,
        starting_decode_workers: int,
    ) -> None:
        """Take the model's part of a membership from the registry."""
        self.preemption.starting = starting_decode_workers > 0
        self.fleet.update(members, pairs)

    def status(self) -> cluster_pb2.ModelStatus:
        """Its requests: those it has, and what the controller makes of them."""
        states = self.states()
        return cluster_pb2.ModelStatus(
            name=self.front.name,
            requests=cluster_pb2.RequestCounts(
                queued=states["queued"],
                prefilling=states["prefilling"],
                decoding=states["decoding"],
                finished=self.counts["finished"],
                failed=self.counts["failed"],
                rejected=self.counts["rejected"],
                preempted=self.preemption.preempted_requests,
            ),
            scaling=self.journal.scaling,
            lengths=self.traffic.lengths(),
        )

    async def close(self) -> None:
        """End all links; streams still open end with an error."""
        await self.moves.close()
        await self.fleet.close()
        for run in list(self.runs.values()):  # those that lost their workers would wait for others
            run.post(Displaced(NoReadyWorker(f"{self.front.name} is served no more")))

    # --- what a run reports (`RunOwner`) ----------------------------------------------------------------------

    def needs_workers(self, run: ChoiceRun, avoid: frozenset[str]) -> None:
        """Find workers for a run, the first time or again."""
        # A further choice of a request that is streaming already is not turned away.
        again = run.number in self.runs or run.index > 0
        self.runs[run.number] = run
        self.placer.enqueue(run, avoid, again=again)

    def over(self, run: ChoiceRun) -> None:
        """A run has ended."""
        self.runs.pop(run.number, None)
        self.placer.forget(run)

    # --- what the fleet reports (`FleetOwner`) ----------------------------------------------------------------

    def fleet_changed(self) -> None:
        """Workers came, went, freed KV or changed state."""
        self.placer.place_waiting()
        self.moves.wake()

    def kv_freed(self) -> None:
        """A reservation of KV was given back."""
        self.placer.place_waiting()

    def prompt_read(self) -> None:
        """A worker has read a prompt."""
        self.placer.prompt_read()

    def worker_lost(self, worker_id: str) -> None:
        """A worker is gone, and all legs on it."""
        for run in list(self.runs.values()):
            run.post(WorkerLost(worker_id))
