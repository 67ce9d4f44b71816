import asyncio
from pathlib import Path

import pytest

from models.evaluate import (
    budget_curve,
    lengths_of,
    plot_budget,
    render,
    trace_tokens,
    write_card,
)
from models.problems import Problem, generate, generate_many
from models.tokenizer import THINK_END_ID, encode
from models.verify import split_text, verify_answer, verify_steps

PROBLEM = generate(1, steps=5)


def test_the_expected_completion_is_right() -> None:
    for problem in generate_many(1, 100):
        for text in (problem.completion, "<think>" + problem.completion + "<eos>"):
            assert verify_answer(problem, text)
            checks = verify_steps(problem, text)
            assert len(checks) == len(problem.steps)
            assert all(check.correct for check in checks)
        assert verify_answer(problem, str(problem.answer))


def test_wrong_answers_are_caught() -> None:
    assert not verify_answer(PROBLEM, PROBLEM.trace)
    assert not verify_answer(PROBLEM, f"{PROBLEM.trace}</think>{PROBLEM.answer + 1}")
    assert not verify_answer(PROBLEM, f"{PROBLEM.trace}</think>{PROBLEM.answer}0")
    assert not verify_answer(PROBLEM, "")


def test_a_wrong_result_is_charged_to_its_own_step_alone() -> None:
    lines = PROBLEM.trace.splitlines()
    second, third = PROBLEM.steps[1], PROBLEM.steps[2]
    wrong = second.after + 1
    lines[2] = lines[2][:-2] + f"{wrong:02}"
    carried = eval(f"{wrong}{third.op}{third.operand}")
    lines[3] = f"{third.label}{third.op}{third.operand}: {wrong:02} {third.op} {third.operand} = {carried:02}"
    checks = verify_steps(PROBLEM, "\n".join(lines[:4]) + "\n")
    assert [check.correct for check in checks] == [True, False, True, False, False]
    assert checks[1].copied
    assert not checks[1].arithmetic
    assert not checks[3].written


def test_a_miscopied_step_is_caught() -> None:
    step = PROBLEM.steps[0]
    other = "+" if step.op == "-" else "-"
    result = eval(f"{step.before}{other}{step.operand}")
    line = f"{step.label}{other}{step.operand}: {step.before:02} {other} {step.operand} = {result:02}"
    checks = verify_steps(PROBLEM, f"{PROBLEM.label}: {PROBLEM.start:02}\n{line}\n")
    assert not checks[0].copied
    assert checks[0].arithmetic


def test_nonsense_is_no_step_and_raises_nothing() -> None:
    for text in ("", "\n\n\n", "κ: \n: = \n", "</think>", "x" * 3000):
        assert not any(check.correct for check in verify_steps(PROBLEM, text))


def test_text_splits_at_the_marker() -> None:
    assert split_text("<think>a</think>7<eos>") == ("a", "7")
    assert split_text("7") == ("", "7")


def cut_answer(problem: Problem, budget_tokens: int) -> str:
    """An ideal thinker: right with enough budget, else the last result it reached."""
    if budget_tokens >= len(problem.trace):
        return problem.completion
    return problem.trace[:budget_tokens] + "</think>-1"


PROBLEMS = [*generate_many(1, 3, steps=4), *generate_many(1, 3, steps=9)]
BY_PROMPT = {problem.prompt: problem for problem in PROBLEMS}


@pytest.mark.parametrize("awaited", [False, True])
def test_the_budget_curve_takes_plain_and_async_callables(awaited: bool, tmp_path: Path) -> None:
    def plain(messages: list[dict[str, str]], budget_tokens: int) -> str:
        return cut_answer(BY_PROMPT[messages[0]["content"]], budget_tokens)

    async def eventual(messages: list[dict[str, str]], budget_tokens: int) -> str:
        return plain(messages, budget_tokens)

    points = asyncio.run(budget_curve(eventual if awaited else plain, PROBLEMS, shares=(0.25, 1.0)))
    assert [(p.steps, p.share, p.accuracy, p.problems) for p in points] == [
        (4, 0.25, 0.0, 3),
        (4, 1.0, 1.0, 3),
        (9, 0.25, 0.0, 3),
        (9, 1.0, 1.0, 3),
    ]
    plot_budget(points, tmp_path / "docs" / "curve.png", "a test")
    assert (tmp_path / "docs" / "curve.png").stat().st_size > 5000


def test_trace_lengths() -> None:
    assert trace_tokens([*encode("abc"), THINK_END_ID, *encode("1")]) == 3
    assert trace_tokens(encode("abc")) == 3
    some = lengths_of([0, 10, 20, 30, 1000])
    assert (some.p50, some.longest, some.problems) == (20, 1000, 5)


def test_the_card_is_rewritten_between_its_markers(tmp_path: Path) -> None:
    row = {"steps": 4, "problems": 9, "accuracy": 1.0, "step_accuracy": 0.5}
    measured = {
        "accuracy": [{**row, "sampled_accuracy": 0.25, "vote_accuracy": 0.75, "votes": 5}],
        "natural_accuracy": 0.5,
        "lengths": {"problems": 9, "p50": 10.0, "p90": 20.0, "p99": 100.0, "longest": 120, "mean": 15.0},
        "agreement": {"problems": 9, "same_answers": 8, "same_tokens": 7},
    }
    card = tmp_path / "README.md"
    card.write_text("head\n<!-- measured: begin -->\nold\n<!-- measured: end -->\ntail\n")
    write_card(tmp_path, measured)
    text = card.read_text()
    assert text.startswith("head\n")
    assert text.endswith("<!-- measured: end -->\ntail\n")
    assert "old" not in text
    assert render(measured) in text
    assert "| 4 | 9 | 100.0% | 50.00% | 25.0% | 75.0% of 5 |" in text
