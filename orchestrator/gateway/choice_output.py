"""One choice's tokens: from what its legs say into the ledger, and from the ledger to text. No I/O.

On the way in the reasoning is counted, and closed where its limit is reached; see `orchestrator.policy.closing`. On the
way out tokens become deltas, with phase, text, log-probabilities, and the end where a stop string is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from baton.v1 import inference_pb2 as pb
from cluster.spec.model_settings import ReasoningSettings
from orchestrator.gateway.choice_logprobs import ChoiceLogprobs
from orchestrator.gateway.prompt_logprobs import PromptLogprobs
from orchestrator.policy.closing import OutputGate, Turn
from orchestrator.policy.phases import Phase
from orchestrator.request.lifecycle import Action, Counted, LegOutput, Lifecycle, State, Turned
from orchestrator.request.model_front import ModelFront
from orchestrator.request.output_text import OutputText, Piece
from orchestrator.request.parsed_text import ParsedText
from orchestrator.request.prepare import PreparedRequest

PHASES = {
    Phase.REASONING: pb.PHASE_REASONING,
    Phase.ANSWER: pb.PHASE_ANSWER,
    Phase.TOOL_CALL: pb.PHASE_TOOL_CALL,
}
FINISH_REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
}


class ChoiceOutput:
    """Owns a choice's text, log-probabilities, and the gate before its ledger.

    Args:
        request: The checked request.
        index: Which choice this is.
        front: Tokeniser and markers.
        reasoning: How the model reasons; None if it does not.
        ends_line: Whether a line ends with a token.
    """

    def __init__(
        self,
        request: PreparedRequest,
        index: int,
        front: ModelFront,
        reasoning: ReasoningSettings | None,
        ends_line: Callable[[int], bool],
    ) -> None:
        self._request = request
        self._index = index
        self._eos_ids = front.eos_ids
        self._markers = front.markers
        self._text = text_of(request, front)
        # One that is written for the whole output has the reasoning in it.
        self._grammar = request.sampling.HasField("structured_output") and not request.grammar_covers_reasoning
        self._gate = OutputGate(
            front.markers,
            request.prompt_ids,
            limit_tokens=request.reasoning_limit_tokens,
            window_tokens=reasoning.closing_window_tokens if reasoning else 0,
            ends_line=ends_line,
            grammar=self._grammar,
            closed=request.reasoning_closed,
        )
        self._second_end_within_tokens = 0
        if reasoning and front.markers and not self._grammar:
            # Both markers are within the slack, too.
            self._second_end_within_tokens = max(0, reasoning.hard_stop_slack_tokens - 2 * len(front.markers.end_ids))
        self._logprobs = ChoiceLogprobs(front.tokenizer, request.sampling)
        has_tokens = request.resumed is not None and bool(request.resumed.token_ids)
        self.prompt_logprobs = PromptLogprobs(
            front.tokenizer, request.prompt_ids, wanted=request.scores_prompt and index == 0 and not has_tokens
        )
        self._stop_reason = ""
        plain = isinstance(self._text, OutputText)
        self.streams = plain and not self._grammar and not request.sampling.HasField("logprobs")
        """Whether tokens may come by `stream`."""
        self.turned = False
        """Whether a leg was given up here for another one on the same worker."""

    # --- into the ledger ------------------------------------------------------------------------------------

    def resume(self, life: Lifecycle, token_ids: Sequence[int]) -> None:
        """Take up a generation whose caller has these tokens, and their text, already."""
        self._gate.push(token_ids)
        self._count(life)
        self._text.resume(token_ids)

    def arrive(self, leg_id: str, logprobs: Iterable[pb.TokenLogprobs]) -> None:
        """A leg's message brought log-probabilities; its tokens may wait before they are taken."""
        self._logprobs.arrive(leg_id, logprobs)

    def note_stop(self, stop_reason: str) -> None:
        """The present leg's last word on what it stopped at."""
        self._stop_reason = stop_reason

    def leg_starts(self) -> None:
        """A leg is about to start: what the last one began and did not end is void."""
        self._logprobs.drop(self._gate.forget_held())

    def close(self, life: Lifecycle) -> list[Action]:
        """Close the reasoning where it is; nothing unless it is open and decodes."""
        if life.state is not State.DECODING or life.leg_id is None or not self._gate.thinks:
            return []
        return self._turn(life.leg_id, (), self._gate.close(), life)

    def take(self, event: LegOutput, life: Lifecycle) -> list[Action]:
        """Put what a leg said into the ledger as far as it is to go there; returns what is to be done."""
        if event.leg_id != life.leg_id:
            self._logprobs.forget(event.leg_id)
            return life.handle(event)
        self._logprobs.take(event.leg_id, len(event.token_ids))
        if life.state is State.DECODING:
            fresh = self._gate.held_tokens + len(event.token_ids)
            token_ids, turn = self._gate.take(event.token_ids, ends=bool(event.finish_reason))
            if turn is None:
                actions = life.handle(event if token_ids == event.token_ids else replace(event, token_ids=token_ids))
            else:
                self._logprobs.drop(fresh - len(token_ids))
                actions = self._turn(event.leg_id, token_ids, turn, life)
        else:
            known = len(life.output_ids)
            if event.token_ids and self._gate.closes_before(event.token_ids[0]):
                # Decode says it once more, and is turned.
                self._logprobs.drop(len(event.token_ids))
                event = replace(event, token_ids=())
            actions = life.handle(event)
            self._gate.push(life.output_ids[known:])
        if self._grammar:
            self._count(life)
        return actions

    def stream(self, leg_id: str, token_ids: Sequence[int], life: Lifecycle) -> bool:
        """Put tokens in the midst of a leg into the ledger, as `take` would; False, and nothing done, where it must."""
        if not (life.goes_on_after(leg_id, len(token_ids)) and self._gate.passes(token_ids)):
            return False
        life.output_ids.extend(token_ids)
        return True

    def grammar_state(self) -> tuple[bool, tuple[int, ...]]:
        """Whether the reasoning is over, and the end marker: what an engine needs to begin a grammar in time."""
        if not self._grammar or self._markers is None:
            return True, ()
        return not self._gate.awaits_answer, self._markers.end_ids

    def _turn(self, leg_id: str, token_ids: tuple[int, ...], turn: Turn, life: Lifecycle) -> list[Action]:
        """Go on otherwise than the leg would: close the reasoning, or begin the answer again under its grammar."""
        actions = life.handle(LegOutput(leg_id, token_ids))
        self._stop_reason = ""
        self._logprobs.add_certain(turn.token_ids)
        if turn.closes:
            self._text.expect_second_end(self._second_end_within_tokens)
        self.turned = True
        return [*actions, *life.handle(Turned(turn.token_ids))]

    def _count(self, life: Lifecycle) -> None:
        """A grammar begins with the answer."""
        if self._grammar and life.resumable and not self._gate.awaits_answer:
            life.handle(Counted(self._gate.answer_began))

    # --- out of it ------------------------------------------------------------------------------------------

    @property
    def reasoning_tokens(self) -> int:
        """Output tokens that are reasoning, markers included."""
        return self._text.reasoning_tokens

    @property
    def answer_tokens(self) -> int:
        """Output tokens that are not reasoning."""
        return self._text.answer_tokens

    @property
    def tool_call_tokens(self) -> int:
        """Those of them that are of tool calls."""
        return self._text.tool_call_tokens

    @property
    def stop_found(self) -> bool:
        """Whether a stop string is in the text."""
        return self._text.stop_matched is not None

    @property
    def reasoning_closed(self) -> bool:
        """Whether the caller got less thought than the model would have had."""
        unasked = self._request.reasoning_closed and self._request.thinking_budget_tokens != 0
        return self._gate.closed or unasked

    def pieces(self, token_ids: Sequence[int]) -> list[Piece]:
        """Text for new tokens that come by `stream`, by phase."""
        pieces = self._text.push(token_ids)
        if self._request.reasoning_excluded:
            for piece in pieces:
                if piece.phase is Phase.REASONING:
                    piece.text = ""
        return pieces

    def deltas(self, token_ids: Sequence[int]) -> Iterator[pb.Delta]:
        """Deltas for new tokens, one for each run of a phase."""
        return map(self._delta, self._text.push(token_ids))

    def last_deltas(self, reason: str) -> list[pb.Delta]:
        """What was held back, and the end; at least one delta, since the last one says why."""
        deltas = [self._delta(piece) for piece in self._text.finish()]
        if not deltas:
            deltas.append(pb.Delta(choice=self._index, phase=PHASES[self._text.phase]))
        last = deltas[-1]
        last.finish_reason = FINISH_REASONS["stop"] if self.stop_found else finish_reason(reason)
        if self._text.calls and last.finish_reason == pb.FINISH_REASON_STOP:
            last.finish_reason = pb.FINISH_REASON_TOOL_CALLS
        last.stop_matched = self._text.stop_matched or self._stop_reason
        last.reasoning_closed = self.reasoning_closed
        return deltas

    def ended_before(self) -> str | None:
        """Why a resumed generation is at its end already, if it is."""
        resumed = self._request.resumed
        if resumed is None:
            return None
        if resumed.finish_reason:
            return next((word for word, reason in FINISH_REASONS.items() if reason == resumed.finish_reason), "stop")
        ids, sampling = resumed.token_ids, self._request.sampling
        if ids and len(ids) >= self._request.min_tokens:
            if ids[-1] in sampling.stop_token_ids:
                self._stop_reason = str(ids[-1])
                return "stop"
            if ids[-1] in self._eos_ids and not sampling.ignore_eos:
                return "stop"
        if len(ids) >= self._request.max_tokens:
            return "length"
        return "stop" if self.stop_found else None

    def _delta(self, piece: Piece) -> pb.Delta:
        excluded = self._request.reasoning_excluded and piece.phase is Phase.REASONING
        text = "" if excluded else piece.text
        delta = pb.Delta(choice=self._index, phase=PHASES[piece.phase], text=text, token_ids=piece.token_ids)
        if (logprobs := self._logprobs.send(len(piece.token_ids))) and not excluded:
            delta.logprobs.extend(logprobs)
        for call in piece.calls:
            delta.tool_calls.add(index=call.index, id=call.id, name=call.name, arguments=call.arguments)
        return delta


def text_of(request: PreparedRequest, front: ModelFront) -> OutputText | ParsedText:
    """What makes text of a choice's tokens: by the markers alone, or by a parser where the request needs one."""
    sampling = request.sampling
    stops, include = request.stops, sampling.include_stop_in_output
    if request.reading is None:
        return OutputText(
            front.tokenizer,
            request.prompt_ids,
            front.markers,
            stops=stops,
            stop_in_reasoning=sampling.stop_in_reasoning,
            include_stop=include,
            min_tokens=request.min_tokens,
            skip_special_tokens=request.skip_special_tokens,
        )
    return ParsedText(
        front.tokenizer,
        request.prompt_ids,
        front.markers,
        request.reading.parser(),
        front.eos_ids.union(sampling.stop_token_ids),
        stops=stops,
        stop_in_reasoning=sampling.stop_in_reasoning,
        include_stop=include,
        min_tokens=request.min_tokens,
    )


def finish_reason(reason: str) -> pb.FinishReason:
    """The API's word for an engine's."""
    return FINISH_REASONS.get(reason, pb.FINISH_REASON_STOP)
