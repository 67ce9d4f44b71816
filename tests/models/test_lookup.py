import pytest
import torch

from models.problems import Problem, generate_many
from models.tokenizer import VOCABULARY, completion_ids, prompt_ids
from models.train import Recipe, build_model


@pytest.fixture(scope="module")
def planted() -> torch.nn.Module:
    model = build_model(Recipe()).eval()
    model.config._attn_implementation = "eager"
    return model


def attentions(model: torch.nn.Module, problem: Problem) -> tuple[list[int], tuple[torch.Tensor, ...]]:
    ids = prompt_ids(problem.prompt) + completion_ids(problem.trace, str(problem.answer))
    with torch.no_grad():
        return ids, model(input_ids=torch.tensor([ids]), output_attentions=True).attentions


@pytest.mark.parametrize("form", ["symbols", "program", "words"])
def test_planted_heads_gather_and_match_before_any_training(planted: torch.nn.Module, form: str) -> None:
    found = []
    for problem in generate_many(5, 5, steps=12, form=form):  # type: ignore[arg-type]
        ids, layers = attentions(planted, problem)
        places = torch.arange(8, len(ids))
        for head, distance in enumerate((1, 2, 3)):
            assert layers[0][0, head, places, places - distance].mean() > 0.8
        written = len(prompt_ids(problem.prompt)) + len(f"{problem.label}: 00\n")
        for step in problem.steps:
            label = VOCABULARY[step.label]
            assert ids[written] == label
            named = ids.index(label)
            found += [layers[1][0, head, written + head].argmax() == named for head in (0, 1)]
            written += len(step.text)
    assert sum(found) > 0.9 * len(found) == 0.9 * 2 * 5 * 12
