"""What a gateway knows of a model: tokeniser, chat template, defaults, limits and reasoning markers; no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.model import model_path
from cluster.model.model_parsers import NONE, marker_texts, with_parsers
from cluster.spec.config import ClusterSpec
from cluster.spec.portfolio import Portfolio
from orchestrator.policy.phases import ReasoningMarkers
from orchestrator.request.call_parsing import CallParsing
from orchestrator.request.chat_template import ChatTemplate, read_template_file

_DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class ModelFront:
    """The parts of a model that a gateway needs: tokeniser, template, defaults and limits; no weights."""

    name: str
    max_model_len_tokens: int
    vocab_size: int
    tokenizer: Any  # tokenizers.Tokenizer
    template: ChatTemplate
    sampling_defaults: dict[str, Any] = field(default_factory=dict)
    markers: ReasoningMarkers | None = None
    eos_ids: frozenset[int] = frozenset()
    calls: CallParsing | None = None
    """Reads tool calls; None where they stay text."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the model's own special tokens (bos)."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=True).ids
        return ids


def load_fronts(portfolio: Portfolio) -> dict[str, ModelFront]:
    """`load_model_front` of each model, by name.

    Raises:
        ConfigError: as it; or a model's folder is none.
    """
    return {name: load_model_front(spec, model_path.check(spec.model.path)) for name, spec in portfolio.models.items()}


def load_model_front(spec: ClusterSpec, folder: Path) -> ModelFront:
    """Read tokeniser, template and defaults from the model folder.

    Raises:
        ConfigError: no fast tokeniser, the reasoning markers cannot be encoded, the spec's chat template is no
            template, or vLLM has no parser of the name in the spec.
    """
    settings = with_parsers(spec.model, folder)
    template_text = read_template_file(spec.model.chat_template, folder)
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=spec.model.trust_remote_code)
    tokenizer = getattr(template, "backend_tokenizer", None)
    if tokenizer is None:
        raise ConfigError(f"model.path={folder}: it has no fast tokenizer (tokenizer.json); convert it first")
    config = json.loads((folder / "config.json").read_text())
    model_type = str(config.get("model_type") or "")
    config = config.get("text_config", config)
    defaults: dict[str, Any] = {}
    eos = [config.get("eos_token_id"), template.eos_token_id]
    if (folder / "generation_config.json").is_file():
        given = json.loads((folder / "generation_config.json").read_text())
        defaults = {name: given[name] for name in _DEFAULTED if given.get(name) is not None}
        eos.append(given.get("eos_token_id"))
    markers = None
    if settings.reasoning is not None:
        start, end, *implicit = (
            tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in marker_texts(settings)
        )
        if not start or not end:
            raise ConfigError("model.reasoning: the tokenizer makes no token of start or end")
        markers = ReasoningMarkers(start, end, tuple(implicit))
    return ModelFront(
        name=spec.model.served_name,
        max_model_len_tokens=spec.model.max_model_len_tokens,
        vocab_size=int(config.get("vocab_size") or tokenizer.get_vocab_size()),
        tokenizer=tokenizer,
        template=ChatTemplate(template, template_text),
        sampling_defaults=defaults,
        markers=markers,
        calls=None if settings.tool_parser == NONE else CallParsing(settings.tool_parser, model_type, template),
        eos_ids=frozenset(
            token for ids in eos for token in (ids if isinstance(ids, list) else [ids]) if isinstance(token, int)
        ),
    )
