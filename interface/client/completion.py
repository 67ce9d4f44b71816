"""What a generation came to: its events folded into one object per choice. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.v1 import inference_pb2

Event = (
    inference_pb2.Admitted
    | inference_pb2.PromptLogprobs
    | inference_pb2.FirstToken
    | inference_pb2.Delta
    | inference_pb2.Progress
    | inference_pb2.Finished
)
"""What `generate` yields. Match on the class; `Finished` is the last."""


@dataclass(slots=True)
class Choice:
    """One of the ``n`` answers. ``summary`` has its usage, timings in seconds, workers and handoff figures."""

    text: str = ""
    reasoning: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[inference_pb2.TokenLogprobs] = field(default_factory=list)
    tool_calls: list[inference_pb2.ToolCall] = field(default_factory=list)
    finish_reason: inference_pb2.FinishReason = inference_pb2.FINISH_REASON_UNSPECIFIED
    summary: inference_pb2.ChoiceSummary = field(default_factory=inference_pb2.ChoiceSummary)


@dataclass(slots=True)
class Completion:
    """A finished generation. The short forms (``text`` and so on) speak of the first choice."""

    request_id: str = ""
    choices: list[Choice] = field(default_factory=list)
    usage: inference_pb2.Usage = field(default_factory=inference_pb2.Usage)
    cost_usd: float = 0.0
    inference_scaling: inference_pb2.InferenceScalingReport = field(
        default_factory=inference_pb2.InferenceScalingReport
    )
    """The account of a strategy, where one was asked for."""
    prompt_logprobs: list[inference_pb2.TokenLogprobs] = field(default_factory=list)
    """One for each token of the prompt, where they were asked for; see `PromptLogprobs` of the proto."""

    @property
    def text(self) -> str:
        """The answer."""
        return self.choices[0].text

    @property
    def reasoning(self) -> str:
        """What the model thought before it."""
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> list[inference_pb2.ToolCall]:
        """What the model asks to be run."""
        return self.choices[0].tool_calls

    @property
    def token_ids(self) -> list[int]:
        """All output tokens, reasoning first."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> inference_pb2.FinishReason:
        """Why it ended."""
        return self.choices[0].finish_reason

    @property
    def timings(self) -> inference_pb2.Timings:
        """When what happened, in seconds since the gateway received the request."""
        return self.choices[0].summary.timings

    @property
    def handoff(self) -> inference_pb2.HandoffFigures:
        """What moved between prefill and decode."""
        return self.choices[0].summary.handoff

    @property
    def workers(self) -> inference_pb2.Workers:
        """The workers that served it."""
        return self.choices[0].summary.workers

    def add(self, event: Event) -> None:
        """Take the next event.

        Example:
            >>> completion = Completion()
            >>> completion.add(inference_pb2.Delta(phase=inference_pb2.PHASE_ANSWER, text="Hi", token_ids=[5]))
            >>> completion.text, completion.token_ids
            ('Hi', [5])
        """
        match event:
            case inference_pb2.Delta():
                self._add_delta(event)
            case inference_pb2.PromptLogprobs():
                self.prompt_logprobs.extend(event.tokens)
            case inference_pb2.Finished():
                self.request_id, self.usage, self.cost_usd = event.request_id, event.usage, event.cost_usd
                self.inference_scaling = event.inference_scaling
                for summary in event.choices:
                    choice = self._choice(summary.choice)
                    choice.summary, choice.finish_reason = summary, summary.finish_reason

    def _add_delta(self, delta: inference_pb2.Delta) -> None:
        choice = self._choice(delta.choice)
        if delta.phase == inference_pb2.PHASE_REASONING:
            choice.reasoning += delta.text
        else:
            choice.text += delta.text
        for piece in delta.tool_calls:
            if piece.index == len(choice.tool_calls):
                choice.tool_calls.append(inference_pb2.ToolCall(id=piece.id, name=piece.name))
            choice.tool_calls[piece.index].arguments += piece.arguments
        choice.token_ids.extend(delta.token_ids)
        choice.logprobs.extend(delta.logprobs)
        choice.finish_reason = delta.finish_reason or choice.finish_reason

    def _choice(self, index: int) -> Choice:
        while len(self.choices) <= index:
            self.choices.append(Choice())
        return self.choices[index]


def event_of(response: inference_pb2.GenerateResponse) -> Event | None:
    """The event inside a response; None for one of a later version."""
    kind = response.WhichOneof("event")
    return getattr(response, kind) if kind else None
