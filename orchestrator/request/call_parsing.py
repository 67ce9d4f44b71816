"""vLLM's parser of one model's tool calls: loaded when it is needed, asked for grammars, and made for each choice.

Importing it takes 6 s of a processor and 430 MiB, torch included; it starts neither CUDA nor torch.distributed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from baton.v1.inference_pb2 import Sampling, StructuredOutput
from cluster.engine.vllm_sampling import structured_arguments
from cluster.errors import ConfigError, InvalidRequest
from cluster.model.model_parsers import HARMONY_REASONING, HARMONY_TOOLS
from orchestrator.request.call_parsers import HarmonyCalls, HeldCalls, ParseWhole, StreamedCalls, Whole
from orchestrator.request.json_calls import JsonCalls
from orchestrator.request.output_parser import Call, OutputParser
from orchestrator.request.tools import ToolAsk, held_to_schemas

_START_ATTRIBUTES = (
    "bot_token",
    "tool_call_start_token",
    "tool_calls_start_token",
    "tool_call_start",
    "tool_start_token",
)
"""Names under which vLLM's older parsers have the text with which a call begins."""
_JSON_FAMILIES = ("hermes", "qwen3_json", "llama3_json", "llama4_json")
"""Parsers of calls that are JSON objects with a name and arguments, which they read only when these are complete."""
_OBJECTS_BEGIN_CALLS = ("Llama3JsonToolParser",)
"""Parsers that read any JSON object with a name as a call."""


@dataclass(frozen=True, slots=True)
class CallReading:
    """How one request's output is read.

    ``constraint`` is the grammar that the calls ask for, with what the caller asked for in it; None where that stays as
    it is. ``parser`` makes one choice's parser; ``reads_all``: of the reasoning, too.
    """

    constraint: StructuredOutput | None
    parser: Callable[[], OutputParser]
    reads_all: bool = False


class CallParsing:
    """Owns vLLM's parser class of a model.

    Args:
        name: vLLM's name of the tool parser.
        model_type: Of the model; Kimi's calls have ids of their own form.
        tokenizer: transformers'.
    """

    def __init__(self, name: str, model_type: str, tokenizer: Any) -> None:
        self.name = name
        self.reads_all = name == HARMONY_TOOLS
        """Whether it reads every chat, with tools or without: what the model writes are channels."""
        self._config = SimpleNamespace(hf_config=SimpleNamespace(model_type=model_type))
        self._tokenizer = tokenizer
        self._class: Any = None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether `load` has been called."""
        return self._class is not None

    def load(self) -> None:
        """Import the parser, once; from any thread.

        Raises:
            ConfigError: the model's tokenizer lacks what the parser needs, or gpt-oss's vocabulary is not there.
        """
        with self._lock:
            if self._class is not None:
                return
            try:
                self._class = self._load()
            except Exception as error:  # vLLM's and its parsers' errors are of any class
                hint = ", and TIKTOKEN_ENCODINGS_BASE as a folder with o200k_base.tiktoken" if self.reads_all else ""
                raise ConfigError(
                    f"model.tool_parser={self.name}: vLLM's parser cannot be used with this model ({error}); name "
                    f"another, or none{hint}"
                ) from error

    def reading(self, ask: ToolAsk | None, sampling: Sampling, prompt_ids: Sequence[int]) -> CallReading:
        """How the output of a request is read; loads the parser if it is not loaded.

        Args:
            ask: What is asked of calls; None for none.
            sampling: May have a grammar of the caller's, for the answer.
            prompt_ids: The prompt.

        Raises:
            InvalidRequest: vLLM cannot make a grammar of the tools.
        """
        self.load()
        try:
            request = self._request(ask, sampling)
            asked = self._request(held_to_schemas(ask) if ask and ask.forced else ask, sampling)
            constrained = self._parser(asked).adjust_request(asked)
            constraint = _constraint(constrained.structured_outputs)
        except Exception as error:  # vLLM's checks and xgrammar's builders raise several classes
            raise InvalidRequest(f"tools: no grammar can be made of them: {str(error)[:300]}", field="tools") from error
        by_json = ask is not None and ask.forced and not (constraint and constraint.structural_tag)
        if by_json:
            constraint = self._json_constraint(request)
        make = partial(self._output_parser, ask, request, tuple(prompt_ids), by_json)
        return CallReading(constraint, make, self.reads_all)

    # --- pieces ---------------------------------------------------------------------------------------------

    def _load(self) -> Any:
        logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)  # a call that is none is no error here
        logging.getLogger("vllm.parser").setLevel(logging.CRITICAL)
        from vllm.parser import ParserManager
        from vllm.tokenizers.hf import get_cached_tokenizer

        self._tokenizer = get_cached_tokenizer(self._tokenizer)
        made = ParserManager.get_parser(
            tool_parser_name=self.name,
            reasoning_parser_name=HARMONY_REASONING if self.reads_all else None,
            enable_auto_tools=True,
            is_harmony=self.reads_all,
            tokenizer=self._tokenizer,
        )
        if self.reads_all:
            from vllm.entrypoints.openai.parser.harmony_utils import get_encoding

            get_encoding()
        return made

    def _request(self, ask: ToolAsk | None, sampling: Sampling) -> Any:
        """vLLM's request, as far as its parsers look at it."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        # Kimi's ids count the calls so far.
        earlier: list[dict[str, Any]] = [
            {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            for _ in range(ask.earlier_calls if ask else 0)
        ]
        fields: dict[str, Any] = {
            "messages": [{"role": "user", "content": ""}, {"role": "assistant", "tool_calls": earlier}],
            "model": "model",
            "structured_outputs": structured_arguments(sampling),
        }
        if ask is not None:
            choice = {"type": "function", "function": {"name": ask.choice}} if ask.named else ask.choice
            fields |= {"tools": list(ask.tools), "tool_choice": choice, "parallel_tool_calls": ask.parallel}
        return ChatCompletionRequest.model_validate(fields)

    def _parser(self, request: Any) -> Any:
        return self._class(self._tokenizer, request.tools, model_config=self._config)

    def _json_constraint(self, request: Any) -> StructuredOutput:
        """For families without a grammar of their own: a JSON array of calls, or the named tool's arguments."""
        from vllm.tool_parsers.utils import get_json_schema_from_tools

        schema = get_json_schema_from_tools(request.tool_choice, request.tools, request.parallel_tool_calls)
        return StructuredOutput(json_schema=json.dumps(schema))

    def _output_parser(
        self, ask: ToolAsk | None, request: Any, prompt_ids: tuple[int, ...], by_json: bool
    ) -> OutputParser:
        limit = 1 if ask and (ask.named or not ask.parallel) else None
        parser = self._parser(request)
        if self.reads_all:
            return self._harmony_calls(parser, prompt_ids, 0 if ask is None else limit)
        parse: ParseWhole = partial(self._whole, request, by_json)
        forced = ask is not None and ask.forced
        named_only = by_json and ask is not None and ask.named  # then the output is the arguments, as they are
        json_calls = (
            JsonCalls(_new_id) if forced and (self.name in _JSON_FAMILIES or by_json) and not named_only else None
        )
        if by_json:
            return HeldCalls(parse, (), json_starts=False, limit=limit, json_calls=json_calls)
        tool_parser, vocabulary = parser.tool_parser, self._tokenizer.get_vocab()
        # Before version 11 Mistral's tokenisers have no token before arguments, and the parser is an older one inside.
        if tool_parser.engine_based_streaming and not (self.name == "mistral" and "[ARGS]" not in vocabulary):
            return StreamedCalls(parser, request, parse, limit=limit)
        starts = {getattr(tool_parser, name, None) for name in _START_ATTRIBUTES}
        json_starts = type(tool_parser).__name__ in _OBJECTS_BEGIN_CALLS
        texts = sorted(start for start in starts if isinstance(start, str) and start)
        return HeldCalls(parse, texts, json_starts=json_starts, limit=limit, json_calls=json_calls)

    def _whole(self, request: Any, by_json: bool, text: str, ids: Sequence[int]) -> Whole:
        """What vLLM's server would reply with for a whole answer."""
        parser = self._parser(request)
        if by_json:
            parser.tool_parser.supports_required_and_named = True
        _, content, calls = parser.parse(text, request, enable_auto_tools=True, model_output_token_ids=list(ids))
        # Half of a pair of surrogates, which JSON may have, is no text that could be sent.
        read = [Call(call.name, call.arguments.encode(errors="replace").decode(), call.id) for call in calls or ()]
        return Whole(content or "", [replace(call, id=call.id or _new_id()) for call in read])

    def _harmony_calls(self, parser: Any, prompt_ids: Sequence[int], limit: int | None) -> OutputParser:
        from vllm.entrypoints.openai.parser.harmony_utils import (
            extract_function_from_recipient,
            get_encoding,
            is_function_recipient,
        )

        def read_call(message: Any) -> Call:
            text, kind = message.content[0].text, message.content_type
            if kind is None or "json" in kind:
                with contextlib.suppress(json.JSONDecodeError):  # cut off or wrong JSON is given as it is, as by vLLM
                    text = json.dumps(json.loads(text))
            return Call(extract_function_from_recipient(message.recipient), text, _new_id())

        header = get_encoding().encode("<|start|>assistant", allowed_special="all")
        width = len(header)
        begun = next(
            (i + width for i in range(len(prompt_ids) - width, -1, -1) if list(prompt_ids[i : i + width]) == header),
            len(prompt_ids),
        )
        return HarmonyCalls(parser, list(prompt_ids[begun:]), is_function_recipient, read_call, limit=limit)


def _new_id() -> str:
    from vllm.renderers.chat_utils import make_tool_call_id

    made: str = make_tool_call_id()
    return made


def _constraint(found: Any) -> StructuredOutput | None:
    """vLLM's structured outputs as the contract has them; None where they are the caller's own, or none."""
    if found is None or found.structural_tag is None:
        return None
    tag = json.loads(found.structural_tag)
    _bound_white_space(tag)
    return StructuredOutput(structural_tag=json.dumps(tag))


def _bound_white_space(node: Any) -> None:
    """Let JSON in a tag have one character of white space at a time: a model may else write nothing but white space."""
    if isinstance(node, dict):
        if node.get("type") == "json_schema" and node.get("style", "json") == "json" and "json_schema" in node:
            node["max_whitespace_cnt"] = 1
        children = [value for key, value in node.items() if key != "json_schema"]
    else:
        children = node if isinstance(node, list) else []
    for child in children:
        _bound_white_space(child)
