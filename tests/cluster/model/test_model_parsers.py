from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.model.model_parsers import marker_texts, with_parsers
from cluster.spec.model_settings import ModelSettings, ReasoningSettings

THINKS = "{{ messages }}{% if enable_thinking %}<think></think>{% endif %}"
HERMES = '{{ messages }}<tool_call>{"name": f}</tool_call>'


def model(
    folder: Path, model_type: str, template: str = "{{ messages }}", tokens: tuple[str, ...] = (), **settings: Any
) -> ModelSettings:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": token} for token in tokens]}))
    given = ModelSettings(path=str(folder), served_name="m", max_model_len_tokens=64, **settings)
    resolved = with_parsers(given, folder)
    assert with_parsers(resolved, folder) == resolved
    return resolved


@pytest.mark.parametrize(
    ("model_type", "template", "tokens", "tool", "reasoning"),
    [
        ("qwen3", HERMES + THINKS, (), "hermes", "qwen3"),
        ("qwen3_moe", "<tool_call><function=", (), "qwen3_xml", "none"),
        ("qwen2", HERMES, (), "hermes", "none"),
        ("deepseek_v3", "```json" + THINKS, (), "deepseek_v3", "deepseek_v3"),
        ("deepseek_v3", THINKS, (), "deepseek_v31", "deepseek_v3"),
        ("deepseek_v32", "", (), "deepseek_v32", "none"),
        ("glm4_moe", THINKS + "<tool_call>", (), "glm45", "glm45"),
        ("kimi_k2", THINKS, (), "kimi_k2", "kimi_k2"),
        ("kimi_k2", "", (), "kimi_k2", "none"),
        ("gpt_oss", "<|channel|>", (), "openai", "openai_gptoss"),
        ("llama", "", ("<|python_tag|>",), "llama3_json", "none"),
        ("llama", HERMES, ("<|python_tag|>",), "hermes", "none"),
        ("llama", THINKS, (), "hermes", "deepseek_r1"),
        ("llama4", "", (), "llama4_pythonic", "none"),
        ("mistral3", "[THINK][/THINK]", ("[TOOL_CALLS]",), "mistral", "mistral"),
        ("mistral", HERMES, ("[TOOL_CALLS]",), "hermes", "none"),
        ("seed_oss", "<seed:think></seed:think>", (), "seed_oss", "seed_oss"),
        ("never_heard_of", "", (), "hermes", "none"),
    ],
)
def test_parsers_go_by_type_template_and_vocabulary(
    tmp_path: Path, model_type: str, template: str, tokens: tuple[str, ...], tool: str, reasoning: str
) -> None:
    found = model(tmp_path, model_type, template, tokens)
    assert (found.tool_parser, found.reasoning_parser) == (tool, reasoning)
    assert (found.reasoning is not None) is (reasoning != "none")


def test_what_the_spec_names_goes_before_the_type(tmp_path: Path) -> None:
    found = model(tmp_path, "llama", tool_parser="mistral", reasoning_parser="qwen3")
    assert found.tool_parser == "mistral"
    assert marker_texts(found) == ("<think>", "</think>", "<tool_call>")


def test_none_means_none(tmp_path: Path) -> None:
    found = model(tmp_path, "qwen3", HERMES + THINKS, tool_parser="none", reasoning_parser="none")
    assert (found.tool_parser, found.reasoning) == ("none", None)
    assert marker_texts(found) == ()


def test_markers_of_the_spec_stay(tmp_path: Path) -> None:
    own = ReasoningSettings(start="[a]", end="[b]", effort_budgets_tokens={"low": 7})
    found = model(tmp_path, "qwen3", THINKS, reasoning=own)
    assert (found.reasoning, found.reasoning_parser) == (own, "none")
    assert marker_texts(found) == ("[a]", "[b]")


def test_budgets_of_the_spec_stay_where_the_parser_has_the_markers(tmp_path: Path) -> None:
    found = model(tmp_path, "mistral", "[THINK][/THINK]", reasoning=ReasoningSettings(effort_budgets_tokens={"low": 7}))
    assert found.reasoning is not None and found.reasoning.effort_budgets_tokens == {"low": 7}
    assert (found.reasoning.start, found.reasoning.end) == ("[THINK]", "[/THINK]")


@pytest.mark.parametrize("kind", ["tool_parser", "reasoning_parser"])
def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{kind}=qwen4: expected auto, none, or one of .*qwen3"):
        model(tmp_path, "llama", **{kind: "qwen4"})


def test_a_template_file_of_the_spec_counts(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(HERMES)
    assert model(tmp_path, "llama", "", ("<|python_tag|>",), chat_template="own.jinja").tool_parser == "hermes"
