"""One choice of one request, run: feeds the lifecycle with what happens and does what it answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from baton.internal.v1 import worker_pb2
from baton.v1 import inference_pb2 as pb
from cluster.errors import TicketRefused, WorkerError
from orchestrator.gateway.choice_figures import ChoiceFigures
from orchestrator.gateway.choice_logprobs import ChoiceLogprobs
from orchestrator.policy.closing import OutputGate, Turn
from orchestrator.policy.phases import Phase
from orchestrator.policy.prefix_index import block_hashes
from orchestrator.request.lifecycle import (
    AbortLeg,
    Action,
    AskPlacement,
    Cancelled,
    Counted,
    DeadlinePassed,
    Event,
    Fail,
    Finish,
    FreeReservation,
    Handoff,
    LegFailed,
    LegOutput,
    Lifecycle,
    Placed,
    Preempted,
    ReleaseTicket,
    SendTokens,
    StartLeg,
    State,
    StopMatched,
    Turned,
)
from orchestrator.request.output_text import OutputText, Piece
from orchestrator.request.prepare import PreparedRequest
from orchestrator.request.resume import fingerprint
from orchestrator.request.sampling import choice_seed
from workers.worker_link import leg_error

if TYPE_CHECKING:
    from orchestrator.gateway.gateway import Gateway

log = logging.getLogger("baton.gateway")

PHASES = {Phase.REASONING: pb.PHASE_REASONING, Phase.ANSWER: pb.PHASE_ANSWER}
FINISH_REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
}


class ChoiceRun:
    """Runs one choice. Iterate over `run`; closing the iterator cancels both legs.

    Args:
        gateway: Workers, queue and metrics.
        request: The checked request.
        index: Which choice this is.
        received_s: Monotonic time at which the request came.
        received_unix_s: The same on the wall clock, against which transfers are stamped.
    """

    def __init__(
        self, gateway: Gateway, request: PreparedRequest, index: int, received_s: float, received_unix_s: float
    ) -> None:
        self.request = request
        self.index = index
        self.number = gateway.new_number()
        self.life = Lifecycle(
            request_id=f"{request.request_id}.{index}.{self.number:x}",
            prompt_ids=request.prompt_ids,
            max_tokens=request.max_tokens,
            handoff=request.handoff,
            retry_budget=gateway.spec.transfer.retry_budget,
            resumable=request.resumable,
            output_ids=list(request.resumed.token_ids) if request.resumed else [],
        )
        self.hashes = block_hashes(request.prompt_ids, gateway.block_size_tokens)
        self.prefilled = asyncio.Event()
        self._figures = ChoiceFigures(gateway.metrics, index, received_s, received_unix_s)
        self.summary = self._figures.summary
        self.charged_tokens = 0.0
        """What its tenant was charged when it was placed."""
        self.no_room_since_s: float | None = None
        """When it was first found that no worker has KV for it; None if it was not, or has been placed since."""
        self.waits_for_room = False
        """It made way and is yet to come back."""
        self._gateway = gateway
        self._text = OutputText(
            gateway.front.tokenizer,
            request.prompt_ids,
            gateway.front.markers,
            stops=request.stops,
            stop_in_reasoning=request.sampling.stop_in_reasoning,
            include_stop=request.sampling.include_stop_in_output,
            min_tokens=request.min_tokens,
            skip_special_tokens=request.skip_special_tokens,
        )
        reasoning, markers = gateway.spec.model.reasoning, gateway.front.markers
        self._grammar = request.sampling.HasField("structured_output")
        self._gate = OutputGate(
            markers,
            request.prompt_ids,
            limit_tokens=request.reasoning_limit_tokens,
            window_tokens=reasoning.closing_window_tokens if reasoning else 0,
            ends_line=gateway.line_ends,
            grammar=self._grammar,
            closed=request.reasoning_closed,
        )
        self._second_end_within_tokens = 0
        if reasoning and markers and not self._grammar:
            # Both markers are within the slack, too.
            self._second_end_within_tokens = max(0, reasoning.hard_stop_slack_tokens - 2 * len(markers.end_ids))
        if request.resumed:
            self._gate.push(request.resumed.token_ids)
            self._tell_counted()
            self._text.push(request.resumed.token_ids)  # the caller has the text of these
            self.summary.resumed_tokens = len(request.resumed.token_ids)
        self._inbox: deque[Event] = deque()
        self._todo: deque[Action] = deque()
        self._wake = asyncio.Event()
        self._logprobs = ChoiceLogprobs(gateway.front.tokenizer, request.sampling)
        self._stop_reason = ""
        self._ended = False
        self._turned = False

    # --- events in ------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Hand an event in, from any callback on the loop."""
        if self._ended:
            # Nobody iterates any more; what is left to do needs no caller.
            for action in self.life.handle(event):
                self._do(action)
            return
        self._inbox.append(event)
        self._wake.set()

    def placed(self, prefill_id: str | None, decode_id: str) -> None:
        """The gateway found workers and reserved the KV."""
        self.post(Placed(prefill_id, decode_id))

    def _on_output(self, action: StartLeg, output: worker_pb2.LegOutput) -> None:
        now = time.monotonic()
        self._gateway.leg_progress(action, output)
        if output.HasField("transfer"):
            self._figures.transferred(output.transfer)
        if output.logprobs:
            self._logprobs.arrive(action.leg_id, output.logprobs)
        if output.finish_reason in ("error", "abort") and output.token_ids:
            # Tokens that were still on their way when the leg ended come in the same message; they are as good.
            self.post(LegOutput(action.leg_id, tuple(output.token_ids)))
        if output.finish_reason == "error":
            self.post(LegFailed(action.leg_id, leg_error(output, action.worker_id)))
            return
        if output.finish_reason == "abort":
            # Asked for, it is old news; else the engine ended the leg by itself.
            self.post(LegFailed(action.leg_id, WorkerError("the worker aborted the leg", worker_id=action.worker_id)))
            return
        ticket = None
        if action.export and output.finish_reason:
            try:
                ticket = self._gateway.issue_ticket(action.worker_id, output.transfer_params_json, now)
            except TicketRefused as error:
                self.post(LegFailed(action.leg_id, error))
                return
        if self.life.leg_id == action.leg_id:
            if action.export and action.generated_tokens and self.life.moves and output.token_ids:
                self._figures.moved(len(action.token_ids) - output.cached_tokens)
            self._figures.cached(output.cached_tokens)
            self._stop_reason = output.stop_reason
            if action.ticket is not None and self._figures.handing_over and output.token_ids:
                source_id = action.ticket.source_id
                transport = self._gateway.transport(source_id, action.worker_id)
                self._figures.handed_over(action.ticket, transport, now)
                self._gateway.count_handoff(source_id, action.worker_id, self.summary.handoff)
        self.post(LegOutput(action.leg_id, tuple(output.token_ids), output.finish_reason, ticket))

    @property
    def answer_tokens(self) -> int:
        """Output tokens that are not reasoning."""
        return self._text.answer_tokens

    @property
    def movable(self) -> bool:
        """Whether it could decode elsewhere from here on and nobody would notice."""
        return self.life.resumable

    @property
    def preempted(self) -> bool:
        """Whether it made way for another one before."""
        return self.summary.preempted

    def make_way(self) -> bool:
        """Give up its blocks and wait, at once and whether or not its caller reads; False if it is at its end."""
        while self._inbox and isinstance(self._inbox[0], LegOutput):
            self._take_in(self._inbox.popleft())
        actions = self.life.handle(Preempted())
        if actions:
            self.summary.preempted = self.waits_for_room = True
        for action in actions:
            self._do(action)
        return bool(actions)

    # --- the loop -------------------------------------------------------------------------------------------

    async def run(self) -> AsyncGenerator[pb.GenerateResponse]:
        """Yield the choice's events; each is with the caller before the next action is done."""
        todo = self._todo
        reason = self._ended_before()
        todo.extend(self.life.handle(StopMatched(reason)) if reason else [AskPlacement(frozenset())])
        try:
            while True:
                while todo:
                    action = todo.popleft()
                    if isinstance(action, SendTokens):
                        ids = [*action.token_ids]
                        while todo and isinstance(more := todo[0], SendTokens):
                            ids += more.token_ids
                            todo.popleft()
                        for message in self._tokens(ids):
                            yield message
                        if reason := self._early_stop():
                            todo.extend(self.life.handle(StopMatched(reason)))
                    elif isinstance(action, Finish):
                        for message in self._finish(action.reason):
                            yield message
                        return
                    elif isinstance(action, Fail):
                        raise action.error
                    else:
                        if isinstance(action, StartLeg) and self.life.state is State.DECODING:
                            self.prefilled.set()
                        self._do(action)
                if not self._inbox:
                    await self._wait()
                while self._inbox:
                    event = self._inbox.popleft()
                    # Before any yield: a caller that goes away there must not take the event, and the KV
                    # reserved with it, along.
                    self._take_in(event)
                    if isinstance(event, Placed):
                        yield self._admitted(event)
        finally:
            self._ended = True
            self.prefilled.set()
            self._gateway.forget(self)
            for action in [*todo, *self.life.handle(Cancelled())]:
                if isinstance(action, StartLeg):
                    # The caller went between prefill's end and decode's start: nobody will read the blocks.
                    if action.ticket is not None:
                        self._gateway.release_ticket(action.worker_id, action.ticket)
                elif not isinstance(action, AskPlacement):
                    self._do(action)
            for event in self._inbox:
                for action in self.life.handle(event):
                    self._do(action)

    def _take_in(self, event: Event) -> None:
        if not isinstance(event, LegOutput) or event.leg_id != self.life.leg_id:
            if isinstance(event, LegOutput):
                self._logprobs.forget(event.leg_id)
            self._todo.extend(self.life.handle(event))
            return
        self._logprobs.take(event.leg_id, len(event.token_ids))
        if self.life.state is not State.DECODING:
            known = len(self.life.output_ids)
            if event.token_ids and self._gate.closes_before(event.token_ids[0]):
                # Decode says it once more, and is turned.
                self._logprobs.drop(len(event.token_ids))
                event = replace(event, token_ids=())
            self._todo.extend(self.life.handle(event))
            self._gate.push(self.life.output_ids[known:])
        else:
            fresh = self._gate.held_tokens + len(event.token_ids)
            token_ids, turn = self._gate.take(event.token_ids, ends=bool(event.finish_reason))
            if turn is None:
                self._todo.extend(self.life.handle(replace(event, token_ids=token_ids)))
            else:
                self._logprobs.drop(fresh - len(token_ids))
                self._turn(event.leg_id, token_ids, turn)
        self._tell_counted()

    def _tell_counted(self) -> None:
        """The grammar begins with the answer."""
        gate, life = self._gate, self.life
        if self._grammar and life.resumable and not gate.awaits_answer:
            life.handle(Counted(gate.answer_began))

    def _turn(self, leg_id: str, token_ids: tuple[int, ...], turn: Turn) -> None:
        """Go on otherwise than the leg would: close the reasoning, or begin the answer anew under its grammar."""
        self._todo.extend(self.life.handle(LegOutput(leg_id, token_ids)))
        self._stop_reason = ""
        self._logprobs.add_certain(turn.token_ids)
        if turn.closes:
            self._text.expect_second_end(self._second_end_within_tokens)
        self._turned = True
        self._todo.extend(self.life.handle(Turned(turn.token_ids)))

    async def _wait(self) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout_at(self._gateway.loop_time(self.request.deadline_s)):
                await self._wake.wait()
        except TimeoutError:
            self._inbox.append(DeadlinePassed())

    # --- actions --------------------------------------------------------------------------------------------

    def _do(self, action: Action) -> None:
        gateway = self._gateway
        match action:
            case AskPlacement():
                self.summary.retries = self.life.retries
                gateway.ask_placement(self, action.avoid)
            case StartLeg():
                self._start_leg(action)
            case AbortLeg():
                if worker := gateway.fleet.workers.get(action.worker_id):
                    worker.link.abort(action.leg_id)
                gateway.leg_ended(action.leg_id, action.worker_id)
            case ReleaseTicket():
                gateway.release_ticket(action.worker_id, action.ticket)
            case FreeReservation():
                gateway.free_reservation(self, action.worker_id)
            case SendTokens() | Finish() | Fail():
                pass  # nobody listens

    def _start_leg(self, action: StartLeg) -> None:
        now = time.monotonic()
        message = worker_pb2.SubmitLeg(
            leg_id=action.leg_id,
            token_ids=np.asarray(action.token_ids, dtype="<u4").tobytes(),
            max_tokens=action.max_tokens,
            export=action.export,
            priority=self.request.priority,
        )
        prefill_leg = self.life.state is State.PREFILLING
        self._figures.leg_starts(prefills=prefill_leg, ticket=action.ticket is not None, now=now)
        self._logprobs.drop(self._gate.forget_held())
        moves = self.life.prefill_id == action.worker_id and self.life.moves > 0
        # A draining worker lets what it has go on after a turn, too.
        message.moves_away = moves or (self._turned and not prefill_leg)
        plain_prefill = prefill_leg and self.life.handoff is Handoff.PLAIN
        if plain_prefill:
            # Its token is dropped, so neither penalties nor a grammar need to be kept up for it.
            message.sampling.CopyFrom(pb.Sampling(temperature=0.0, ignore_eos=True))
        else:
            message.sampling.CopyFrom(self.request.sampling)
            if message.sampling.HasField("seed"):
                message.sampling.seed = choice_seed(message.sampling.seed, self.index)
            markers = self._gateway.front.markers
            if self._grammar and markers is not None:
                message.reasoning_ended = not self._gate.awaits_answer
                message.reasoning_end_ids.extend(markers.end_ids)
            message.min_tokens = min(action.max_tokens, max(0, self.request.min_tokens - action.generated_tokens))
        self._gateway.submit(self, action, message, self._on_output)

    # --- messages out ---------------------------------------------------------------------------------------

    def _admitted(self, event: Placed) -> pb.GenerateResponse:
        workers = pb.Workers(prefill=event.prefill_id or "", decode=event.decode_id)
        queue_s = self._figures.placed(workers, time.monotonic())
        return pb.GenerateResponse(
            admitted=pb.Admitted(
                request_id=self.request.request_id,
                prompt_tokens=len(self.request.prompt_ids),
                workers=workers,
                queue_s=queue_s,
                choice=self.index,
                prompt_fingerprint=fingerprint(self.request.prompt_ids),
            )
        )

    def _tokens(self, token_ids: list[int]) -> list[pb.GenerateResponse]:
        """Deltas for new tokens."""
        now = time.monotonic()
        messages: list[pb.GenerateResponse] = []
        ttft_s = self._figures.tokens(len(token_ids), self._usd_per_s(), now)
        if ttft_s is not None:
            first = pb.FirstToken(choice=self.index, ttft_s=ttft_s, cached_tokens=self._figures.cached_tokens)
            messages.append(pb.GenerateResponse(first_token=first))
        pieces = self._text.push(token_ids)
        for piece in pieces:
            if piece.phase is Phase.ANSWER:
                self._figures.answers(now)
            messages.append(self._delta(piece))
        return messages

    def _delta(self, piece: Piece) -> pb.GenerateResponse:
        delta = pb.Delta(choice=self.index, phase=PHASES[piece.phase], text=piece.text, token_ids=piece.token_ids)
        delta.logprobs.extend(self._logprobs.send(len(piece.token_ids)))
        return pb.GenerateResponse(delta=delta)

    def _ended_before(self) -> str | None:
        """Why a resumed generation is at its end already, if it is."""
        resumed = self.request.resumed
        if resumed is None:
            return None
        if resumed.finish_reason:
            return next((word for word, reason in FINISH_REASONS.items() if reason == resumed.finish_reason), "stop")
        ids, sampling = resumed.token_ids, self.request.sampling
        if ids and len(ids) >= self.request.min_tokens:
            if ids[-1] in sampling.stop_token_ids:
                self._stop_reason = str(ids[-1])
                return "stop"
            if ids[-1] in self._gateway.front.eos_ids and not sampling.ignore_eos:
                return "stop"
        return "length" if len(ids) >= self.request.max_tokens else self._early_stop()

    def _early_stop(self) -> str | None:
        if self.life.ended:
            return None
        return "stop" if self._text.stop_matched is not None else None

    def _finish(self, reason: str) -> list[pb.GenerateResponse]:
        if self.request.resumed and self.request.resumed.finish_reason:
            self._summarise(FINISH_REASONS[reason])  # the caller has the last delta already
            return []
        pieces = self._text.finish()
        messages = [self._delta(piece) for piece in pieces]
        if not messages or not messages[-1].HasField("delta"):
            messages.append(pb.GenerateResponse(delta=pb.Delta(choice=self.index, phase=PHASES[self._text.phase])))
        if self._text.stop_matched is not None:
            reason = "stop"
        last = messages[-1].delta
        last.finish_reason = FINISH_REASONS.get(reason, pb.FINISH_REASON_STOP)
        last.stop_matched = self._text.stop_matched or self._stop_reason
        last.reasoning_closed = self._reasoning_closed
        self._summarise(last.finish_reason)
        return messages

    # --- figures --------------------------------------------------------------------------------------------

    def _summarise(self, reason: pb.FinishReason) -> None:
        summary, request = self.summary, self.request
        summary.retries = self.life.retries
        summary.moves = self.life.moves
        summary.reasoning_closed = self._reasoning_closed
        summary.handoff.plain = request.handoff is Handoff.PLAIN and bool(summary.workers.prefill)
        usage = pb.Usage(
            prompt_tokens=len(request.prompt_ids),
            reasoning_tokens=self._text.reasoning_tokens,
            answer_tokens=self._text.answer_tokens,
        )
        self._figures.end(reason, usage, request.thinking_budget_tokens or 0 if request.reduced_budget else None)

    @property
    def _reasoning_closed(self) -> bool:
        """Whether the caller is told that it got less thought than the model would have had."""
        unasked = self.request.reasoning_closed and self.request.thinking_budget_tokens != 0
        return self._gate.closed or unasked

    def _usd_per_s(self) -> float:
        """This request's share of its worker's price."""
        worker_id = self.life.decode_id if self.life.state is not State.PREFILLING else self.life.prefill_id
        return self._gateway.usd_per_request_s(worker_id) if worker_id else 0.0

    @property
    def cost_usd(self) -> float:
        """Share of the workers' price."""
        return self._figures.cost_usd
