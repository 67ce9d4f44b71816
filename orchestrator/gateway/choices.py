"""All choices of a request, as the gateway serves and accounts for them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from baton.v1 import inference_pb2 as pb
from orchestrator.gateway.choice_run import ChoiceRun
from orchestrator.gateway.delta_sink import DeltaSink
from orchestrator.gateway.fan_out import fan_out
from orchestrator.gateway.model_serving import ModelServing
from orchestrator.request.prepare import PreparedRequest


class Choices:
    """Owns the runs of a request's choices.

    Args:
        prepared: The checked request.
        model: Serves it.
        received_s: When it came, on the monotonic clock.
        received_unix_s: The same on the wall clock.
    """

    def __init__(
        self, prepared: PreparedRequest, model: ModelServing, received_s: float, received_unix_s: float
    ) -> None:
        self._prepared = prepared
        prompt, times = model.shared_prompt(prepared), (received_s, received_unix_s)
        self.runs = [model.new_run(prepared, index, prompt, *times) for index in range(prepared.choices)]

    def stream(self, sink: DeltaSink | None = None) -> AsyncGenerator[pb.GenerateResponse]:
        """Their events; closing it cancels them. ``sink`` is given the deltas of a choice that is alone."""
        return self.runs[0].run(sink) if len(self.runs) == 1 else fan_out(self.runs)

    def whole(self) -> Sequence[ChoiceRun]:
        """Runs that got all of their tokens: once the stream is over, all."""
        return self.runs

    def finished(self) -> pb.Finished:
        """What ends the stream."""
        usages = [run.summary.usage for run in self.runs]
        return pb.Finished(
            request_id=self._prepared.request_id,
            usage=summed(self._prepared, usages),
            choices=[run.summary for run in self.runs],
            cost_usd=sum(run.cost_usd for run in self.runs),
        )


def summed(prepared: PreparedRequest, usages: Sequence[pb.Usage]) -> pb.Usage:
    """The usage of a request: its prompt once, and the output of all."""
    return pb.Usage(
        prompt_tokens=usages[0].prompt_tokens,
        cached_tokens=usages[0].cached_tokens,
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        answer_tokens=sum(usage.answer_tokens for usage in usages),
        tool_call_tokens=sum(usage.tool_call_tokens for usage in usages),
        reduced_budget_tokens=prepared.thinking_budget_tokens or 0 if prepared.reduced_budget else None,
        clipped_traces=sum(usage.clipped_traces for usage in usages),
        thinking_budget_tokens=prepared.thinking_budget_tokens,
    )
