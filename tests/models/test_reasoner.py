"""What is shipped in models/reasoner: sizes, configuration, and that it really answers."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from models.evaluate import Sampling, torch_backend
from models.problems import generate_many
from models.tokenizer import BOS_ID, EOS_ID, VOCABULARY, build_tokenizer, prompt_ids
from models.verify import verify_answer, verify_steps

FOLDER = Path(__file__).parents[2] / "models" / "reasoner"
CONFIG = json.loads((FOLDER / "config.json").read_text())


def test_sizes() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 16 * 2**20
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 17 * 2**20
    parameters = LlamaForCausalLM.from_pretrained(FOLDER).num_parameters()
    assert 1e6 <= parameters <= 6e6


def test_configuration() -> None:
    assert CONFIG["architectures"] == ["LlamaForCausalLM"]
    assert CONFIG["max_position_embeddings"] == 2048
    assert CONFIG["head_dim"] == 64
    assert CONFIG["vocab_size"] == len(VOCABULARY)
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert generation["eos_token_id"] == CONFIG["eos_token_id"] == EOS_ID
    assert generation["bos_token_id"] == CONFIG["bos_token_id"] == BOS_ID


def test_the_shipped_tokenizer_is_the_built_one() -> None:
    shipped, built = AutoTokenizer.from_pretrained(FOLDER), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    assert shipped.chat_template == built.chat_template
    problem = generate_many(1, 1, steps=8)[0]
    assert shipped.apply_chat_template(problem.messages, add_generation_prompt=True, return_dict=False) == prompt_ids(
        problem.prompt
    )
    assert shipped.decode(shipped.encode(problem.completion), skip_special_tokens=True) == problem.completion


@pytest.fixture(scope="module")
def complete():  # type: ignore[no-untyped-def]
    return torch_backend(FOLDER)


def test_it_answers_short_chains(complete) -> None:  # type: ignore[no-untyped-def]
    problems = [*generate_many(101, 4, steps=0), *generate_many(101, 16, steps=5)]
    tokenizer = build_tokenizer()
    texts = [
        tokenizer.decode(many[0], skip_special_tokens=True) for many in complete(problems, Sampling(max_tokens=120))
    ]
    right = [verify_answer(problem, text) for problem, text in zip(problems, texts, strict=True)]
    assert sum(right) >= 18
    steps = [check.correct for p, text in zip(problems, texts, strict=True) for check in verify_steps(p, text)]
    assert sum(steps) >= 0.97 * len(steps)


def test_it_answers_a_long_chain(complete) -> None:  # type: ignore[no-untyped-def]
    problems = generate_many(102, 5, steps=20, form="symbols")
    tokenizer = build_tokenizer()
    texts = [
        tokenizer.decode(many[0], skip_special_tokens=True) for many in complete(problems, Sampling(max_tokens=420))
    ]
    assert sum(verify_answer(problem, text) for problem, text in zip(problems, texts, strict=True)) >= 4
