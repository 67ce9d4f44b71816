"""Whole OpenAI reply objects, built from a request's events. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from baton.v1 import inference_pb2
from interface.http import scaling
from interface.http.completions.prompt_text import PromptText, written
from interface.http.completions.request import HttpCall
from interface.http.logprobs import CompletionLogprobs, PhaseRows, by_phase, chat_logprobs

FINISH_REASONS = {
    inference_pb2.FINISH_REASON_UNSPECIFIED: None,
    inference_pb2.FINISH_REASON_STOP: "stop",
    inference_pb2.FINISH_REASON_LENGTH: "length",
    # Of gateways of an earlier version.
    inference_pb2.FINISH_REASON_THINKING_BUDGET: "length",
    inference_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


def stop_reason(delta: inference_pb2.Delta, request: inference_pb2.GenerateRequest) -> str | int | None:
    """What ended the choice, as vLLM reports it: the stop string, or the stop token's id as a number.

    Without either, ``thinking_budget`` where the reasoning was closed at its budget, or to keep tokens for the answer.
    """
    matched = delta.stop_matched
    if not matched:
        return "thinking_budget" if delta.reasoning_closed else None
    return int(matched) if matched not in request.sampling.stop and matched.isdecimal() else matched


def usage_object(usages: list[inference_pb2.Usage]) -> dict[str, Any]:
    """The ``usage`` of a reply: the sum over its prompts."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    reasoning = sum(usage.reasoning_tokens for usage in usages)
    completion = reasoning + sum(usage.answer_tokens for usage in usages)
    details: dict[str, int] = {"reasoning_tokens": reasoning}
    budgets = [usage.thinking_budget_tokens for usage in usages if usage.HasField("thinking_budget_tokens")]
    if budgets:
        # Not OpenAI's: what an effort came to.
        details["thinking_budget_tokens"] = min(budgets)
    reduced = [usage.reduced_budget_tokens for usage in usages if usage.HasField("reduced_budget_tokens")]
    if reduced:
        # Not OpenAI's: the cluster gave a smaller thinking budget than was asked for, and so many choices reached it.
        details["reduced_thinking_budget_tokens"] = min(reduced)
        details["clipped_traces"] = sum(usage.clipped_traces for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
        "completion_tokens_details": details,
    }


@dataclass(slots=True)
class _Choice:
    prompt: int
    reasoning: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    thought: bool = False
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PhaseRows] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Reply:
    """Collects the deltas of a call and writes its reply.

    A completion's text is the answer alone, too: the markers between reasoning and answer are no text by now, so
    the two could not be distinguished in one string.
    """

    def __init__(self, call: HttpCall, created_unix_s: int) -> None:
        self._call = call
        self._created_unix_s = created_unix_s
        self._choices: list[_Choice] = []
        self._usages: list[inference_pb2.Usage] = []
        self._prompts: dict[int, PromptText] = {}
        self._scaling: dict[str, Any] = {}

    def add(self, prompt: int, event: inference_pb2.GenerateResponse) -> None:
        """Take one event of the given prompt."""
        if not self._choices:
            # Not before the first event: only then has the gateway found ``n`` to be within its limit.
            call = self._call
            self._choices = [_Choice(i // call.choices) for i in range(call.choices * len(call.requests))]
        match event.WhichOneof("event"):
            case "delta":
                self._add_delta(prompt, event.delta)
            case "finished":
                self._usages.append(event.finished.usage)
                if event.finished.HasField("inference_scaling"):
                    self._scaling = {scaling.NAME: scaling.report_object(event.finished.inference_scaling)}
            case "prompt_logprobs":
                self._prompts.setdefault(prompt, self._prompt_text()).add(event.prompt_logprobs)

    def object(self) -> dict[str, Any] | bytes:
        """The reply; one with log-probabilities of prompts is JSON already."""
        tree = self._object()
        if not self._prompts:
            return tree
        if self._call.chat:
            return written(tree)[:-1] + self._prompts[0].listed() + b"}"
        choices = b",".join(map(self._scored_choice, tree.pop("choices"), self._choices))
        return written(tree)[:-1] + b',"choices":[' + choices + b"]}"

    def _scored_choice(self, item: dict[str, Any], choice: _Choice) -> bytes:
        """A completion's choice with what there is of its prompt."""
        prompt = self._prompts.get(choice.prompt) or self._prompt_text()
        logprobs = item.pop("logprobs")
        shown = b"null" if logprobs is None else prompt.with_output(logprobs)
        return written(item)[:-1] + b',"logprobs":' + shown + prompt.listed() + b"}"

    def _prompt_text(self) -> PromptText:
        call = self._call
        return PromptText(call.logprobs if call.echo else None, call.prompt_logprobs)

    def _object(self) -> dict[str, Any]:
        call = self._call
        return {
            "id": call.reply_id,
            "object": "chat.completion" if call.chat else "text_completion",
            "created": self._created_unix_s,
            "model": call.model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(self._choices)],
            "usage": usage_object(self._usages),
            **self._scaling,
        }

    def _add_delta(self, prompt: int, delta: inference_pb2.Delta) -> None:
        choice = self._choices[prompt * self._call.choices + delta.choice]
        thinks = delta.phase == inference_pb2.PHASE_REASONING
        excluded = thinks and self._call.exclude_reasoning
        choice.thought |= bool(delta.token_ids if excluded else thinks and delta.text)
        if not excluded:
            (choice.reasoning if thinks else choice.answer).append(delta.text)
            if self._call.return_token_ids:
                choice.token_ids.extend(delta.token_ids)
            if self._call.logprobs is not None:
                choice.logprobs.append((delta.phase, delta.logprobs))
        for piece in delta.tool_calls:
            _add_call(choice.calls, piece)
        if delta.finish_reason:
            choice.finish_reason = FINISH_REASONS[delta.finish_reason]
            choice.stop_reason = stop_reason(delta, self._call.requests[prompt])

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        call = self._call
        item: dict[str, Any] = {"index": index}
        if call.chat:
            item["message"] = _message(choice)
        else:
            item["text"] = "".join([call.echo[choice.prompt] if call.echo else "", *choice.answer])
            item |= _thoughts("".join(choice.reasoning))
        item["logprobs"] = self._logprobs(choice)
        item["finish_reason"] = choice.finish_reason
        item["stop_reason"] = choice.stop_reason
        if call.return_token_ids:
            item["token_ids"] = choice.token_ids
            item["prompt_token_ids"] = prompt_token_ids(call.requests[choice.prompt])
        return item

    def _logprobs(self, choice: _Choice) -> dict[str, Any] | None:
        top = self._call.logprobs
        if top is None:
            return None
        rows = by_phase(choice.logprobs)
        if self._call.chat:
            return chat_logprobs(rows, top)
        prompt = self._prompts.get(choice.prompt)
        return CompletionLogprobs(top, prompt.chars if prompt else 0).take(rows)


def prompt_token_ids(request: inference_pb2.GenerateRequest) -> list[int] | None:
    """The prompt's ids where the caller sent ids; else null."""
    return list(request.prompt_token_ids.ids) if request.HasField("prompt_token_ids") else None


def _message(choice: _Choice) -> dict[str, Any]:
    reasoning, answer = "".join(choice.reasoning), "".join(choice.answer)
    # Thought and then cut off: null distinguishes "no answer yet" from an empty one, as vLLM does.
    content = answer if answer or not (choice.thought or choice.calls) else None
    message = {"role": "assistant", "content": content, "refusal": None, **_thoughts(reasoning)}
    return message | ({"tool_calls": choice.calls} if choice.calls else {})


def _add_call(calls: list[dict[str, Any]], piece: inference_pb2.ToolCallDelta) -> None:
    """Join a piece to the calls of a message."""
    if piece.index == len(calls):
        calls.append({"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}})
    calls[piece.index]["function"]["arguments"] += piece.arguments


def _thoughts(reasoning: str) -> dict[str, str]:
    """Two names for one thing: DeepSeek's, which most clients know, and the one vLLM 0.32 writes."""
    return {"reasoning_content": reasoning, "reasoning": reasoning} if reasoning else {}
