"""One choice of one request, run: feeds the lifecycle with what happens and does what it answers.

This is the middle of a token's way: `_take_token` gets it from the worker's link and, in the midst of a leg and while
the caller keeps up, sends it on. All else goes by `_take_output` and the inbox to `run`, which yields it to the front.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from functools import partial

from baton.internal.v1 import worker_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import ServingError, TicketRefused, WorkerError
from orchestrator.gateway.choice_figures import ChoiceFigures
from orchestrator.gateway.choice_leg import admitted_message, leg_message
from orchestrator.gateway.choice_output import ChoiceOutput, finish_reason
from orchestrator.gateway.delta_sink import DeltaSink
from orchestrator.gateway.leg_fleet import LegFleet, RunOwner
from orchestrator.gateway.siblings import Sibling
from orchestrator.policy.phases import Phase
from orchestrator.request import lifecycle as lc
from orchestrator.request.prepare import PreparedRequest
from workers.messages import is_tokens_alone
from workers.worker_link import leg_error


class ChoiceRun:
    """Owns one choice: its ledger and lifecycle, its legs, its text. Iterate over `run`; closing that cancels the legs.

    Args:
        request: The checked request.
        index: Which choice this is.
        number: Unique among the gateway's runs, since callers may reuse request ids.
        hashes: Of the prompt's full blocks.
        retry_budget: New prefills after failures.
        output: Takes tokens in and makes text of them.
        fleet: Runs the legs.
        owner: Finds workers.
        figures: Takes times and counts.
        sibling: What the other choices of the request see of it.
    """

    def __init__(
        self,
        request: PreparedRequest,
        index: int,
        number: int,
        hashes: Sequence[int],
        retry_budget: int,
        output: ChoiceOutput,
        fleet: LegFleet,
        owner: RunOwner[ChoiceRun],
        figures: ChoiceFigures,
        sibling: Sibling,
    ) -> None:
        self.request = request
        self.index = index
        self.number = number
        self.hashes = hashes
        self.life = lc.Lifecycle(
            request_id=f"{request.request_id}.{index}.{number:x}",
            prompt_ids=request.prompt_ids,
            max_tokens=request.max_tokens,
            handoff=request.handoff,
            retry_budget=retry_budget,
            resumable=request.resumable,
            output_ids=list(request.resumed.token_ids) if request.resumed else [],
        )
        self.summary = figures.summary
        self.waits_for_headroom = False
        """It was preempted and is yet to come back."""
        self._output = output
        self._fleet = fleet
        self._owner = owner
        self._figures = figures
        self.sibling = sibling
        self._inbox: deque[lc.Event] = deque()
        self._todo: deque[lc.Action] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._direct: DeltaSink | None = None
        """Set while `run` waits, and all it yielded is with the caller."""
        if request.resumed:
            output.resume(self.life, request.resumed.token_ids)
            self.summary.resumed_tokens = len(request.resumed.token_ids)

    # --- to be read by others ---------------------------------------------------------------------------------

    @property
    def answer_tokens(self) -> int:
        """Output tokens that are not reasoning."""
        return self._output.answer_tokens

    @property
    def movable(self) -> bool:
        """Whether it could decode elsewhere from here on with the same meaning."""
        return self.life.resumable

    @property
    def preempted(self) -> bool:
        """Whether it was preempted before."""
        return self.summary.preempted

    @property
    def cost_usd(self) -> float:
        """Share of the workers' price."""
        return self._figures.cost_usd

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that its legs found cached."""
        return self._figures.cached_tokens

    # --- events in ------------------------------------------------------------------------------------------

    def post(self, event: lc.Event) -> None:
        """Hand an event in, from any callback on the loop."""
        if self._ended:
            # Nobody iterates any more; what is left to do needs no caller.
            for action in self.life.handle(event):
                self._do(action)
            return
        self._inbox.append(event)
        self._go_on()

    def _go_on(self) -> None:
        """Have `run` see to the inbox and to what is to be done; until it has, nothing goes past it."""
        self._direct = None
        self._wake.set()

    def placed(self, prefill_id: str | None, decode_id: str) -> None:
        """Workers were found, and the KV is reserved."""
        self.waits_for_headroom = False
        self.sibling.placed(prefill_id, decode_id)
        self.post(lc.Placed(prefill_id, decode_id))

    def close_reasoning(self) -> None:
        """Close the reasoning where it is, so that the model answers; nothing where it answers already."""
        self._todo.extend(self._output.close(self.life))
        self._go_on()

    def preempt(self) -> bool:
        """Give up its blocks and wait, at once and whether or not its caller reads; False if it is at its end."""
        while self._inbox and isinstance(event := self._inbox[0], lc.LegOutput):
            self._inbox.popleft()
            self._take_in(event)
        actions = self.life.handle(lc.Preempted())
        if actions:
            self.summary.preempted = self.waits_for_headroom = True
        for action in actions:
            self._do(action)
        return bool(actions)

    def _take_output(self, action: lc.StartLeg, output: worker_pb2.LegOutput) -> None:
        """A leg's message, from its link."""
        if len(output.token_ids) > 1 and is_tokens_alone(output) and self._stream(action.leg_id, output.token_ids[:]):
            return
        now = time.monotonic()
        if output.HasField("transfer"):
            self._figures.transferred(output.transfer)
        if output.logprobs:
            self._output.arrive(action.leg_id, output.logprobs)
        if output.HasField("prompt_scores"):
            self._output.prompt_logprobs.take(output.prompt_scores)
        reason = output.finish_reason
        if reason in ("error", "abort"):
            if output.token_ids:
                # Tokens that were still on their way when the leg ended come in the same message; they are as good.
                self.post(lc.LegOutput(action.leg_id, tuple(output.token_ids)))
            if reason == "error":
                self.post(lc.LegFailed(action.leg_id, leg_error(output, action.worker_id)))
            else:
                # Asked for, it is old news; else the engine ended the leg by itself.
                aborted = WorkerError("the worker aborted the leg", worker_id=action.worker_id)
                self.post(lc.LegFailed(action.leg_id, aborted))
            return
        ticket = None
        if action.export and reason:
            try:
                ticket = self._fleet.issue_ticket(action.worker_id, output.transfer_params_json, now)
            except TicketRefused as error:
                self.post(lc.LegFailed(action.leg_id, error))
                return
        notable = reason or output.cached_tokens or action.export or self.sibling.awaits_token
        if notable and self.life.leg_id == action.leg_id:
            self._figure(action, output, now)
        self.post(lc.LegOutput(action.leg_id, tuple(output.token_ids), reason, ticket))

    def _take_token(self, action: lc.StartLeg, token_id: int) -> None:
        """A leg's token from its link, with nothing else to be said of it."""
        if not self._stream(action.leg_id, [token_id]):
            self._take_output(action, worker_pb2.LegOutput(leg_id=action.leg_id, token_ids=[token_id]))

    def _stream(self, leg_id: str, token_ids: list[int]) -> bool:
        """Send tokens in the midst of a leg on at once; False, and nothing done, where `run` has to see to them."""
        sink = self._direct
        if sink is None or not sink.ready or self.sibling.awaits_token:
            return False
        if not self._output.stream(leg_id, token_ids, self.life):
            return False
        now = time.monotonic()
        self._figures.tokens(len(token_ids), self._usd_per_s(), now)
        for piece in self._output.pieces(token_ids):
            if piece.phase is Phase.ANSWER:
                self._figures.answers(now)
            sink.take(self.index, piece.phase, piece.text, piece.token_ids)
        if self._output.stop_found:
            self._todo.extend(self.life.handle(lc.StopMatched("stop")))
            self._go_on()
        return True

    def _figure(self, action: lc.StartLeg, output: worker_pb2.LegOutput, now: float) -> None:
        """Note what a message of the present leg says beside its tokens."""
        if action.export and action.generated_tokens and self.life.moves and output.token_ids:
            self._figures.moved(len(action.token_ids) - output.cached_tokens)
        if action.ticket is None:  # with one, the engine counts what it read as cached
            self._figures.cached(output.cached_tokens)
        if self.sibling.awaits_token and output.token_ids:
            self.sibling.decodes(action.worker_id, output.cached_tokens)
        if output.finish_reason:
            self._output.note_stop(output.stop_reason)
        if action.ticket is not None and self._figures.handing_over and output.token_ids:
            source_id, pairs = action.ticket.source_id, self._fleet.pairs
            self._figures.handed_over(action.ticket, pairs.transport(source_id, action.worker_id), now)
            pairs.count_handoff(source_id, action.worker_id, self.summary.handoff)

    # --- the loop -------------------------------------------------------------------------------------------

    async def run(self, sink: DeltaSink | None = None) -> AsyncGenerator[pb.GenerateResponse]:
        """Yield the choice's events; each is with the caller before the next action is done.

        With a ``sink``, most deltas go there instead; see `DeltaSink`.
        """
        todo = self._todo
        sink = sink if self._output.streams else None
        reason = self._output.ended_before()
        todo.extend(self.life.handle(lc.StopMatched(reason)) if reason else [lc.AskPlacement(frozenset())])
        try:
            while True:
                while todo:
                    if self._output.prompt_logprobs.arrived:
                        self._figures.paid(self._usd_per_s(), time.monotonic())
                        for piece in self._output.prompt_logprobs.events():
                            yield pb.GenerateResponse(prompt_logprobs=piece)
                            await asyncio.sleep(0)  # many may follow, and others' streams wait
                    action = todo.popleft()
                    if isinstance(action, lc.SendTokens):
                        ids = [*action.token_ids]
                        while todo and isinstance(more := todo[0], lc.SendTokens):
                            ids += more.token_ids
                            todo.popleft()
                        for message in self._tokens(ids):
                            yield message
                        if self._output.stop_found and not self.life.ended:
                            todo.extend(self.life.handle(lc.StopMatched("stop")))
                    elif isinstance(action, lc.Finish):
                        for message in self._finish(action.reason):
                            yield message
                        return
                    elif isinstance(action, lc.Fail):
                        raise action.error
                    else:
                        self._do(action)
                if not self._inbox:
                    await self._wait(sink)
                while self._inbox:
                    event = self._inbox.popleft()
                    # Before any yield: a caller that goes away there must not take the event and its KV along.
                    self._take_in(event)
                    if isinstance(event, lc.Placed):
                        yield self._admitted(event)
        finally:
            self._end()

    def _end(self) -> None:
        """Nobody iterates from here on: give back what the choice still has."""
        self._ended = True
        self._figures.fold()
        self.sibling.over(finished=self.life.state is lc.State.FINISHED)
        self._owner.over(self)
        for action in [*self._todo, *self.life.handle(lc.Cancelled())]:
            if isinstance(action, lc.StartLeg):
                # The caller went between prefill's end and decode's start: nobody will read the blocks.
                if action.ticket is not None:
                    self._fleet.release_ticket(action.worker_id, action.ticket)
            elif not isinstance(action, lc.AskPlacement):
                self._do(action)
        for event in self._inbox:
            for action in self.life.handle(event):
                self._do(action)

    def _take_in(self, event: lc.Event) -> None:
        if isinstance(event, lc.LegOutput):
            self._todo.extend(self._output.take(event, self.life))
        else:
            self._todo.extend(self.life.handle(event))

    async def _wait(self, sink: DeltaSink | None) -> None:
        self._wake.clear()
        self._direct = sink if self._figures.has_first_token else None  # `FirstToken` goes before all deltas
        # The deadline, on the loop's clock.
        until_s = asyncio.get_running_loop().time() + (self.request.deadline_s - time.monotonic())
        try:
            async with asyncio.timeout_at(until_s):
                await self._wake.wait()
        except TimeoutError:
            self._inbox.append(lc.DeadlinePassed())
        finally:
            self._direct = None

    # --- actions --------------------------------------------------------------------------------------------

    def _do(self, action: lc.Action) -> None:
        match action:
            case lc.AskPlacement():
                self.summary.retries = self.life.retries
                self.sibling.failed_on(action.avoid)
                self._owner.needs_workers(self, action.avoid)
            case lc.StartLeg():
                self._start_leg(action)
            case lc.AbortLeg():
                self._fleet.abort_leg(action.leg_id, action.worker_id)
            case lc.ReleaseTicket():
                self._fleet.release_ticket(action.worker_id, action.ticket)
            case lc.FreeReservation():
                self._fleet.free(self.life.request_id, action.worker_id)
            case lc.SendTokens() | lc.Finish() | lc.Fail():
                pass  # nobody listens

    def _start_leg(self, action: lc.StartLeg) -> None:
        prefills = self.life.state is lc.State.PREFILLING
        self.sibling.awaits_token = self.life.state is lc.State.DECODING
        self._figures.leg_starts(prefills=prefills, ticket=action.ticket is not None, now=time.monotonic())
        self._output.leg_starts()
        message = leg_message(action, self.life, self.request, self.index, self._output)
        try:
            on_output, on_token = partial(self._take_output, action), partial(self._take_token, action)
            self._fleet.start_leg(action, message, on_output, self.hashes, on_token)
        except ServingError as error:
            self.post(lc.LegFailed(action.leg_id, error))

    # --- messages out ---------------------------------------------------------------------------------------

    def _admitted(self, event: lc.Placed) -> pb.GenerateResponse:
        workers = pb.Workers(prefill=event.prefill_id or "", decode=event.decode_id)
        return admitted_message(self.request, self.index, workers, self._figures.placed(workers, time.monotonic()))

    def _tokens(self, token_ids: list[int]) -> list[pb.GenerateResponse]:
        now = time.monotonic()
        messages: list[pb.GenerateResponse] = []
        ttft_s = self._figures.tokens(len(token_ids), self._usd_per_s(), now)
        if ttft_s is not None:
            first = pb.FirstToken(choice=self.index, ttft_s=ttft_s, cached_tokens=self._figures.cached_tokens)
            messages.append(pb.GenerateResponse(first_token=first))
        deltas = list(self._output.deltas(token_ids))
        self._figures.go_on(deltas, now)
        return messages + [pb.GenerateResponse(delta=delta) for delta in deltas]

    def _finish(self, reason: str) -> list[pb.GenerateResponse]:
        if self.request.resumed and self.request.resumed.finish_reason:
            self._summarise(finish_reason(reason))  # the caller has the last delta already
            return []
        deltas = self._output.last_deltas(reason)
        self._figures.go_on(deltas, time.monotonic())
        self._summarise(deltas[-1].finish_reason)
        return [pb.GenerateResponse(delta=delta) for delta in deltas]

    def _summarise(self, reason: pb.FinishReason) -> None:
        summary, request = self.summary, self.request
        summary.retries = self.life.retries
        summary.moves = self.life.moves
        summary.reasoning_closed = self._output.reasoning_closed
        summary.handoff.plain = request.handoff is lc.Handoff.PLAIN and bool(summary.workers.prefill)
        usage = pb.Usage(
            prompt_tokens=len(request.prompt_ids),
            reasoning_tokens=self._output.reasoning_tokens,
            answer_tokens=self._output.answer_tokens,
            tool_call_tokens=self._output.tool_call_tokens,
        )
        self._figures.end(reason, usage, request.thinking_budget_tokens or 0 if request.reduced_budget else None)

    def _usd_per_s(self) -> float:
        """This request's share of its worker's price."""
        worker_id = self.life.decode_id if self.life.state is not lc.State.PREFILLING else self.life.prefill_id
        return self._fleet.usd_per_request_s(worker_id) if worker_id else 0.0
