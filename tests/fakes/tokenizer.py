"""A byte-level tokenizer made on the spot: ids 0 to 255 are the bytes, then the marker tokens."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from orchestrator.policy.phases import ReasoningMarkers
from orchestrator.request.chat_template import ChatTemplate
from orchestrator.request.model_front import ModelFront

THINK, END_THINK = 256, 257
MARKERS = ReasoningMarkers((THINK,), (END_THINK,))


def _byte_chars() -> list[str]:
    """GPT-2's printable stand-in for each byte, in byte order."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars = {byte: chr(byte) for byte in kept}
    for shift, byte in enumerate(byte for byte in range(256) if byte not in chars):
        chars[byte] = chr(256 + shift)
    return [chars[byte] for byte in range(256)]


def byte_tokenizer() -> Tokenizer:
    vocabulary = {char: byte for byte, char in enumerate(_byte_chars())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return tokenizer


class Template:
    """Stands for a transformers tokenizer's chat template."""

    chat_template: str | None = "fake"

    def get_chat_template(self, chat_template: str | None, tools: Any) -> str | None:
        return self.chat_template

    def apply_chat_template(self, messages: list[dict[str, Any]], *, tools: Any, **options: Any) -> str:
        if any(message["role"] == "refused" for message in messages):
            raise RuntimeError("roles must alternate")
        text = "".join(f"{message['role']}:{message['content']};" for message in messages)
        return text + ("assistant:" if options["add_generation_prompt"] else "")


def front(*, markers: ReasoningMarkers | None = None, max_model_len_tokens: int = 1024) -> ModelFront:
    return ModelFront(
        name="fake",
        max_model_len_tokens=max_model_len_tokens,
        vocab_size=258,
        tokenizer=byte_tokenizer(),
        template=ChatTemplate(Template()),
        markers=markers,
    )
