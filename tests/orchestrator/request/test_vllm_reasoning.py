from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from cluster.errors import ConfigError
from cluster.model.model_parsers import reasons, with_parsers
from cluster.spec.model_settings import ModelSettings
from orchestrator.request.vllm_reasoning import with_vllm_markers
from tests.fakes.tokenizer import byte_tokenizer


def settings(folder: Path, name: str, *tokens: str) -> ModelSettings:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    given = ModelSettings(path=str(folder), served_name="m", max_model_len_tokens=64, reasoning_parser=name)
    return with_parsers(given, folder)


def test_a_family_that_is_not_listed_has_vllms_markers(tmp_path: Path) -> None:
    given = settings(tmp_path, "ernie45")
    assert given.reasoning is None and reasons(given)
    made = with_vllm_markers(given, tmp_path)
    assert made.reasoning is not None
    assert (made.reasoning.start, made.reasoning.end) == ("<think>", "</think>")
    assert with_vllm_markers(with_parsers(made, tmp_path), tmp_path) == made


def test_a_listed_family_needs_no_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.reasoning", None)
    given = settings(tmp_path, "qwen3")
    assert with_vllm_markers(given, tmp_path) == given


def test_a_parser_without_fixed_markers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.reasoning_parser=granite: .* set model\.reasoning\.start"):
        with_vllm_markers(settings(tmp_path, "granite"), tmp_path)
