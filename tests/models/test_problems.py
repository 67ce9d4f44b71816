import random
import statistics

import pytest

from models.problems import (
    HELD_OUT_SHARE,
    LABELS,
    LONGEST,
    MAX_STEPS,
    MAX_VALUE,
    MIN_STEPS,
    Problem,
    draw_steps,
    generate,
    generate_many,
    split_of,
)

FORMS = ("symbols", "program", "words")


def test_the_same_arguments_give_the_same_problem() -> None:
    assert generate(5) == generate(5)
    assert generate(5, steps=7, form="words") == generate(5, steps=7, form="words")
    assert generate(5) != generate(6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [0, 1, 2, 12, 30])
def test_a_problem_holds_together(form: str, steps: int) -> None:
    for seed in range(20):
        problem = generate(seed, steps=steps, form=form)  # type: ignore[arg-type]
        assert len(problem.steps) == steps
        value = problem.start
        for step in problem.steps:
            assert step.before == value
            value = eval(f"{step.before}{step.op}{step.operand}")
            assert step.after == value
            assert 0 <= value <= MAX_VALUE
            assert step.label in problem.prompt
        assert problem.answer == value
        labels = [problem.label, *(step.label for step in problem.steps)]
        assert len(set(labels)) == steps + 1
        assert (problem.trace == "") == (steps == 0)
        assert problem.completion.endswith(f"</think>{value}")


def test_a_known_problem_reads_as_documented() -> None:
    assert generate(3, steps=2, form="symbols") == generate(3, steps=2, form="symbols")
    problem = generate(3, steps=2, form="symbols")
    first, second = problem.steps
    assert problem.trace == (
        f"{problem.label}: {problem.start:02}\n"
        f"{first.label}{first.op}{first.operand}: {problem.start:02} {first.op} {first.operand} = {first.after:02}\n"
        f"{second.label}{second.op}{second.operand}: "
        f"{first.after:02} {second.op} {second.operand} = {problem.answer:02}\n"
    )


def test_labels_stand_nowhere_in_the_wording() -> None:
    for form in FORMS:
        for problem in generate_many(2, 50, steps=20, form=form):  # type: ignore[arg-type]
            assert sorted(c for c in problem.prompt if c in LABELS) == sorted(
                [problem.label, *(step.label for step in problem.steps)]
            )


@pytest.mark.parametrize(("steps", "form"), [(-1, None), (MAX_STEPS + 1, None), (41, "words"), (61, "program")])
def test_too_many_steps_are_refused(steps: int, form: str | None) -> None:
    with pytest.raises(ValueError, match="expected 0"):
        generate(1, steps=steps, form=form)  # type: ignore[arg-type]


def test_train_and_held_out_share_no_chain_whatever_the_wording() -> None:
    held = {problem.chain for problem in generate_many(1, 1500, steps=2, split="held_out")}
    seen = {problem.chain for problem in generate_many(2, 1500, steps=2, split="train")}
    assert held.isdisjoint(seen)
    assert {split_of(chain) for chain in held} == {"held_out"}
    assert {split_of(chain) for chain in seen} == {"train"}


def test_the_split_takes_its_share() -> None:
    share = statistics.mean(split_of(f"{index}+1") == "held_out" for index in range(20_000))
    assert share == pytest.approx(HELD_OUT_SHARE, rel=0.1)


def test_generate_many_gives_different_problems() -> None:
    prompts = [problem.prompt for problem in generate_many(4, 300)]
    assert len(set(prompts)) == 300


def test_natural_lengths_are_heavy_tailed() -> None:
    rng = random.Random(0)
    steps = [draw_steps(rng) for _ in range(20_000)]
    assert set(steps) <= {0, *range(MIN_STEPS, MAX_STEPS + 1)}
    traces = sorted(len(problem.trace) for problem in generate_many(3, 2000))
    assert traces[int(0.99 * len(traces))] >= 10 * statistics.median(traces)
    assert traces[0] == 0
    assert traces[-1] > 1000


def test_the_longest_problems_fit_the_context() -> None:
    for form, steps in LONGEST.items():
        for problem in generate_many(1, 100, steps=steps, form=form):
            assert len(problem.prompt) + len(problem.completion) < 1800


def test_slips_are_wrong_by_one_and_carried_on() -> None:
    def slips(problem: Problem) -> int:
        values = zip(problem.steps, problem.steps[1:], strict=False)
        assert all(first.after == second.before for first, second in values)
        wrong = [abs(eval(f"{s.before}{s.op}{s.operand}") - s.after) for s in problem.steps]
        assert set(wrong) <= {0, 1}
        return sum(wrong)

    assert sum(slips(generate(seed, steps=40)) for seed in range(50)) == 0
    assert sum(slips(generate(seed, steps=40, slip_rate=0.1)) for seed in range(50)) == pytest.approx(200, rel=0.3)
