"""The gateway: takes requests, places them, and streams back what the workers make. Knows no Ray.

It owns the ledger of every request it serves. Admission, routing and the lifecycle are pure and live elsewhere; this
file feeds them and does what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

from baton.internal.v1 import registry_pb2, worker_pb2
from baton.v1 import cluster_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import NoReadyWorker, RequestRejected, ServingError, TicketRefused, WorkerDied
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import ClusterSpec, Role, Transport
from kv_transfer import ticket as tickets
from kv_transfer.ticket import HandoffTicket
from orchestrator.gateway.choice_run import ChoiceRun
from orchestrator.gateway.drainer import Drainer
from orchestrator.gateway.entry import Entry
from orchestrator.gateway.fleet import KNOWN_STATES, Fleet, FleetWorker
from orchestrator.gateway.journal import RequestJournal, report
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.peaks import Peaks
from orchestrator.gateway.preemption import Preemption
from orchestrator.policy.admission import AdmissionQueue
from orchestrator.policy.length import RecentLengths
from orchestrator.policy.router import Placement, RequestView, Wait, is_batch, place
from orchestrator.request.lifecycle import Displaced, LegFailed, StartLeg, WorkerLost
from orchestrator.request.model_front import ModelFront
from orchestrator.request.output_text import LineEnds
from orchestrator.request.prepare import PreparedRequest, prepare
from workers.worker_link import ticket_message

log = logging.getLogger("baton.gateway")

OFF_LOOP_CHARS = 20_000
"""Prompts longer than this are tokenised in a thread: at some 1 MB/s they would hold up every other stream."""
FORECAST_QUANTILE = 0.9

OutputCallback = Callable[[StartLeg, worker_pb2.LegOutput], None]


class Gateway:
    """Serves requests over the workers of one cluster; implements `interface.backend.Backend`."""

    def __init__(self, spec: ClusterSpec, front: ModelFront) -> None:
        self.spec = spec
        self.front = front
        self.metrics = GatewayMetrics(spec.slo)
        self.fleet = Fleet(
            on_change=self._fleet_changed,
            on_lost=self._worker_lost,
            silence_timeout_s=spec.health.silence_timeout_s,
            rpc=InternalRpc(spec.security),
        )
        self._drainer = Drainer(self)
        self.line_ends = LineEnds(front.tokenizer)
        self.block_size_tokens = next(pool.engine.block_size_tokens for _, pool in spec.pools.items())
        self._queue: AdmissionQueue[ChoiceRun] = AdmissionQueue(
            spec.gateway.max_queued_requests, lambda tenant: spec.tenant(tenant).weight
        )
        self._entry = Entry(spec)
        self._avoid: dict[int, frozenset[str]] = {}
        self._lengths = RecentLengths(spec.gateway.forecast_osl_tokens)
        self.journal = RequestJournal()
        self._peaks = Peaks()
        self._preemption = Preemption(self)
        self._runs: dict[int, ChoiceRun] = {}
        self._numbers = itertools.count()
        self._started_s = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._pairs: dict[tuple[str, str], cluster_pb2.PairStatus] = {}

    # --- Backend --------------------------------------------------------------------------------------------

    async def generate(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse]:
        """Stream one request; closing the iterator cancels it.

        Raises:
            ServingError: the request is bad, was refused, or failed.
        """
        received_s, received_unix_s = time.monotonic(), time.time()
        try:
            with self._entry.enter(request.tenant):
                prepared = await self._prepare(request, received_s)
                runs = [
                    ChoiceRun(self, prepared, index, received_s, received_unix_s) for index in range(prepared.choices)
                ]
                self.journal.came(runs, received_s)
                async with contextlib.aclosing(self._charged(prepared, runs)) as stream:
                    async for message in stream:
                        yield message
        except ServingError as error:
            if isinstance(error, RequestRejected):
                self._counts["rejected"] += 1
                self.metrics.rejected.labels(error.reason).inc()
            else:
                self._counts["failed"] += 1
                self.metrics.failed.labels(type(error).__name__).inc()
            raise
        self._counts["finished"] += 1
        if self.spec.security.log_text:
            self._log_text(prepared, runs)
        yield pb.GenerateResponse(finished=self._finished(prepared, runs))

    def models(self) -> list[pb.Model]:
        """The one model served."""
        return [
            pb.Model(
                name=self.front.name,
                max_model_len_tokens=self.front.max_model_len_tokens,
                reasoning=self.front.markers is not None,
            )
        ]

    def status(self) -> cluster_pb2.Status:
        """Workers, pairs and requests as this gateway sees them."""
        states = Counter(run.life.state.value for run in self._runs.values())
        status = cluster_pb2.Status(
            cluster=self.spec.name,
            model=self.front.name,
            version=importlib.metadata.version("baton-inference"),
            uptime_s=time.monotonic() - self._started_s,
            requests=cluster_pb2.RequestCounts(
                queued=states["queued"],
                prefilling=states["prefilling"],
                decoding=states["decoding"],
                finished=self._counts["finished"],
                failed=self._counts["failed"],
                rejected=self._counts["rejected"],
                preempted=self._counts["preempted"],
            ),
        )
        for worker in sorted(self.fleet.workers.values(), key=lambda w: (w.member.role, w.member.worker_id)):
            status.workers.append(_worker_status(worker))
        for (prefill, decode), pair in sorted(self.fleet.pairs.items()):
            row = status.pairs.add()
            row.CopyFrom(self._pair_status(prefill, decode))
            row.transport, row.handshake_s, row.refused = pair.transport, pair.handshake_s, pair.refused
        if self.journal.scaling is not None:
            status.scaling.CopyFrom(self.journal.scaling)
        status.lengths.extend(self.journal.lengths())
        if self.metrics.canary.report is not None:
            status.canary.CopyFrom(self.metrics.canary.report)
        return status

    def refresh_gauges(self) -> None:
        """Set the gauges to the present."""
        states = Counter(run.life.state.value for run in self._runs.values())
        for state in ("queued", "prefilling", "decoding"):
            self.metrics.in_flight.labels(state).set(states[state])
        pool_states: Counter[tuple[str, str]] = Counter()
        for worker in self.fleet.workers.values():
            labels = (worker.member.role, worker.member.worker_id)
            self.metrics.kv_used.labels(*labels).set(worker.load.used_blocks / max(1, worker.member.total_blocks))
            self.metrics.kv_reserved.labels(*labels).set(sum(worker.reserved.values()))
            pool_states[worker.member.role, worker.member.state] += 1
        for role in Role:
            for state in KNOWN_STATES:
                self.metrics.workers.labels(role.value, state).set(pool_states[role.value, state])
        transports = Counter(pair.transport for pair in self.fleet.pairs.values())
        for transport in Transport:
            self.metrics.pairs.labels(transport.value).set(transports[transport.value])

    # --- membership -----------------------------------------------------------------------------------------

    def update_members(self, message: registry_pb2.WatchMembersResponse) -> None:
        """Take a membership from the registry."""
        self._preemption.growing = message.starting_decode_workers > 0
        self.metrics.canary.report = message.canary if message.HasField("canary") else None
        self.fleet.update(message.members, message.pairs)

    def _fleet_changed(self) -> None:
        self.place_waiting()
        self._drainer.nudge()

    def _worker_lost(self, worker_id: str) -> None:
        for run in list(self._runs.values()):
            run.post(WorkerLost(worker_id))

    async def report_to(self, controller: str) -> None:
        """Tell the controller at this address what requests there are, until cancelled."""
        interval_s = self.spec.autoscaling.report_interval_s
        await report(self.journal, self.runs, controller, interval_s, InternalRpc(self.spec.security))

    async def close(self) -> None:
        """End all links; streams still open end with an error."""
        await self._drainer.close()
        await self.fleet.close()

    # --- one request ----------------------------------------------------------------------------------------

    async def _charged(self, prepared: PreparedRequest, runs: list[ChoiceRun]) -> AsyncGenerator[pb.GenerateResponse]:
        """Run the choices; the tenant is charged what is expected, and in the end what it was."""
        first = runs[0]
        expected_tokens = self._cost_tokens(first)
        self._entry.charge(prepared.tenant, expected_tokens)
        try:
            async with contextlib.aclosing(first.run() if len(runs) == 1 else self._fan_out(runs)) as stream:
                async for message in stream:
                    yield message
        finally:
            used_tokens = sum(len(run.life.output_ids) for run in runs)
            if first.charged_tokens:
                used_tokens += len(prepared.prompt_ids)
                more_tokens = used_tokens - first.charged_tokens
                self._queue.settle(prepared.tenant, more_tokens, priority=prepared.priority)
            self._entry.charge(prepared.tenant, used_tokens - expected_tokens)

    def _log_text(self, prepared: PreparedRequest, runs: list[ChoiceRun]) -> None:
        def text(ids: Sequence[int]) -> str:
            decoded: str = self.front.tokenizer.decode(list(ids), skip_special_tokens=False)
            return decoded

        answers = [text(run.life.output_ids) for run in runs]
        log.info("request %s: prompt %r, output %r", prepared.request_id, text(prepared.prompt_ids), answers)

    def _forecast(self, request: PreparedRequest) -> int:
        """Output tokens that a choice is expected to have."""
        return min(request.max_tokens, self._lengths.quantile(FORECAST_QUANTILE))

    async def _prepare(self, request: pb.GenerateRequest, now_s: float) -> PreparedRequest:
        work = partial(prepare, request, self.front, self.spec, now_s=now_s, severity=self.journal.severity)
        return await asyncio.to_thread(work) if request.ByteSize() > OFF_LOOP_CHARS else work()

    async def _fan_out(self, runs: list[ChoiceRun]) -> AsyncGenerator[pb.GenerateResponse]:
        """Run several choices. The first one prefills; the others then find the prompt in the prefix cache."""
        outputs: asyncio.Queue[pb.GenerateResponse | BaseException | None] = asyncio.Queue(maxsize=64)

        async def pump(run: ChoiceRun) -> None:
            try:
                if run is not runs[0]:
                    await runs[0].prefilled.wait()
                async with contextlib.aclosing(run.run()) as stream:
                    async for message in stream:
                        await outputs.put(message)
                await outputs.put(None)
            except Exception as error:  # of any kind, or the reader below would wait for ever
                await outputs.put(error)

        tasks = [asyncio.create_task(pump(run)) for run in runs]
        try:
            left = len(tasks)
            while left:
                item = await outputs.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, prepared: PreparedRequest, runs: list[ChoiceRun]) -> pb.Finished:
        usages = [run.summary.usage for run in runs]
        for usage, run in zip(usages, runs, strict=True):
            self._lengths.record(usage.reasoning_tokens + usage.answer_tokens)
            self.metrics.finished.labels(pb.FinishReason.Name(run.summary.finish_reason)).inc()
            if run.summary.retries:
                self.metrics.retries.inc(run.summary.retries)
            self.journal.ended(run)
        return pb.Finished(
            request_id=prepared.request_id,
            usage=pb.Usage(
                prompt_tokens=usages[0].prompt_tokens,
                cached_tokens=usages[0].cached_tokens,
                reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
                answer_tokens=sum(usage.answer_tokens for usage in usages),
                reduced_budget_tokens=prepared.thinking_budget_tokens or 0 if prepared.reduced_budget else None,
                clipped_traces=sum(usage.clipped_traces for usage in usages),
            ),
            choices=[run.summary for run in runs],
            cost_usd=sum(run.cost_usd for run in runs),
        )

    # --- placement ------------------------------------------------------------------------------------------

    def ask_placement(self, run: ChoiceRun, avoid: frozenset[str]) -> None:
        """Place a run at once if nobody waits before it, else queue it.

        Raises:
            RequestRejected: the queue is full.
            NoReadyWorker: the cluster has no worker at all that could ever take it.
        """
        # A further choice of a request that is streaming already is not turned away.
        again = id(run) in self._runs or run.index > 0
        if not again and not self.fleet.workers:
            raise NoReadyWorker("no worker is ready yet; retry in a moment")
        self._avoid[id(run)] = avoid
        request, cost_tokens = run.request, self._cost_tokens(run)
        first = self._queue.goes_first(request.priority) if not run.waits_for_room else not len(self._queue)
        if first and not isinstance(self._try_place(run), Wait):
            if not again:
                self._queue.charge(request.tenant, cost_tokens, priority=request.priority)
                run.charged_tokens = cost_tokens
        else:
            displaced = self._queue.push(
                run,
                priority=request.priority,
                tenant=request.tenant,
                cost_tokens=cost_tokens,
                deadline_s=request.deadline_s,
                now_s=time.monotonic(),
                again=again,
                waits_for_room=run.waits_for_room,
            )
            if displaced is not None:
                displaced.post(Displaced(self._displaced_error()))
        self._runs[id(run)] = run
        if again:
            self.place_waiting()  # it went to the head, and nothing else may happen that would try it

    def _displaced_error(self) -> RequestRejected:
        return RequestRejected(
            "the queue is full, and a request of a higher priority or of a tenant with fewer places took this one's; "
            "retry later",
            retry_after_s=self._queue.retry_after_s(),
            reason="displaced",
        )

    def _cost_tokens(self, run: ChoiceRun) -> int:
        """What a request is expected to take; its further choices cost nothing more."""
        request = run.request
        return len(request.prompt_ids) + request.choices * self._forecast(request) if run.index == 0 else 0

    def place_waiting(self) -> None:
        """Place from the head of the queue what finds room, or for which a running request makes way."""
        while (run := self._queue.head) is not None:
            found = self._try_place(run)
            if isinstance(found, Wait):
                if found.reason == "no_blocks" and self._preemption.make_room(run, self._view(run).reserve_blocks):
                    continue
                return  # in order: a small request does not overtake a large one for ever
            cost_tokens = self._queue.take(run, now_s=time.monotonic())
            run.charged_tokens = run.charged_tokens or cost_tokens

    def runs(self) -> list[ChoiceRun]:
        """Every choice that is queued or runs."""
        return list(self._runs.values())

    def remaining_tokens(self, run: ChoiceRun) -> int:
        """Forecast of the output still to come, at least a block's worth unless the limit is nearer."""
        made = len(run.life.output_ids)
        usual = self._lengths.quantile(FORECAST_QUANTILE) - made
        return min(run.request.max_tokens - made, max(usual, self.block_size_tokens))

    def _view(self, run: ChoiceRun) -> RequestView:
        isl = run.life.context_tokens
        forecast = self.remaining_tokens(run) if run.waits_for_room else self._forecast(run.request)
        prefixes = self.fleet.prefixes
        cached = prefixes.cached_tokens(run.hashes, isl) if prefixes else {}
        return RequestView(isl, forecast, self.block_size_tokens, cached, is_batch(run.request.priority))

    def _try_place(self, run: ChoiceRun) -> Placement | Wait:
        view = self._view(run)
        peaks = self._peaks.of(self) if self.spec.autoscaling.enabled else {}
        workers = self.fleet.views(peaks)
        local_prefill_below_tokens = self.spec.transfer.local_prefill_below_tokens
        if run.waits_for_room:
            workers = self._preemption.may_take_back(workers, view.reserve_blocks)
            # It is prefilled where it decodes, out of the way of others' first tokens.
            local_prefill_below_tokens = view.isl_tokens
        chosen = place(
            view,
            workers,
            local_prefill_below_tokens=local_prefill_below_tokens,
            local_prefill_after_s=self.spec.transfer.local_prefill_after_s,
            avoid=self._avoid.get(id(run), frozenset()),
        )
        if not isinstance(chosen, Placement):
            if chosen.reason == "no_blocks":
                self._preemption.no_room(run)
            return chosen
        if run.waits_for_room:
            run.waits_for_room = False
            self._preemption.took_back(chosen.decode_id)
        run.no_room_since_s = None
        self.fleet.workers[chosen.decode_id].reserved[run.life.request_id] = chosen.reserve_blocks
        if chosen.decode_id in peaks:
            peaks[chosen.decode_id] += chosen.reserve_blocks  # until they are reckoned anew
        prefilled_by = chosen.prefill_id or chosen.decode_id
        uncached = view.isl_tokens - view.cached_tokens.get(prefilled_by, 0)
        self.fleet.workers[prefilled_by].queued_tokens[run.life.request_id] = uncached
        run.placed(chosen.prefill_id, chosen.decode_id)
        return chosen

    def free_reservation(self, run: ChoiceRun, worker_id: str) -> None:
        """Give back what was promised to a run."""
        for worker in self.fleet.workers.values():
            worker.queued_tokens.pop(run.life.request_id, None)
        if worker_of := self.fleet.workers.get(worker_id):
            worker_of.reserved.pop(run.life.request_id, None)
        self.place_waiting()

    def forget(self, run: ChoiceRun) -> None:
        """A run ended."""
        waited = run in self._queue
        self._queue.remove(run)
        self._runs.pop(id(run), None)
        self._avoid.pop(id(run), None)
        if waited:
            self.place_waiting()  # it may have been the head that found no room

    def is_moving(self, run: ChoiceRun) -> bool:
        """Whether a run is on its way to another worker."""
        return self._drainer.is_moving(run)

    # --- legs and tickets -----------------------------------------------------------------------------------

    def submit(self, run: ChoiceRun, action: StartLeg, message: worker_pb2.SubmitLeg, callback: OutputCallback) -> None:
        """Send a leg to its worker; a ticket is redeemed here and goes along."""
        worker = self.fleet.workers.get(action.worker_id)
        if worker is None:
            if action.ticket is not None:
                self.release_ticket(action.worker_id, action.ticket)
            run.post(LegFailed(action.leg_id, WorkerDied("the worker is gone", worker_id=action.worker_id)))
            return
        if action.ticket is not None:
            now = time.monotonic()
            try:
                self.fleet.tickets.redeem(action.ticket, now_s=now)
            except TicketRefused as error:
                run.post(LegFailed(action.leg_id, error))
                return
            message.ticket.CopyFrom(ticket_message(action.ticket, now))
        worker.legs.add(action.leg_id)
        worker.link.submit(message, lambda output: callback(action, output))
        if self.fleet.prefixes:
            self.fleet.prefixes.record(action.worker_id, run.hashes)

    def leg_progress(self, action: StartLeg, output: worker_pb2.LegOutput) -> None:
        """Take note of a leg's first token, and of its end."""
        worker = self.fleet.workers.get(action.worker_id)
        if output.finish_reason:
            self.leg_ended(action.leg_id, action.worker_id)
            if worker is not None:
                worker.has_left(action.leg_id)
        elif worker is not None and worker.queued_tokens.pop(action.leg_id.rsplit("/", 1)[0], None) is not None:
            head = self._queue.head
            if head is not None and head.waits_for_room:
                self.place_waiting()  # where no prompt is read, it may come back

    def leg_ended(self, leg_id: str, worker_id: str) -> None:
        """A leg no longer occupies its worker."""
        worker = self.fleet.workers.get(worker_id)
        if worker is not None:
            worker.legs.discard(leg_id)
            worker.queued_tokens.pop(leg_id.rsplit("/", 1)[0], None)

    def issue_ticket(self, worker_id: str, params_json: str, now_s: float) -> HandoffTicket:
        """Check what prefill returned.

        Raises:
            TicketRefused: it cannot be handed to decode.
        """
        worker = self.fleet.workers.get(worker_id)
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
            deadline_s=now_s + self.spec.transfer.ticket_deadline_s,
        )

    def release_ticket(self, worker_id: str, ticket: HandoffTicket) -> None:
        """Have the source free the ticket's blocks, through this decode worker or, if it is gone, any other."""
        now = time.monotonic()
        try:
            self.fleet.tickets.redeem(ticket, now_s=now)
        except TicketRefused:
            return  # gone with its engine, or read already
        others = (worker for worker in self.fleet.workers.values() if worker.role is Role.DECODE)
        if worker := self.fleet.workers.get(worker_id) or next(others, None):
            worker.link.release(ticket, now)

    # --- figures --------------------------------------------------------------------------------------------

    def transport(self, prefill: str, decode: str) -> str:
        """Transport of a pair."""
        pair = self.fleet.pairs.get((prefill, decode))
        return pair.transport if pair else ""

    def count_handoff(self, prefill: str, decode: str, handoff: pb.HandoffFigures) -> None:
        """Add a handoff to its pair."""
        row = self._pair_status(prefill, decode)
        row.handoffs += 1
        row.bytes += handoff.bytes
        row.transfer_s += handoff.transfer_s

    def count_preempted(self) -> None:
        """A request made way."""
        self._counts["preempted"] += 1
        self.metrics.preempted.inc()

    def _pair_status(self, prefill: str, decode: str) -> cluster_pb2.PairStatus:
        return self._pairs.setdefault((prefill, decode), cluster_pb2.PairStatus(prefill=prefill, decode=decode))

    def usd_per_request_s(self, worker_id: str) -> float:
        """A worker's price for a second, shared by the legs on it."""
        worker = self.fleet.workers.get(worker_id)
        if worker is None:
            return 0.0
        cost = self.spec.cost
        per_hour = (
            worker.member.accelerators * cost.usd_per_accelerator_hour + worker.member.cpus * cost.usd_per_cpu_hour
        )
        return per_hour / 3600 / max(1, len(worker.legs))

    def new_number(self) -> int:
        """Makes engine request ids unique even where callers reuse theirs."""
        return next(self._numbers)

    @staticmethod
    def loop_time(monotonic_s: float) -> float:
        """A monotonic time on the running loop's clock."""
        return asyncio.get_running_loop().time() + (monotonic_s - time.monotonic())


def _worker_status(worker: FleetWorker) -> cluster_pb2.WorkerStatus:
    member, load = worker.member, worker.load
    state = "draining" if load.draining else member.state
    return cluster_pb2.WorkerStatus(
        worker_id=member.worker_id,
        role=f"ROLE_{member.role.upper()}",
        state=f"WORKER_STATE_{state.upper()}",
        address=member.address,
        metrics_address=member.metrics_address,
        incarnation=member.incarnation,
        node=member.node,
        accelerator=member.accelerator,
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        total_blocks=member.total_blocks,
        used_blocks=load.used_blocks,
        reserved_blocks=sum(worker.reserved.values()),
        block_size_tokens=member.block_size_tokens,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        pid=member.pid,
        preemptions=load.preemptions,
        spot=member.spot,
        attention_kernels=member.attention_kernels,
    )
