"""Write a small task for lm-eval: questions that need no download, of both kinds that harnesses ask.

    python benchmarks/lm_eval/make_task.py FOLDER

What a model makes of them says little about it; that two servers of one model get the same score to the digit says that
their log-probabilities are the same.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

QUESTIONS = 60
CHOICE = """\
task: baton_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
ROLLING = """\
task: baton_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} {{{{choices[label]}}}}"
metric_list:
  - {{metric: word_perplexity}}
  - {{metric: byte_perplexity}}
"""


def questions(draw: random.Random) -> list[dict[str, object]]:
    """Sums and rows of numbers, each with four answers."""
    made: list[dict[str, object]] = []
    for index in range(QUESTIONS):
        first, second = draw.randrange(2, 40), draw.randrange(2, 9)
        if index % 2:
            text, answer = f"Question: What is {first} plus {second}?\nAnswer:", first + second
        else:
            row = [first + second * step for step in range(4)]
            text, answer = f"The row goes on: {', '.join(map(str, row))},", first + second * 4
        others = draw.sample([value for value in range(answer - 9, answer + 9) if value not in (answer, 0)], 3)
        choices = [answer, *others]
        draw.shuffle(choices)
        made.append({"question": text, "choices": [f" {choice}" for choice in choices], "label": choices.index(answer)})
    return made


def main() -> None:
    """See the module."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in questions(random.Random(15))))
    (folder / "baton_sums.yaml").write_text(CHOICE.format(file=data))
    (folder / "baton_perplexity.yaml").write_text(ROLLING.format(file=data))


if __name__ == "__main__":
    main()
