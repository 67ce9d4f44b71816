"""Counts the tokens of text: by a tokenizer, or by characters where the user asks for an estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError
from planner.simulator.trace_formats.reading import TraceOptions


@dataclass(frozen=True)
class Counter:
    """A way to count, and the sentence that says which."""

    count: Callable[[str], int]
    note: str


def counter_for(path: Path, options: TraceOptions) -> Counter:
    """The way that the user chose.

    Raises:
        ConfigError: none was chosen, or the tokenizer cannot be loaded.
    """
    if options.tokenizer is not None:
        return _by_tokenizer(options.tokenizer)
    per_token = options.chars_per_token
    if per_token is None:
        raise ConfigError(
            f"{path}: holds text, not token counts: pass --tokenizer with a model's folder or tokenizer.json, "
            "or --chars-per-token 4 for an estimate"
        )

    def estimate(text: str) -> int:
        return max(1, round(len(text) / per_token)) if text else 0

    return Counter(estimate, f"lengths are estimates: {per_token:g} characters to a token")


def _by_tokenizer(path: Path) -> Counter:
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    # The library raises bare Exceptions.
    except Exception as error:
        raise ConfigError(f"cannot load the tokenizer {file}: {' '.join(str(error).split())}") from error

    def count(text: str) -> int:
        # Lone surrogates, which JSON can spell, are no text to the tokenizer.
        sound = text.encode("utf-8", "replace").decode()
        return len(tokenizer.encode(sound, add_special_tokens=False).ids)

    return Counter(
        count, f"lengths by the tokenizer {file.name if path == file else path.name}; no chat template counted"
    )
