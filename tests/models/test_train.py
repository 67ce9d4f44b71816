"""How the reasoning model is trained: batches, loss, learning rates, the optimizer, and going on from a checkpoint."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import train as training
from models.muon import Muon, _orthogonal
from models.problems import MAX_STEPS, Problem, generate, split_of
from models.tokenizer import EOS_ID, PAD_ID, THINK_END_ID, THINK_ID, VOCABULARY
from models.train import IGNORED, Recipe, collate, draw_batch, exact_share, loss_of, rate_at

RECIPE = Recipe(layers=2, updates=4, batch_tokens=256, micro_batches=1, warmup_updates=1, cooldown=0.5)
CHARACTERS = {index: character for character, index in VOCABULARY.items()}


@pytest.fixture(scope="module")
def model() -> Any:
    return training.build_model(RECIPE)


# --- batches --------------------------------------------------------------------------------------------------------


def test_only_completions_carry_loss_and_padding_carries_none() -> None:
    problems = [generate(1, steps=2), generate(2, steps=9)]
    ids, labels = collate(problems)
    assert ids.shape == labels.shape
    for problem, row, marked in zip(problems, ids.tolist(), labels.tolist(), strict=True):
        begin = row.index(THINK_ID) + 1
        end = row.index(EOS_ID) + 1
        assert marked[:begin] == [IGNORED] * begin
        assert marked[begin:end] == row[begin:end]
        assert set(marked[end:]) <= {IGNORED}
        assert set(row[end:]) <= {PAD_ID}
        text = "".join(CHARACTERS[token] for token in row[begin:end])
        assert text == problem.completion + "<eos>"


@settings(max_examples=25)
@given(st.integers(0, 3000), st.integers(0, 1), st.integers(2, MAX_STEPS))
def test_a_batch_follows_from_its_place_alone_and_fits_its_budget(update: int, micro: int, longest: int) -> None:
    recipe = Recipe()
    ids, labels = draw_batch(recipe, update, micro, longest)
    again, _ = draw_batch(recipe, update, micro, longest)
    assert torch.equal(ids, again)
    budget = recipe.batch_tokens // recipe.micro_batches
    # A problem longer than the budget makes a batch of its own.
    assert len(ids) == 1 or ids.numel() <= budget
    assert (labels != IGNORED).any(-1).all()


def test_training_never_sees_a_chain_that_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Problem] = []

    def keep(problems: list[Problem]) -> Any:
        seen.extend(problems)
        return collate(problems)

    monkeypatch.setattr(training, "collate", keep)
    for update in range(20):
        draw_batch(Recipe(slip_rate=0), update, 0, 12)
    assert len(seen) > 40
    assert {split_of(problem.chain) for problem in seen} == {"train"}


@pytest.mark.parametrize(("update", "slips"), [(1799, False), (1800, True)])
def test_slips_begin_when_the_arithmetic_is_learned(monkeypatch: pytest.MonkeyPatch, update: int, slips: bool) -> None:
    rates: set[float] = set()

    def spy(seed: int, **options: Any) -> Problem:
        rates.add(options["slip_rate"])
        return generate(seed, **options)

    monkeypatch.setattr(training, "generate", spy)
    draw_batch(Recipe(), update, 0, 12)
    assert rates == ({Recipe().slip_rate} if slips else {0.0})


# --- loss -----------------------------------------------------------------------------------------------------------


def test_without_a_weight_the_loss_is_plain_cross_entropy(model: Any) -> None:
    ids, labels = collate([generate(3, steps=3), generate(4, steps=5)])
    with torch.no_grad():
        loss, _, _ = loss_of(model, ids, labels)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        plain = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
    assert float(loss) == pytest.approx(float(plain), rel=1e-4)


@pytest.mark.parametrize("steps", [0, 1, 4, 20])
def test_operator_and_operand_of_each_step_are_looked_up(model: Any, steps: int) -> None:
    problems = [generate(seed, steps=steps, form="symbols") for seed in (5, 6)]
    with torch.no_grad():
        plain, right, lookups = loss_of(model, *collate(problems))
        weighted, _, _ = loss_of(model, *collate(problems), lookup_weight=3.0)
    assert lookups == 2 * steps * len(problems)
    assert 0 <= right <= lookups
    assert (float(weighted) > float(plain)) == bool(steps)


class Oracle(torch.nn.Module):
    """Says each next token of the batch it is shown, but for one place where it says another."""

    def __init__(self, wrong_at: int | None = None, after: int = THINK_ID) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))
        self.wrong_at, self.after = wrong_at, after

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        following = torch.roll(input_ids, -1, 1)
        if self.wrong_at is not None:
            for row, ids in enumerate(input_ids.tolist()):
                place = ids.index(self.after) + self.wrong_at
                following[row, place] = (following[row, place] + 1) % len(VOCABULARY)
        logits = torch.nn.functional.one_hot(following, len(VOCABULARY)).float()
        return type("Output", (), {"logits": logits})


PROBLEMS = [generate(seed, steps=3) for seed in range(5)]


@pytest.mark.parametrize(
    ("oracle", "share"),
    [
        pytest.param(Oracle(), 1.0, id="all right"),
        pytest.param(Oracle(0), 0.0, id="first token of the trace"),
        pytest.param(Oracle(0, THINK_END_ID), 0.0, id="first of the answer"),
        pytest.param(Oracle(-2), 1.0, id="a token of the prompt, which is given"),
    ],
)
def test_one_wrong_token_anywhere_makes_a_completion_wrong(oracle: Oracle, share: float) -> None:
    assert exact_share(oracle, PROBLEMS, rows=2) == share  # type: ignore[arg-type]


# --- learning rates -------------------------------------------------------------------------------------------------


def test_rates_rise_hold_drop_and_end_at_nothing() -> None:
    recipe = Recipe()
    rates = [rate_at(recipe, update) for update in range(recipe.updates)]
    assert rates[: recipe.warmup_updates] == sorted(rates[: recipe.warmup_updates])
    assert set(rates[recipe.warmup_updates : recipe.plateau_to]) == {1.0}
    assert rates[recipe.plateau_to] == pytest.approx(recipe.drop)
    later = round(recipe.plateau_to + recipe.half_life_updates)
    assert rates[later] == pytest.approx(recipe.drop / 2)
    assert rates[recipe.plateau_to :] == sorted(rates[recipe.plateau_to :], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert rate_at(recipe, recipe.updates) == 0


@pytest.mark.parametrize("updates", [1, 2, 4, 5, 9, 100])
def test_the_shortest_runs_have_rates_too(updates: int) -> None:
    recipe = Recipe(updates=updates)
    assert all(0 < rate_at(recipe, update) <= 1 for update in range(updates))


@settings(max_examples=20)
@given(st.integers(2250, 6000))
def test_a_longer_run_is_the_same_until_the_shorter_one_cools_down(updates: int) -> None:
    short, long = Recipe(), Recipe(updates=updates)
    for update in range(0, short.cooldown_from, 97):
        assert rate_at(long, update) == rate_at(short, update)


# --- the optimizer --------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e3]))
def test_updates_are_near_orthogonal_whatever_the_gradients_scale(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    matrix = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    found = _orthogonal(matrix[None])[0]
    assert found.shape == matrix.shape
    # Newton-Schulz with these coefficients takes singular values into a band about 1; tiny ones lag behind.
    values = torch.linalg.svdvals(matrix)
    kept = torch.linalg.svdvals(found)[values > 0.05 * values.norm()]
    assert bool(((kept > 0.3) & (kept < 1.3)).all())
    assert float((found * matrix).sum()) > 0  # along the gradient, not against it


def steps(matrices: list[torch.Tensor], gradients: list[torch.Tensor], **options: float) -> list[torch.Tensor]:
    parameters = [torch.nn.Parameter(matrix.clone()) for matrix in matrices]
    optimizer = Muon(parameters, lr=0.1, **options)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_matrices_are_updated_together_as_they_would_be_alone() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in ((4, 6), (6, 4), (4, 6), (5, 5))]
    gradients = [torch.randn_like(matrix) for matrix in matrices]
    together = steps(matrices, gradients)
    for one, gradient, expected in zip(matrices, gradients, together, strict=True):
        (alone,) = steps([one], [gradient])
        torch.testing.assert_close(alone, expected)


def test_weight_decay_shrinks_before_the_update_is_added() -> None:
    torch.manual_seed(0)
    matrix, gradient = torch.randn(4, 4), torch.randn(4, 4)
    (plain,) = steps([matrix], [gradient])
    (decayed,) = steps([matrix], [gradient], weight_decay=0.5)
    torch.testing.assert_close(decayed, plain - 0.1 * 0.5 * matrix)


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """The first weights are made once, and reports probe a few short problems instead of sixty long ones."""
    monkeypatch.setattr(training, "build_model", lambda recipe: copy.deepcopy(model))
    monkeypatch.setattr(training, "generate_many", lambda seed, count, steps: [generate(seed, steps=2)])


def run(recipe: Recipe, checkpoint: Path, every: int = 2) -> dict[str, torch.Tensor]:
    model = training.train(recipe, checkpoint, torch.device("cpu"), report_every=every)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.usefixtures("quick")
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(RECIPE, tmp_path / "whole.pt")

    def stopped(recipe: Recipe, update: int, micro: int, longest: int) -> Any:
        if update == 2:
            raise KeyboardInterrupt
        return draw_batch(recipe, update, micro, longest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "draw_batch", stopped)
        run(RECIPE, tmp_path / "part.pt")
    resumed = run(RECIPE, tmp_path / "part.pt")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value)
    saved = torch.load(tmp_path / "part.pt", weights_only=True)
    assert saved["update"] == RECIPE.updates
    assert Recipe(**json.loads(saved["recipe"])) == RECIPE
    with pytest.raises(ValueError, match="written by another recipe; remove it, or pass --checkpoint"):
        run(replace(RECIPE, seed=2), tmp_path / "part.pt")
    # It has cooled down: a longer run would have had other rates.
    with pytest.raises(ValueError, match="another recipe"):
        run(replace(RECIPE, updates=8), tmp_path / "part.pt")


def test_what_is_saved_is_what_transformers_loads(model: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    expected = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    training.save(copy.deepcopy(model), RECIPE, tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name
    ids = AutoTokenizer.from_pretrained(tmp_path)("a<think>b")["input_ids"]
    assert ids == [VOCABULARY["a"], THINK_ID, VOCABULARY["b"]]
    assert json.loads((tmp_path / "recipe.json").read_text())["layers"] == 2
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == EOS_ID
