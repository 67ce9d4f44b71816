"""Outputs of each family, read as a stream in every way of cutting it, against what vLLM makes of the whole."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.decoders import DecodeStream

from baton.v1 import inference_pb2 as pb
from cluster.model.model_parsers import HARMONY_REASONING, REASONING_TEXTS, parser_names
from orchestrator.policy.phases import Phase, ReasoningMarkers
from orchestrator.request.call_parsing import CallParsing
from orchestrator.request.output_parser import Part
from orchestrator.request.output_text import Piece
from orchestrator.request.parsed_text import ParsedText
from orchestrator.request.tools import ToolAsk
from tests.support.families import FAMILIES, HARMONY, TOOLS, Family

ASK = ToolAsk(tuple(TOOLS), "auto", named=False, parallel=True, earlier_calls=0)
CASES = [(name, output) for name, family in FAMILIES.items() for output in family.outputs]
EOS = 0


@dataclass
class Read:
    """What an output comes to."""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list, compare=False)

    def add(self, phase: Phase, text: str, calls: Iterable[Any]) -> None:
        if phase is Phase.REASONING:
            self.reasoning += text
        else:
            self.content += text
        for call in calls:
            if call.index == len(self.calls):
                self.calls.append((call.name, ""))
                self.ids.append(call.id)
            name, arguments = self.calls[call.index]
            self.calls[call.index] = (name, arguments + call.arguments)


@cache
def parsing(family: str) -> CallParsing:
    made = FAMILIES[family]
    return CallParsing(made.tool, "kimi_k2" if family == "kimi" else "", made.tokenizer())


@cache
def markers(family: str) -> ReasoningMarkers | None:
    made = FAMILIES[family]
    if made.reasoning is None:
        return None
    tokenizer, texts = made.tokenizer(), REASONING_TEXTS[made.reasoning]

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    return ReasoningMarkers(ids(texts.start), ids(texts.end), tuple(map(ids, texts.implicit_ends)))


def vllm_request(tools: list[dict[str, Any]] | None = TOOLS) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], tools=tools, model="m")


@cache
def whole(family: str, output: str) -> Read:
    """What vLLM's server replies with, without a stream."""
    from vllm.parser import ParserManager

    made, request = FAMILIES[family], vllm_request()
    tokenizer = made.tokenizer()
    kind = ParserManager.get_parser(made.tool, made.reasoning, enable_auto_tools=True)
    parser = kind(tokenizer, request.tools, chat_template_kwargs=made.template_variables)
    ids = tokenizer.encode(output, add_special_tokens=False)
    reasoning, content, calls = parser.parse(output, request, enable_auto_tools=True, model_output_token_ids=ids)
    return Read(reasoning or "", content or "", [(call.name, call.arguments) for call in calls or ()])


def expected(family: str, output: str, got: Read) -> Read:
    """With the white space in front of content as it came: a stream has given it out before it comes to a call."""
    read = whole(family, output)
    if read.calls and read.content == got.content.lstrip():
        read = Read(read.reasoning, got.content, read.calls)
    return read


def streamed(family: str, ids: Sequence[int], cuts: Iterable[int]) -> tuple[Read, ParsedText, list[Piece]]:
    """An output in several messages."""
    made = FAMILIES[family]
    marks = markers(family)
    prompt = [72, *(marks.start_ids if marks and made.thinks else ())]
    text = ParsedText(
        made.tokenizer().backend_tokenizer,
        prompt,
        marks,
        parsing(family).reading(ASK, pb.Sampling(), prompt).parser(),
        {EOS},
    )
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    pieces = [piece for start, end in pairwise(edges) for piece in text.push(ids[start:end])]
    pieces += text.finish()
    read = Read()
    for piece in pieces:
        read.add(piece.phase, piece.text, piece.calls)
    return read, text, pieces


def encoded(family: Family, output: str) -> list[int]:
    return [*family.tokenizer().encode(output, add_special_tokens=False), EOS]


@pytest.mark.parametrize(("family", "output"), CASES)
def test_a_stream_gives_what_vllm_makes_of_the_whole(family: str, output: str) -> None:
    ids = encoded(FAMILIES[family], output)
    read, text, pieces = streamed(family, ids, range(len(ids)))
    assert read == expected(family, output, read)
    assert [token for piece in pieces for token in piece.token_ids] == ids
    assert text.reasoning_tokens + text.answer_tokens == len(ids)
    assert all(not piece.text for piece in pieces if piece.phase is Phase.TOOL_CALL)
    by_phase = {phase: sum(len(p.token_ids) for p in pieces if p.phase is phase) for phase in Phase}
    assert by_phase[Phase.TOOL_CALL] == text.tool_call_tokens
    assert bool(text.tool_call_tokens) == bool(read.calls)
    assert by_phase[Phase.REASONING] == text.reasoning_tokens
    assert len(set(read.ids)) == len(read.ids) and all(read.ids)
    if family == "kimi":
        assert read.ids == [f"functions.{name}:{index}" for index, (name, _) in enumerate(read.calls)]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(CASES), st.lists(st.integers(0, 10_000), max_size=12))
def test_how_tokens_come_together_does_not_show(case: tuple[str, str], cuts: list[int]) -> None:
    family, output = case
    read, _, _ = streamed(family, encoded(FAMILIES[family], output), cuts)
    assert read == expected(family, output, read)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(CASES), st.sets(st.integers(0, 10_000), max_size=40))
def test_how_text_is_cut_into_tokens_does_not_show(case: tuple[str, str], cuts: set[int]) -> None:
    """Tokens of any width, as other tokenizers have them; special tokens stay whole."""
    family, output = case
    made = FAMILIES[family]
    # Of the answer alone: the reasoning has gone by its markers before the parser sees anything.
    answer = output.split("</think>", 1)[-1] if "</think>" in output else output[output.find("<tool_call>") :]
    answer = answer if made.reasoning else output
    vocabulary = made.tokenizer().get_vocab()
    special = f"({'|'.join(map(re.escape, made.tokens))})"
    chunks: list[str] = []
    for part in re.split(special, answer):
        edges = sorted({0, len(part), *(cut % (len(part) + 1) for cut in cuts)})
        chunks += [part] if part in made.tokens else [part[start:end] for start, end in pairwise(edges)]
    parser = parsing(family).reading(ASK, pb.Sampling(), [72]).parser()
    parts: list[Part] = [each for chunk in chunks for each in parser.push(vocabulary.get(chunk, 1), chunk)]
    read = Read(reasoning=whole(family, output).reasoning)
    for part in [*parts, *parser.finish()]:
        read.add(part.phase, part.text, [part.call] if part.call else ())
    assert read == expected(family, output, read)


@pytest.mark.parametrize(
    ("family", "output"),
    [(name, output) for name in ("hermes", "llama") for output in FAMILIES[name].outputs[:2]],
)
def test_required_calls_come_while_they_are_written_and_end_the_same(family: str, output: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    forced = replace(ASK, choice="required")
    parser = parsing(family).reading(forced, pb.Sampling(), [72]).parser()
    read, pieces, stream = Read(), 0, DecodeStream(skip_special_tokens=False)
    for token in tokenizer.encode(output, add_special_tokens=False):
        for part in parser.push(token, stream.step(tokenizer.backend_tokenizer, token) or ""):
            read.add(part.phase, part.text, [part.call] if part.call else ())
            pieces += part.call is not None
    assert pieces > 2 * len(read.calls)
    for part in parser.finish():
        read.add(part.phase, part.text, [part.call] if part.call else ())
    assert read.calls == whole(family, output).calls


@pytest.mark.parametrize("family", [name for name, made in FAMILIES.items() if made.reasoning])
def test_markers_are_those_of_vllms_parsers(family: str) -> None:
    from vllm.reasoning import ReasoningParserManager

    made = FAMILIES[family]
    tokenizer = made.tokenizer()
    kind = ReasoningParserManager.get_reasoning_parser(made.reasoning or "")
    parser = kind(tokenizer, chat_template_kwargs=made.template_variables)
    texts = REASONING_TEXTS[made.reasoning or ""]
    assert (parser.reasoning_start_str, parser.reasoning_end_str) == (texts.start, texts.end)
    if ends := getattr(parser, "reasoning_end_token_ids", None):
        known = {token for text in texts.implicit_ends for token in tokenizer.encode(text, add_special_tokens=False)}
        assert ends - {tokenizer.convert_tokens_to_ids(texts.end)} == known


@pytest.mark.parametrize("kind", ["tool_parser", "reasoning_parser"])
def test_names_are_read_from_vllm_as_it_has_them(kind: str) -> None:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    manager = ToolParserManager if kind == "tool_parser" else ReasoningParserManager
    assert set(parser_names(kind)) == set(manager.lazy_parsers)


# --- gpt-oss --------------------------------------------------------------------------------------------------------


@pytest.fixture
def harmony(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """openai-harmony's encoding. Its vocabulary comes from the network, or with LiteLLM."""
    litellm = importlib.util.find_spec("litellm")
    if litellm is not None and litellm.origin is not None:
        stored = Path(litellm.origin).parent / "litellm_core_utils/tokenizers/fb374d419588a4632f3f557e76b4b70aebbca790"
        (tmp_path / "o200k_base.tiktoken").symlink_to(stored)
        monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    from vllm.entrypoints.openai.parser.harmony_utils import get_encoding

    try:
        return get_encoding()
    except Exception as error:
        pytest.skip(f"no o200k_base.tiktoken: {error}")


class HarmonyTokenizer:
    """In place of transformers', which the parser asks nothing."""

    all_special_ids: tuple[int, ...] = ()
    all_special_tokens: tuple[str, ...] = ()

    def get_vocab(self) -> dict[str, int]:
        return {"<|end|>": 200007}

    def __len__(self) -> int:
        return 200019


@pytest.mark.parametrize("output", HARMONY)
def test_channels_of_gpt_oss(harmony: Any, output: str) -> None:
    from vllm.parser import ParserManager

    ids = harmony.encode(output, allowed_special="all")
    kind = ParserManager.get_parser("openai", HARMONY_REASONING, enable_auto_tools=True, is_harmony=True)
    reasoning, content, calls = kind(None, vllm_request().tools).parse(
        "", vllm_request(), enable_auto_tools=True, model_output_token_ids=ids
    )
    made = CallParsing("openai", "gpt_oss", HarmonyTokenizer())
    prompt = harmony.encode("<|start|>user<|message|>Hi<|end|><|start|>assistant", allowed_special="all")
    parser = made.reading(ASK, pb.Sampling(), prompt).parser()
    texts = REASONING_TEXTS[HARMONY_REASONING]
    assert parser.reads_reasoning and harmony.encode(texts.end, allowed_special="all")[0] == 200007
    stream = SimpleNamespace(step=lambda *_: "")
    text = ParsedText(None, (), None, parser, set())
    text._stream = stream  # type: ignore[assignment]  # the channels are read from ids alone
    read = Read()
    pieces = [piece for token in ids for piece in text.push([token])] + text.finish()
    for piece in pieces:
        read.add(piece.phase, piece.text, piece.calls)
    assert read == Read(reasoning or "", content or "", [(call.name, call.arguments) for call in calls or ()])
    assert [token for piece in pieces for token in piece.token_ids] == ids
