"""A request as the gateway runs it: checked, tokenised once, with every default filled in.

Everything a caller can get wrong is found here, before any worker learns of the request. Each subject has a file of its
own beside this one: `prompt`, `sampling`, `thinking`, `resume`.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass

from baton.v1.inference_pb2 import GenerateRequest, Sampling
from cluster.errors import DeadlineExceeded, InvalidRequest
from cluster.spec.config import ClusterSpec
from orchestrator.policy.phases import open_at_end
from orchestrator.request.call_parsing import CallReading
from orchestrator.request.chat_template import THINKING_SWITCHES
from orchestrator.request.fields import check_labels
from orchestrator.request.lifecycle_messages import Handoff
from orchestrator.request.model_front import ModelFront
from orchestrator.request.prompt import prompt_ids, template_variables
from orchestrator.request.reasoning_ask import ReasoningAsk, read_ask
from orchestrator.request.resume import Resumed, resumed
from orchestrator.request.sampling import checked_sampling, handoff_of
from orchestrator.request.thinking import closed_reasoning, effort_of, reasoning_limit_tokens, thinking_budget
from orchestrator.request.tools import tool_ask, tools_of

MAX_DEADLINE_S = 10 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """What the gateway runs. ``deadline_s`` is on the monotonic clock; see `sampling.choice_seed` for the seeds."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    min_tokens: int
    choices: int
    handoff: Handoff
    resumable: bool
    thinking_budget_tokens: int | None
    """What the caller asked for, or the cluster gave instead."""
    reasoning_limit_tokens: int | None
    """Reasoning tokens after which the trace is closed: the budget, and what leaves tokens for the answer."""
    reasoning_closed: bool
    """The prompt closes the reasoning: none was asked for, or there are no tokens for any."""
    reasoning_excluded: bool
    """The deltas of the reasoning are to have no text."""
    stops: tuple[str, ...]
    skip_special_tokens: bool
    deadline_s: float
    priority: int
    tenant: str
    session: str
    resumed: Resumed | None = None
    request_class: str = ""
    """What output lengths are learned by: tenant, and effort or that the prompt alone is scored."""
    reduced_budget: bool = False
    """Whether the thinking budget is smaller than what was asked for."""
    reading: CallReading | None = None
    """What reads the output, where it may hold tool calls."""

    @property
    def grammar_covers_reasoning(self) -> bool:
        """Whether the grammar is of the whole output, not of the answer alone."""
        return _covers_reasoning(self.reading, self.sampling)

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are asked for."""
        return self.sampling.HasField("prompt_logprobs")


def prepare(
    request: GenerateRequest, front: ModelFront, spec: ClusterSpec, *, now_s: float, severity: float = 0.0
) -> PreparedRequest:
    """Check a request and fill in what it leaves out; ``severity`` is how scarce KV is, see `policy.budget_governor`.

    Raises:
        InvalidRequest: a field is malformed or out of range, or asks for what cannot be kept.
        DeadlineExceeded: the deadline is past.
    """
    check_labels(request)
    deadline_s = _deadline_s(request, spec)
    variables = template_variables(request)
    ask = read_ask(request, variables, spec.model.reasoning)
    prompt = list(prompt_ids(request, front, {**ask.template_variables(), **variables}))
    sampling = checked_sampling(request.sampling, front, spec)
    priority = max(-1000, min(spec.tenant(request.tenant).max_priority, request.priority))
    scored = sampling.HasField("prompt_logprobs")  # then nothing is added to the prompt that was not asked for
    budget = thinking_budget(request, ask, front, spec, priority=priority, severity=0.0 if scored else severity)
    closed = budget.tokens == 0 and front.markers is not None
    if closed and front.markers is not None:
        prompt += closed_reasoning(prompt, front.markers, template_closed=_template_closed(request, ask, front))
    most = _most_tokens(prompt, front)
    _check_entries(sampling, len(prompt), spec.gateway.max_prompt_logprobs)
    wanted = _wanted_tokens(sampling, spec, most)
    limit = reasoning_limit_tokens(budget, front, spec, max_tokens=min(wanted, most), ignore_eos=sampling.ignore_eos)
    limit = limit or None if scored else limit
    if limit == 0 and not closed and (added := _end_marker(prompt, front, most)):
        prompt += added
        most, closed = most - len(added), True
    thinks = front.markers is not None and open_at_end(prompt, front.markers)
    reading = _reading(request, front, sampling, prompt)
    handoff = handoff_of(sampling, thinks=thinks) if wanted else Handoff.FIRST_TOKEN
    effort = effort_of(ask, spec) if wanted else "prompt"
    return PreparedRequest(
        request_id=request.request_id or uuid.uuid4().hex,
        prompt_ids=tuple(prompt),
        sampling=sampling,
        max_tokens=min(wanted, most),
        min_tokens=min(sampling.min_tokens, most),
        choices=sampling.n or 1,
        handoff=handoff,
        resumable=handoff is Handoff.FIRST_TOKEN,
        thinking_budget_tokens=budget.tokens,
        reasoning_limit_tokens=None if _covers_reasoning(reading, sampling) else limit,
        reasoning_closed=closed,
        reasoning_excluded=request.reasoning.exclude,
        stops=tuple(sampling.stop),
        skip_special_tokens=sampling.skip_special_tokens if sampling.HasField("skip_special_tokens") else True,
        deadline_s=now_s + min(deadline_s, MAX_DEADLINE_S),
        priority=priority,
        tenant=request.tenant,
        session=request.session,
        resumed=_resumed(request, front, prompt, sampling, min(wanted, most), handoff),
        request_class=f"{request.tenant}/{effort}" if effort else request.tenant,
        reduced_budget=budget.reduced,
        reading=reading,
    )


def _end_marker(prompt: list[int], front: ModelFront, most: int) -> tuple[int, ...]:
    """What closes the reasoning that the prompt opens; nothing where it opens none, or no tokens are left for it."""
    markers = front.markers
    if markers is None or most <= len(markers.end_ids) or not open_at_end(prompt, markers):
        return ()
    return markers.end_ids


def _deadline_s(request: GenerateRequest, spec: ClusterSpec) -> float:
    """Seconds that the request may take."""
    deadline_s = request.deadline_s if request.HasField("deadline_s") else spec.gateway.default_deadline_s
    if math.isnan(deadline_s) or deadline_s <= 0:
        raise DeadlineExceeded("the deadline was past when the request came")
    return deadline_s


def _covers_reasoning(reading: CallReading | None, sampling: Sampling) -> bool:
    return reading is not None and reading.reads_all and sampling.HasField("structured_output")


def _reading(request: GenerateRequest, front: ModelFront, sampling: Sampling, prompt: list[int]) -> CallReading | None:
    """What reads the output: a parser where there are tools, or where the model's whole output needs one.

    The sampling gets the grammar that the tools ask for.
    """
    ask, calls = tool_ask(request), front.calls
    if calls is None:
        if ask is not None and ask.forced:
            raise InvalidRequest(
                f"tool_choice: tool calls of {front.name} are not parsed (model.tool_parser is none), so none can be "
                "required",
                field="tool_choice",
            )
        return None
    if ask is None and not (calls.reads_all and request.HasField("chat")):
        return None
    reading = calls.reading(ask, sampling, prompt)
    if reading.constraint is not None:
        sampling.structured_output.CopyFrom(reading.constraint)
    return reading


def _template_closed(request: GenerateRequest, ask: ReasoningAsk, front: ModelFront) -> bool:
    """Whether only an open trace is left to close: the template has a switch of its own, or an answer goes on."""
    if request.WhichOneof("input") != "chat":
        return False
    if request.chat.continue_final_message or ask.wanted is not False:
        return request.chat.continue_final_message
    tools = tools_of(request)
    return any(front.template.reads(name, tools) for name in THINKING_SWITCHES)


def _most_tokens(prompt: list[int], front: ModelFront) -> int:
    """Tokens that the model can take behind the prompt, at least 1."""
    most = front.max_model_len_tokens - len(prompt)
    if most < 1:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens and the model takes {front.max_model_len_tokens} "
            "for prompt and output together; shorten it",
            field="prompt",
        )
    return most


def _wanted_tokens(sampling: Sampling, spec: ClusterSpec, most: int) -> int:
    """Output tokens asked for; 0 where the prompt alone is to be scored."""
    wanted = sampling.max_tokens if sampling.HasField("max_tokens") else (spec.gateway.default_max_tokens or most)
    if wanted < 1 and not sampling.HasField("prompt_logprobs"):
        raise InvalidRequest("max_tokens=0: expected at least 1, or prompt_logprobs", field="sampling.max_tokens")
    if wanted < 1 and sampling.n > 1:
        raise InvalidRequest(f"n={sampling.n}: max_tokens=0 leaves nothing to choose", field="sampling.n")
    if sampling.min_tokens > wanted:
        raise InvalidRequest(
            f"min_tokens={sampling.min_tokens}: expected at most max_tokens={wanted}", field="sampling.min_tokens"
        )
    return wanted


def _check_entries(sampling: Sampling, prompt_tokens: int, most: int) -> None:
    """Bound what is kept for a prompt's log-probabilities."""
    if sampling.HasField("prompt_logprobs") and prompt_tokens * (sampling.prompt_logprobs + 1) > most:
        raise InvalidRequest(
            f"prompt_logprobs={sampling.prompt_logprobs}: with {prompt_tokens} prompt tokens these are "
            f"{prompt_tokens * (sampling.prompt_logprobs + 1)} log-probabilities; expected at most {most}",
            field="sampling.prompt_logprobs",
        )


def _resumed(
    request: GenerateRequest,
    front: ModelFront,
    prompt: list[int],
    sampling: Sampling,
    max_tokens: int,
    handoff: Handoff,
) -> Resumed | None:
    """What the caller has of it already, if it has anything."""
    if not request.HasField("resume"):
        return None
    return resumed(
        request.resume,
        prompt_ids=prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        vocab_size=front.vocab_size,
        resumable=handoff is Handoff.FIRST_TOKEN,
        markers=front.markers,
    )
