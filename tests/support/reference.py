"""What a model answers by a plain forward pass: transformers in float32, computed on the machine that asks.

    python -m tests.support.reference MODEL MAX_TOKENS < questions.json
    python -m tests.support.reference MODEL score < prompts.json

A process of its own, so that torch's memory and threads go with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def greedy_reference(model: Path, questions: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Greedy tokens that answer each question, asked as a user's message; the token that ends a turn included."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.reference", str(model), str(max_tokens)],
        input=json.dumps(list(questions)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def prompt_logprobs_reference(model: Path, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-probability of each prompt token but the first, given all before it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.reference", str(model), "score"],
        input=json.dumps([list(prompt) for prompt in prompts]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return scores


def main() -> None:
    """See the module."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    if sys.argv[2] == "score":
        rows = []
        for prompt in json.load(sys.stdin):
            ids = torch.tensor([prompt])
            with torch.no_grad():
                logprobs = model(ids).logits[0, :-1].log_softmax(-1)
            rows.append(logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist())
        print(json.dumps(rows))
        return
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    answers = []
    for question in json.load(sys.stdin):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            whole = model.generate(**prompt, do_sample=False, max_new_tokens=int(sys.argv[2]))
        answers.append(whole[0, prompt["input_ids"].shape[1] :].tolist())
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
