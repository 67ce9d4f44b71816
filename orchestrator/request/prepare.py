"""A request as the gateway runs it: checked, tokenised once, with every default filled in.

Everything a caller can get wrong is found here, before any worker hears of the request.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.v1.inference_pb2 import Chat, Effort, GenerateRequest, Sampling
from cluster.errors import ConfigError, DeadlineExceeded, InvalidRequest, ModelNotFound
from cluster.spec.config import ClusterSpec
from orchestrator.policy.budget_governor import BudgetAsk
from orchestrator.policy.budget_governor import budget as reduced_budget
from orchestrator.policy.closing import reasoning_limit
from orchestrator.request.lifecycle import Handoff
from orchestrator.request.output_text import ReasoningMarkers, open_at_end
from orchestrator.request.resume import Resumed, resumed

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_LABEL_CHARS = 256
_EFFORT_NAMES = {
    Effort.EFFORT_NONE: "none",
    Effort.EFFORT_LOW: "low",
    Effort.EFFORT_MEDIUM: "medium",
    Effort.EFFORT_HIGH: "high",
}
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, 100.0, "0 to 100"),
    "top_p": (1e-9, 1.0, "above 0, at most 1"),
    "top_k": (-1, 1 << 30, "-1 (off) or more"),
    "min_p": (0.0, 1.0, "0 to 1"),
    "presence_penalty": (-2.0, 2.0, "-2 to 2"),
    "frequency_penalty": (-2.0, 2.0, "-2 to 2"),
    "repetition_penalty": (1e-9, 100.0, "above 0, at most 100"),
    "seed": (-(1 << 63), (1 << 63) - 1, "a 64-bit integer"),
}
_DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """What the gateway runs. ``deadline_s`` is on the monotonic clock; see `choice_seed` for the seeds."""

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
    """Reasoning tokens after which the trace is closed: the budget, and what leaves room for the answer."""
    reasoning_closed: bool
    """The prompt closes the reasoning: none was asked for, or there is no room for any."""
    stops: tuple[str, ...]
    skip_special_tokens: bool
    deadline_s: float
    priority: int
    tenant: str
    session: str
    resumed: Resumed | None = None
    request_class: str = ""
    """What output lengths are learned by: tenant and effort."""
    reduced_budget: bool = False
    """Whether the thinking budget is smaller than what was asked for."""


@dataclass(frozen=True, slots=True)
class ModelFront:
    """The parts of a model that a gateway needs: tokeniser, template, defaults and limits; no weights."""

    name: str
    max_model_len_tokens: int
    vocab_size: int
    tokenizer: Any  # tokenizers.Tokenizer
    template: Any  # transformers tokenizer, for its chat template
    sampling_defaults: dict[str, Any] = field(default_factory=dict)
    markers: ReasoningMarkers | None = None
    eos_ids: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the model's own special tokens (bos)."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=True).ids
        return ids


def load_model_front(spec: ClusterSpec, folder: Path) -> ModelFront:
    """Read tokeniser, template and defaults from the model folder.

    Raises:
        ConfigError: no fast tokeniser, or the reasoning markers cannot be encoded.
    """
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=spec.model.trust_remote_code)
    tokenizer = getattr(template, "backend_tokenizer", None)
    if tokenizer is None:
        raise ConfigError(f"model.path={folder}: it has no fast tokenizer (tokenizer.json); convert it first")
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    defaults: dict[str, Any] = {}
    eos = [config.get("eos_token_id"), template.eos_token_id]
    if (folder / "generation_config.json").is_file():
        given = json.loads((folder / "generation_config.json").read_text())
        defaults = {name: given[name] for name in _DEFAULTED if given.get(name) is not None}
        eos.append(given.get("eos_token_id"))
    markers = None
    if spec.model.reasoning is not None:
        start, end = (
            tuple(tokenizer.encode(text, add_special_tokens=False).ids)
            for text in (spec.model.reasoning.start, spec.model.reasoning.end)
        )
        if not start or not end:
            raise ConfigError("model.reasoning: the tokenizer makes no token of start or end")
        markers = ReasoningMarkers(start, end)
    return ModelFront(
        name=spec.model.served_name,
        max_model_len_tokens=spec.model.max_model_len_tokens,
        vocab_size=int(config.get("vocab_size") or tokenizer.get_vocab_size()),
        tokenizer=tokenizer,
        template=template,
        sampling_defaults=defaults,
        markers=markers,
        eos_ids=frozenset(
            token for ids in eos for token in (ids if isinstance(ids, list) else [ids]) if isinstance(token, int)
        ),
    )


def prepare(
    request: GenerateRequest, front: ModelFront, spec: ClusterSpec, *, now_s: float, severity: float = 0.0
) -> PreparedRequest:
    """Check a request and fill in what it leaves out; ``severity`` is how scarce KV is, see `policy.budget_governor`.

    Raises:
        ModelNotFound: another model was asked for.
        InvalidRequest: a field is malformed or out of range, or asks for what cannot be kept.
        DeadlineExceeded: the deadline is past.
    """
    if request.model and request.model != front.name:
        raise ModelNotFound(f"no model {request.model[:MAX_LABEL_CHARS]!r} here; this cluster serves {front.name!r}")
    for name in ("tenant", "session", "request_id"):
        label = getattr(request, name)
        if len(label) > MAX_LABEL_CHARS:
            raise InvalidRequest(f"{name} is longer than {MAX_LABEL_CHARS} characters", field=name)
        if not label.isprintable():
            # The id goes to the engines and comes back in tickets, which refuse such ids, and then blocks stay behind.
            raise InvalidRequest(f"{name} has characters that cannot be printed", field=name)
    deadline = request.deadline_s if request.HasField("deadline_s") else spec.gateway.default_deadline_s
    if math.isnan(deadline) or deadline <= 0:
        raise DeadlineExceeded("the deadline was past when the request came")
    prompt = list(_prompt_ids(request, front))
    sampling = Sampling()
    sampling.CopyFrom(request.sampling)
    _check_sampling(sampling, front, spec)
    for name, value in front.sampling_defaults.items():
        if not sampling.HasField(name):
            setattr(sampling, name, value)
    budget = _budget(request, front, spec)
    priority = max(-1000, min(spec.tenant(request.tenant).max_priority, request.priority))
    effort, reduced = _effort(request, spec), None
    if severity > 0 and front.markers is not None and not request.HasField("resume"):
        ask = BudgetAsk(budget, request.tenant, priority, effort, front.max_model_len_tokens)
        reduced = reduced_budget(ask, severity, spec.autoscaling.thinking_budgets)
        budget = budget if reduced is None else reduced
    closed = budget == 0 and front.markers is not None
    if closed and front.markers is not None:
        prompt += _closed_reasoning(prompt, front.markers)
    room = front.max_model_len_tokens - len(prompt)
    if room < 1:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens and the model takes {front.max_model_len_tokens} "
            "for prompt and output together; shorten it",
            field="prompt",
        )
    wanted = sampling.max_tokens if sampling.HasField("max_tokens") else (spec.gateway.default_max_tokens or room)
    if wanted < 1:
        raise InvalidRequest("max_tokens=0: expected at least 1", field="sampling.max_tokens")
    if sampling.min_tokens > wanted:
        raise InvalidRequest(
            f"min_tokens={sampling.min_tokens}: expected at most max_tokens={wanted}", field="sampling.min_tokens"
        )
    limit = None
    if front.markers is not None and spec.model.reasoning is not None:
        reasoning = spec.model.reasoning
        limit = budget
        if not sampling.ignore_eos:  # its output is to be as long as asked for, whatever it says
            limit = reasoning_limit(
                budget,
                max_tokens=min(wanted, room),
                answer_reserve_tokens=reasoning.answer_reserve_tokens,
                window_tokens=reasoning.closing_window_tokens,
                markers=front.markers,
            )
        width = len(front.markers.end_ids)
        if limit == 0 and not closed and room > width and open_at_end(prompt, front.markers):
            prompt += front.markers.end_ids
            room, closed = room - width, True
    thinks = front.markers is not None and open_at_end(prompt, front.markers)
    handoff = _handoff(sampling, thinks=thinks)
    resumable = handoff is Handoff.FIRST_TOKEN
    taken_up = None
    if request.HasField("resume"):
        taken_up = resumed(
            request.resume,
            prompt_ids=prompt,
            sampling=sampling,
            max_tokens=min(wanted, room),
            vocab_size=front.vocab_size,
            resumable=resumable,
            markers=front.markers,
        )
    return PreparedRequest(
        request_id=request.request_id or uuid.uuid4().hex,
        prompt_ids=tuple(prompt),
        sampling=sampling,
        max_tokens=min(wanted, room),
        min_tokens=min(sampling.min_tokens, room),
        choices=sampling.n or 1,
        handoff=handoff,
        resumable=resumable,
        thinking_budget_tokens=budget,
        reasoning_limit_tokens=limit,
        reasoning_closed=closed,
        stops=tuple(sampling.stop),
        skip_special_tokens=sampling.skip_special_tokens if sampling.HasField("skip_special_tokens") else True,
        deadline_s=now_s + min(deadline, 10 * 365 * 86400.0),
        priority=priority,
        tenant=request.tenant,
        session=request.session,
        resumed=taken_up,
        request_class=f"{request.tenant}/{effort}" if effort else request.tenant,
        reduced_budget=reduced is not None,
    )


def _effort(request: GenerateRequest, spec: ClusterSpec) -> str:
    """Effort by name, empty without one; a budget in tokens counts as the least effort that allows it."""
    effort = ""
    if request.HasField("reasoning"):
        effort = _EFFORT_NAMES.get(request.reasoning.effort, "")
        if request.reasoning.HasField("budget_tokens") and spec.model.reasoning is not None:
            budgets = sorted((tokens, name) for name, tokens in spec.model.reasoning.effort_budgets_tokens.items())
            enough = (name for tokens, name in budgets if tokens >= request.reasoning.budget_tokens)
            effort = next(enough, "high")
    return effort


def _prompt_ids(request: GenerateRequest, front: ModelFront) -> Sequence[int]:
    match request.WhichOneof("input"):
        case "prompt":
            if not request.prompt:
                raise InvalidRequest("the prompt is empty", field="prompt")
            # No token is shorter than a character's share of the longest one; this bounds the tokeniser's work.
            if len(request.prompt) > 64 * front.max_model_len_tokens:
                raise InvalidRequest(
                    f"the prompt has {len(request.prompt)} characters, which cannot fit the model's "
                    f"{front.max_model_len_tokens} tokens",
                    field="prompt",
                )
            ids: Sequence[int] = front.encode(request.prompt)
        case "prompt_token_ids":
            ids = list(request.prompt_token_ids.ids)
            bad = next((token for token in ids if token >= front.vocab_size), None)
            if bad is not None:
                raise InvalidRequest(
                    f"token id {bad} is out of the vocabulary (0 to {front.vocab_size - 1})", field="prompt_token_ids"
                )
        case "chat":
            ids = _chat_ids(request.chat, front)
        case _:
            raise InvalidRequest("give a prompt, prompt_token_ids or chat messages", field="input")
    if not ids:
        raise InvalidRequest("the prompt is empty", field=request.WhichOneof("input") or "input")
    return ids


def _chat_ids(chat: Chat, front: ModelFront) -> Sequence[int]:
    if not chat.messages:
        raise InvalidRequest("messages is empty", field="messages")
    if sum(len(message.content) for message in chat.messages) > 64 * front.max_model_len_tokens:
        raise InvalidRequest("the messages are longer than the model can take", field="messages")
    messages: list[dict[str, Any]] = []
    for index, message in enumerate(chat.messages):
        if not message.role:
            raise InvalidRequest(f"messages[{index}].role is empty", field=f"messages[{index}].role")
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name:
            entry["name"] = message.name
        if message.tool_call_id:
            entry["tool_call_id"] = message.tool_call_id
        if message.tool_calls_json:
            entry["tool_calls"] = _json(message.tool_calls_json, f"messages[{index}].tool_calls_json")
        messages.append(entry)
    if not front.template.chat_template:
        raise InvalidRequest("the model has no chat template; send a prompt", field="messages")
    try:
        text = front.template.apply_chat_template(
            messages,
            tools=_json(chat.tools_json, "tools_json") if chat.tools_json else None,
            tokenize=False,
            add_generation_prompt=chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
        )
    except InvalidRequest:
        raise
    except Exception as error:  # templates are code of the model's author and raise anything
        raise InvalidRequest(f"the model's chat template refused the messages: {error}", field="messages") from error
    # The template writes bos and the like itself.
    ids: list[int] = front.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not JSON that can be read: {error}", field=name) from error


def _check_sampling(sampling: Sampling, front: ModelFront, spec: ClusterSpec) -> None:
    for name, (low, high, words) in _RANGES.items():
        if sampling.HasField(name):
            value = getattr(sampling, name)
            if math.isnan(value) or not low <= value <= high:
                raise InvalidRequest(f"{name}={value:g}: expected {words}", field=f"sampling.{name}")
    if sampling.HasField("logprobs") and sampling.logprobs > spec.gateway.max_logprobs:
        raise InvalidRequest(
            f"logprobs={sampling.logprobs}: expected at most {spec.gateway.max_logprobs}", field="sampling.logprobs"
        )
    if sampling.n > spec.gateway.max_choices:
        raise InvalidRequest(f"n={sampling.n}: expected at most {spec.gateway.max_choices}", field="sampling.n")
    if len(sampling.stop) > MAX_STOPS or any(not stop or len(stop) > MAX_STOP_CHARS for stop in sampling.stop):
        raise InvalidRequest(
            f"stop: expected at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters", field="sampling.stop"
        )
    ids: dict[str, Any] = {
        "stop_token_ids": sampling.stop_token_ids,
        "allowed_token_ids": sampling.allowed_token_ids,
        "logit_bias": list(sampling.logit_bias),
    }
    for name, values in ids.items():
        bad = next((token for token in values if token >= front.vocab_size), None)
        if bad is not None:
            raise InvalidRequest(
                f"{name}: token id {bad} is out of the vocabulary (0 to {front.vocab_size - 1})",
                field=f"sampling.{name}",
            )
    if any(math.isnan(bias) or not -100 <= bias <= 100 for bias in sampling.logit_bias.values()):
        raise InvalidRequest("logit_bias: expected biases of -100 to 100", field="sampling.logit_bias")
    if any(not word for word in sampling.bad_words):
        raise InvalidRequest("bad_words: expected words that are not empty", field="sampling.bad_words")
    if sampling.HasField("structured_output"):
        kind = sampling.structured_output.WhichOneof("kind")
        value = getattr(sampling.structured_output, kind) if kind else None
        if not value or (kind == "choices" and not (value.values and all(value.values))):
            raise InvalidRequest("structured_output is empty", field="sampling.structured_output")
        if kind == "json_schema":
            name = "sampling.structured_output.json_schema"
            if not isinstance(_json(value, name), dict | bool):
                raise InvalidRequest(f"{name}: expected an object", field=name)


def _budget(request: GenerateRequest, front: ModelFront, spec: ClusterSpec) -> int | None:
    """Thinking budget in tokens: the caller's, else the effort's; None without one."""
    if not request.HasField("reasoning"):
        return None
    wants = request.reasoning.HasField("budget_tokens") or request.reasoning.effort not in (
        Effort.EFFORT_UNSPECIFIED,
        Effort.EFFORT_NONE,
    )
    reasoning = spec.model.reasoning
    if reasoning is None or front.markers is None:
        if wants:
            raise InvalidRequest(
                f"{front.name} does not reason; leave out reasoning (or its markers are missing in the spec)",
                field="reasoning",
            )
        return None
    if request.reasoning.HasField("budget_tokens"):
        return min(int(request.reasoning.budget_tokens), front.max_model_len_tokens)
    effort = request.reasoning.effort
    if effort == Effort.EFFORT_UNSPECIFIED:
        return None
    name = _EFFORT_NAMES.get(effort)
    if name is None:
        raise InvalidRequest(f"reasoning.effort={effort}: unknown", field="reasoning.effort")
    budgets: Mapping[str, int] = {str(key): value for key, value in reasoning.effort_budgets_tokens.items()}
    if name not in budgets:
        raise InvalidRequest(f"this cluster has no budget for effort {name!r}", field="reasoning.effort")
    return min(budgets[name], front.max_model_len_tokens)


def choice_seed(seed: int, index: int) -> int:
    """The engine's seed of one choice: 63 bits, because to vLLM a seed of -1 is none at all.

    Example:
        >>> choice_seed(7, 2), choice_seed(-1, 0), choice_seed(-2, 1) == choice_seed(-1, 0)
        (9, 9223372036854775807, True)
    """
    return (seed + index) & ((1 << 63) - 1)


def _closed_reasoning(prompt: Sequence[int], markers: ReasoningMarkers) -> tuple[int, ...]:
    """Tokens that close the reasoning before it begins, so that a budget of 0 holds for the first token too."""
    return markers.end_ids if open_at_end(prompt, markers) else markers.start_ids + markers.end_ids


def _handoff(sampling: Sampling, *, thinks: bool) -> Handoff:
    """PLAIN where the engine must count the first token as its own output to keep the sampling's meaning.

    A grammar counts the answer alone, so where the prompt leaves the reasoning open it has not begun by then.
    """
    temperature = sampling.temperature if sampling.HasField("temperature") else 1.0
    counted = (
        sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
        or bool(sampling.bad_words)
        or (sampling.HasField("structured_output") and not thinks)
        # A seeded generator has drawn once for prefill's token; decode would draw the same number again.
        or (sampling.HasField("seed") and temperature > 0)
    )
    return Handoff.PLAIN if counted else Handoff.FIRST_TOKEN
