"""Which of vLLM's parsers reads a model's output: named in the spec, or by the model's type and chat template. No vLLM.

vLLM has a parser for each family's tool calls and reasoning. Their names are read from its files, since importing them
takes seconds; `orchestrator.request.call_parsing` imports the one that is used.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.model.model_path import expand
from cluster.spec.model_settings import ModelSettings, ReasoningSettings

AUTO, NONE = "auto", "none"
HARMONY_TOOLS, HARMONY_REASONING = "openai", "openai_gptoss"
HARMONY_TYPE = "gpt_oss"
"""Model type whose whole output is channels, which one parser reads."""

_TABLES = {
    "tool_parser": ("tool_parsers", "_TOOL_PARSERS_TO_REGISTER"),
    "reasoning_parser": ("reasoning", "_REASONING_PARSERS_TO_REGISTER"),
}
_MISTRAL_TYPES = ("mistral", "mixtral", "ministral", "pixtral", "devstral")
_JSON_EXAMPLE = '{"name"'


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """Text that opens and closes a family's reasoning; with one of ``implicit_ends`` the answer begins as well."""

    start: str
    end: str
    implicit_ends: tuple[str, ...] = ()


_THINK = ReasoningText("<think>", "</think>")
_THINK_OR_CALL = ReasoningText("<think>", "</think>", ("<tool_call>",))
REASONING_TEXTS = {
    "deepseek_r1": _THINK,
    "deepseek_v3": _THINK,
    "glm45": _THINK_OR_CALL,
    "glm47": _THINK_OR_CALL,
    "kimi_k2": ReasoningText("<think>", "</think>", ("<|tool_calls_section_begin|>",)),
    "mistral": ReasoningText("[THINK]", "[/THINK]"),
    "qwen3": _THINK_OR_CALL,
    "seed_oss": ReasoningText("<seed:think>", "</seed:think>", ("<seed:tool_call>",)),
    HARMONY_REASONING: ReasoningText(
        "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>", ("<|end|>",)
    ),
}
"""By vLLM's names, as its parsers say; tests/contract/test_parser_families.py holds them to that."""


@cache
def parser_names(kind: str) -> tuple[str, ...]:
    """vLLM's names for parsers, sorted; none where vLLM is not installed.

    Args:
        kind: ``tool_parser`` or ``reasoning_parser``.
    """
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return ()
    folder, table = _TABLES[kind]
    tree = ast.parse((Path(found.origin).parent / folder / "__init__.py").read_text())
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        if [getattr(target, "id", "") for target in node.targets] == [table]:
            return tuple(sorted(str(ast.literal_eval(key)) for key in node.value.keys if key is not None))
    return ()


def check_parser(kind: str, name: str) -> None:
    """Check that vLLM knows a parser by this name.

    Raises:
        ConfigError: it does not; the text lists the names.
    """
    known = parser_names(kind)
    if name in (AUTO, NONE) or not known or name in known:
        return
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"model.{kind}={name}: expected {AUTO}, {NONE}, or one of {', '.join(known)}{hint}")


def with_parsers(settings: ModelSettings, folder: Path) -> ModelSettings:
    """The settings with both parsers by name, or ``none``, and with the markers of the reasoning filled in.

    Args:
        settings: The spec's ``model`` section.
        folder: The model's.

    Raises:
        ConfigError: vLLM has no parser of that name.
    """
    check_parser("tool_parser", settings.tool_parser)
    check_parser("reasoning_parser", settings.reasoning_parser)
    model_type, template = _model_type(folder), _template(settings, folder)
    tool, reasoning = settings.tool_parser, settings.reasoning_parser
    if tool == AUTO:
        tool = tool_parser_of(model_type, template, lambda token: _has_token(folder, token))
    if reasoning == AUTO:
        reasoning = reasoning_parser_of(model_type, template)
        if settings.reasoning is not None and not _same_markers(settings.reasoning, reasoning):
            reasoning = NONE
    filled: dict[str, Any] = {"tool_parser": tool, "reasoning_parser": reasoning}
    if (texts := REASONING_TEXTS.get(reasoning)) is not None:
        given = settings.reasoning or ReasoningSettings.model_validate({})
        if not {"start", "end"} & given.model_fields_set:
            filled["reasoning"] = given.model_copy(update={"start": texts.start, "end": texts.end})
    return settings.model_copy(update=filled)


def reasons(settings: ModelSettings) -> bool:
    """Whether a model with these settings, `with_parsers`, reasons."""
    return settings.reasoning is not None or settings.reasoning_parser != NONE


def marker_texts(settings: ModelSettings) -> tuple[str, ...]:
    """Start and end of the reasoning, and then each text that ends it implicitly, of settings `with_parsers`."""
    reasoning = settings.reasoning
    if reasoning is None:
        return ()
    texts = REASONING_TEXTS.get(settings.reasoning_parser)
    implicit = texts.implicit_ends if texts is not None and texts.end == reasoning.end else ()
    return (reasoning.start, reasoning.end, *implicit)


def tool_parser_of(model_type: str, template: str, has_token: Callable[[str], bool]) -> str:
    """vLLM's parser for the calls of a model type.

    The template decides where models of one type write calls in several ways. ``<tool_call>`` around JSON, as Hermes
    and Qwen have it, is what most others are tuned to, so what is not known is read so.

    Example:
        >>> tool_parser_of("qwen3_moe", "<tool_call>\\n<function=", lambda _: False), tool_parser_of("phi", "", bool)
        ('qwen3_xml', 'hermes')
    """
    if model_type == HARMONY_TYPE:
        return HARMONY_TOOLS
    if model_type.startswith("kimi"):
        return "kimi_k3" if "k3" in model_type else "kimi_k2"
    if model_type.startswith("glm"):
        return "glm45"
    if model_type == "deepseek_v3":
        return "deepseek_v3" if "```json" in template else "deepseek_v31"
    if "<tool_call>" in template:
        return "qwen3_xml" if "<function=" in template else "hermes"
    if model_type.startswith(_MISTRAL_TYPES) and has_token("[TOOL_CALLS]"):
        return "mistral"
    if model_type == "llama4":
        return "llama4_json" if _JSON_EXAMPLE in template else "llama4_pythonic"
    if model_type in ("llama", "mllama") and has_token("<|python_tag|>"):
        return "llama3_json"
    return model_type if model_type in parser_names("tool_parser") else "hermes"


def reasoning_parser_of(model_type: str, template: str) -> str:
    """vLLM's parser for the reasoning of a model type; ``none`` where the template has no marker of it.

    Example:
        >>> reasoning_parser_of("qwen3", "...</think>..."), reasoning_parser_of("qwen3", "...")
        ('qwen3', 'none')
    """
    if model_type == HARMONY_TYPE:
        return HARMONY_REASONING
    by_type = {"deepseek": "deepseek_v3", "glm": "glm45", "kimi": "kimi_k2", "qwen3": "qwen3", "seed_oss": "seed_oss"}
    name = next((name for prefix, name in by_type.items() if model_type.startswith(prefix)), "deepseek_r1")
    if model_type.startswith(_MISTRAL_TYPES) and REASONING_TEXTS["mistral"].start in template:
        name = "mistral"
    return name if REASONING_TEXTS[name].end in template else NONE


def _same_markers(given: ReasoningSettings, name: str) -> bool:
    texts = REASONING_TEXTS.get(name)
    if texts is None or not {"start", "end"} & given.model_fields_set:
        return True
    return (given.start, given.end) == (texts.start, texts.end)


def _model_type(folder: Path) -> str:
    return str(_read_json(folder / "config.json").get("model_type") or "")


def _template(settings: ModelSettings, folder: Path) -> str:
    """The chat templates' text, or nothing. One that cannot be read is reported where it is rendered."""
    file = folder / (expand(settings.chat_template) if settings.chat_template else "chat_template.jinja")
    if file.is_file():
        return file.read_text(errors="replace")
    given = _read_json(folder / "tokenizer_config.json").get("chat_template") or ""
    named = given if isinstance(given, list) else [{"template": given}]
    return "\n".join(str(entry.get("template", "")) for entry in named if isinstance(entry, dict))


def _has_token(folder: Path, token: str) -> bool:
    file = folder / "tokenizer.json"
    return file.is_file() and json.dumps(token).encode() in file.read_bytes()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
