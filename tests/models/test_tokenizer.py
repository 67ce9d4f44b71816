import string

import pytest

from models.problems import LABELS, generate_many
from models.tokenizer import (
    CHARACTERS,
    EOS_ID,
    SPECIALS,
    VOCABULARY,
    build_tokenizer,
    completion_ids,
    encode,
    prompt_ids,
)

TOKENIZER = build_tokenizer()


def test_one_token_to_a_character() -> None:
    text = "".join(CHARACTERS)
    assert TOKENIZER.encode(text) == encode(text)
    assert TOKENIZER.decode(encode(text)) == text
    assert len(VOCABULARY) == len(SPECIALS) + len(CHARACTERS) == 101 + len(LABELS)
    assert set(string.printable[:95]) < set(CHARACTERS)


def test_the_template_agrees_with_training() -> None:
    for problem in generate_many(1, 100):
        ids = TOKENIZER.apply_chat_template(problem.messages, add_generation_prompt=True, return_dict=False)
        assert ids == prompt_ids(problem.prompt)
        completion = completion_ids(problem.trace, str(problem.answer))
        assert [*TOKENIZER.encode(problem.completion), EOS_ID] == completion
        assert TOKENIZER.decode(completion, skip_special_tokens=True) == problem.completion


def test_the_thinking_markers_survive_decoding_and_the_others_do_not() -> None:
    ids = TOKENIZER.encode("<bos>a?<think>b</think>1<eos>")
    assert len(ids) == 8
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "a?<think>b</think>1"


def test_only_the_last_question_is_shown() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "1κ; ?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "2κ; ?"},
    ]
    text = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<bos>2κ; ?<think>"


def test_unknown_characters_are_refused_in_training() -> None:
    with pytest.raises(KeyError):
        encode("é")
