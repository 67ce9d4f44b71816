"""The character tokenizer: one token to a character, four markers, and a chat template that opens the thinking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.problems import LABELS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<bos>", "<eos>", "<think>", "</think>")
CHARACTERS = ("\n", *(chr(code) for code in range(32, 127)), *LABELS)
VOCABULARY = {token: index for index, token in enumerate((*SPECIALS, *CHARACTERS))}
PAD_ID, BOS_ID, EOS_ID, THINK_ID, THINK_END_ID = range(len(SPECIALS))

# The model knows single questions, so only the last user message is shown to it.
CHAT_TEMPLATE = (
    "<bos>{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{{ users[-1]['content'] }}{% if add_generation_prompt %}<think>{% endif %}"
)


def encode(text: str) -> list[int]:
    """Ids of plain text, one to a character; quicker than the tokenizer and without its markers.

    Raises:
        KeyError: a character is not in the vocabulary.
    """
    return [VOCABULARY[character] for character in text]


def prompt_ids(prompt: str) -> list[int]:
    """Ids of a prompt as the chat template writes it, ``<think>`` at the end."""
    return [BOS_ID, *encode(prompt), THINK_ID]


def completion_ids(trace: str, answer: str) -> list[int]:
    """Ids of a whole completion: trace, ``</think>``, answer, ``<eos>``."""
    return [*encode(trace), THINK_END_ID, *encode(answer), EOS_ID]


def build_tokenizer(max_tokens: int = 2048) -> PreTrainedTokenizerFast:
    """The same mapping as a Hugging Face tokenizer, chat template included.

    ``<think>`` and ``</think>`` are added but not special: text decoded with ``skip_special_tokens=True``, as servers
    do, keeps them, and a reasoning parser needs to see them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    raw.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<pad>",
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
