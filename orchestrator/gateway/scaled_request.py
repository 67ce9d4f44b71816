"""Branches of one request with inference scaling, as runs of the gateway; see `orchestrator.thinking`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest
from orchestrator.gateway.choice_run import ChoiceRun
from orchestrator.gateway.choices import summed
from orchestrator.gateway.delta_sink import DeltaSink
from orchestrator.gateway.model_serving import ModelServing
from orchestrator.gateway.siblings import Sibling
from orchestrator.policy.closing import reasoning_limit
from orchestrator.policy.thinking.budget import Lengths, Meters, least
from orchestrator.policy.thinking.run import ThinkingRun, ends
from orchestrator.policy.thinking.state import End
from orchestrator.request.lifecycle import StopMatched
from orchestrator.request.prepare import PreparedRequest
from orchestrator.thinking.ask import FIELD, ThinkingAsk
from orchestrator.thinking.live import LiveThinking
from orchestrator.thinking.report import report

Prepare = Callable[[pb.GenerateRequest], PreparedRequest]


class GatewayBranch:
    """A run as a branch; it begins once the one before it has workers, or brings the KV there."""

    def __init__(self, run: ChoiceRun, before: Sibling | None) -> None:
        self._run = run
        self._before = before

    @property
    def tokens(self) -> int:
        """Output tokens so far."""
        return len(self._run.life.output_ids)

    @property
    def cost_usd(self) -> float:
        """Its share of the workers' price so far."""
        return self._run.cost_usd

    async def run(self) -> AsyncGenerator[pb.GenerateResponse]:
        """Its events."""
        if self._before is not None:
            await self._before.settled.wait()
        async with contextlib.aclosing(self._run.run()) as stream:
            async for message in stream:
                yield message

    def close(self) -> None:
        """Close its reasoning."""
        self._run.close_reasoning()

    def cut_off(self) -> None:
        """End it as it stands."""
        self._run.post(StopMatched("length"))

    def over(self) -> None:
        """It holds up nobody, though it may never have begun."""
        self._run.sibling.settled.set()


class ScaledRequest:
    """Owns the runs of one request, and what measures them.

    Args:
        ask: What was asked for.
        request: As it came, for forks.
        prepared: The checked request.
        model: Serves it.
        prepare: Checks the request of a fork.
        received_s: When it came, on the monotonic clock.
        received_unix_s: The same on the wall clock.

    Raises:
        InvalidRequest: no answer would fit into the budget.
    """

    def __init__(
        self,
        ask: ThinkingAsk,
        request: pb.GenerateRequest,
        prepared: PreparedRequest,
        model: ModelServing,
        prepare: Prepare,
        received_s: float,
        received_unix_s: float,
    ) -> None:
        self.ask = ask
        self.runs: list[ChoiceRun] = []
        self._prepared = prepared
        self._model = model
        self._prepare = prepare
        self._times = (received_s, received_unix_s)
        self._begun = False
        self._requests = {-1: request}
        """What each fork goes on from; the first request under -1."""
        self._prompt = model.shared_prompt(replace(prepared, choices=ask.strategy.cap))
        self._asks_logprobs = prepared.sampling.HasField("logprobs")
        lengths = self._lengths()
        _check_budget(ask, self.meters(), lengths)
        self.thinking = ThinkingRun(ask.strategy, ask.budget, lengths)
        self._live = LiveThinking(ask, self.thinking, self, keeps_logprobs=self._asks_logprobs)
        self._live.begin()
        self._begun = True

    def stream(self, sink: DeltaSink | None = None) -> AsyncGenerator[pb.GenerateResponse]:
        """What the caller gets; closing it cancels all branches. ``sink`` gets nothing: an answer has many traces."""
        return self._live.stream()

    def whole(self) -> list[ChoiceRun]:
        """Runs that got all of their tokens."""
        ended = {trace.branch for trace in self.thinking.ended if trace.end in (End.FINISHED, End.CUT)}
        return [run for run in self.runs if run.index in ended]

    def finished(self) -> pb.Finished:
        """What ends the stream: the branch whose answer was given, and an account of all."""
        thinking, choice = self.thinking, self.thinking.choice
        assert choice is not None
        answer = pb.ChoiceSummary()
        answer.CopyFrom(self.runs[choice.branch].summary)
        answer.choice = 0
        usage = summed(self._prepared, [_usage(run) for run in self.runs])
        account = report(self.ask, thinking, self._live.records, self.meters())
        self._model.metrics.strategies.count(account, ends(thinking))
        return pb.Finished(
            request_id=self._prepared.request_id,
            usage=usage,
            choices=[answer],
            cost_usd=account.cost_usd,
            inference_scaling=account,
        )

    # --- what the live runner asks (`Branches`) ---------------------------------------------------------------

    def start(self, branch: int, limit_tokens: int) -> GatewayBranch:
        """A branch from the prompt."""
        before = self.runs[-1].sibling if self.runs else None
        return self._new(branch, self._branch_request(self._prepared, branch, limit_tokens), before)

    def fork(self, branch: int, limit_tokens: int, of: int, answer: str, text: str) -> GatewayBranch:
        """A branch from an ended one's answer and a further turn of the user, beside it on its worker.

        Raises:
            InvalidRequest: it would be too long.
        """
        ended = self.runs[of]
        request = pb.GenerateRequest()
        request.CopyFrom(self._requests.get(of, self._requests[-1]))
        if request.HasField("chat"):
            request.chat.messages.add(role="assistant", content=answer)
            request.chat.messages.add(role="user", content=text)
        else:
            turn = self._model.front.tokenizer.encode(f"\n\n{text}\n", add_special_tokens=False).ids
            ids = [*ended.life.prompt_ids, *ended.life.output_ids, *turn]
            request.prompt_token_ids.CopyFrom(pb.TokenIds(ids=ids))
        self._requests[branch] = request
        prepared = self._prepare(request)
        self._prompt = self._model.shared_prompt(replace(prepared, choices=1))
        if ended.life.decode_id is not None:
            self._prompt.add(ended.life.decode_id)
        return self._new(branch, self._branch_request(prepared, branch, limit_tokens), None)

    def meters(self) -> Meters:
        """What is spent, at the rates of this request's own branches where those are known."""
        model, now_s = self._model, time.monotonic()
        rates = [
            (now_s - self._times[0] - run.summary.timings.first_token_s) / len(run.life.output_ids)
            for run in self.runs
            if len(run.life.output_ids) >= 8 and not run.life.ended
        ]
        itl_s = max(rates, default=model.pace.itl_s)
        usd_per_s = model.usd_per_request_s([run for run in self.runs if not run.life.ended])
        return Meters(
            seconds=now_s - self._times[0],
            usd=sum(run.cost_usd for run in self.runs),
            itl_s=itl_s,
            usd_per_s=usd_per_s,
            start_s=model.pace.start_s,
            start_usd=model.pace.start_s * usd_per_s,
            may_start=0 if model.placer.waiting else 1 << 20,
        )

    # --- pieces -----------------------------------------------------------------------------------------------

    def _new(self, branch: int, request: PreparedRequest, before: Sibling | None) -> GatewayBranch:
        run = self._model.new_run(request, branch, self._prompt, *self._times)
        if self._begun:
            self._model.traffic.arrived(time.monotonic(), request.request_class, 0, 1)
        self.runs.append(run)
        return GatewayBranch(run, before)

    def _lengths(self) -> Lengths:
        prepared, model = self._prepared, self._model
        closing_tokens = 1
        if model.reasoning is not None and model.front.markers is not None:
            closing_tokens += len(model.front.markers.end_ids) + model.reasoning.answer_reserve_tokens
        return Lengths(prepared.max_tokens, model.forecast.output_tokens(prepared), closing_tokens)

    def _branch_request(self, prepared: PreparedRequest, branch: int, limit_tokens: int) -> PreparedRequest:
        """The request of one branch: its own limit, and log-probabilities where the strategy needs them."""
        model, limit_tokens = self._model, min(limit_tokens, prepared.max_tokens)
        reasoning, markers = model.reasoning, model.front.markers
        most_reasoning = prepared.reasoning_limit_tokens
        if reasoning is not None and markers is not None and not prepared.sampling.ignore_eos:
            most_reasoning = reasoning_limit(
                prepared.thinking_budget_tokens,
                max_tokens=limit_tokens,
                answer_reserve_tokens=reasoning.answer_reserve_tokens,
                window_tokens=reasoning.closing_window_tokens,
                markers=markers,
            )
        sampling = prepared.sampling
        if self.ask.strategy.scores and not self._asks_logprobs:
            sampling = pb.Sampling()
            sampling.CopyFrom(prepared.sampling)
            sampling.logprobs = 0
        return replace(
            prepared,
            max_tokens=limit_tokens,
            min_tokens=min(prepared.min_tokens, limit_tokens),
            reasoning_limit_tokens=most_reasoning,
            sampling=sampling,
            choices=1,
        )


def _usage(run: ChoiceRun) -> pb.Usage:
    """All that a run made, whether or not it has ended."""
    made = len(run.life.output_ids)
    answer = min(run.answer_tokens, made)
    prompt_tokens = len(run.request.prompt_ids)
    return pb.Usage(
        prompt_tokens=prompt_tokens,
        cached_tokens=run.cached_tokens,
        reasoning_tokens=made - answer,
        answer_tokens=answer,
    )


def _check_budget(ask: ThinkingAsk, meters: Meters, lengths: Lengths) -> None:
    need = least(ask.budget, replace(meters, seconds=0.0, usd=0.0), lengths)
    for name in ("tokens", "seconds", "usd"):
        if (minimum := getattr(need, name)) is not None:
            field = f"{FIELD}.budget.{name}"
            given = getattr(ask.budget, name)
            raise InvalidRequest(
                f"{field}={given:g}: no answer fits into it at present; expected at least {minimum:.4g}", field=field
            )
