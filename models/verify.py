"""Whether the reasoner's steps and answer are right."""

from __future__ import annotations

import re
from dataclasses import dataclass

from models.problems import THINK_END, Problem

_LINE = re.compile(r"(\w)([-+*])(\d): (\d\d) ([-+*]) (\d) = (\d\d)")
_FIRST = re.compile(r"\w: (\d\d)")
_MARKERS = ("<think>", "<eos>")


@dataclass(frozen=True, slots=True)
class StepCheck:
    """One expected step of a trace, against what was written in its place."""

    written: bool
    """There is a well-formed line in its place."""
    copied: bool
    """Its label, operator and operand are the problem's, and its first number is the result of the line before."""
    arithmetic: bool
    """Its result follows from its own operands, wherever they came from."""

    @property
    def correct(self) -> bool:
        """Written, copied and computed right; it may still inherit an earlier line's wrong result."""
        return self.written and self.copied and self.arithmetic


def split_text(text: str) -> tuple[str, str]:
    """Trace and answer of a completion. Text without ``</think>`` is all answer, as a reasoning parser leaves it."""
    for marker in _MARKERS:
        text = text.replace(marker, "")
    trace, found, answer = text.rpartition(THINK_END)
    return (trace, answer) if found else ("", answer)


def verify_answer(problem: Problem, text: str) -> bool:
    """Whether the answer is exactly right.

    Args:
        problem: The problem asked.
        text: The whole completion, or the answer alone.
    Example:
        >>> from models.problems import generate
        >>> verify_answer(generate(1), generate(1).completion)
        True
    """
    return split_text(text)[1].strip() == str(problem.answer)


def verify_steps(problem: Problem, text: str) -> list[StepCheck]:
    """Check each step of the problem against the line in its place; the list is as long as ``problem.steps``.

    Args:
        problem: The problem asked.
        text: The whole completion, or the trace alone (a trace cut short counts its missing steps as not written).
    """
    trace = text.partition(THINK_END)[0].replace("<think>", "")
    lines = trace.split("\n")
    checks = []
    first = _FIRST.fullmatch(lines[0])
    value = int(first[1]) if first else None
    for index, step in enumerate(problem.steps, start=1):
        found = _LINE.fullmatch(lines[index]) if index < len(lines) else None
        if found is None:
            checks.append(StepCheck(False, False, False))
            value = None
            continue
        op, before, operand, after = found[5], int(found[4]), int(found[6]), int(found[7])
        copied = found[0].startswith(f"{step.label}{step.op}{step.operand}: ") and (op, operand, before) == (
            step.op,
            step.operand,
            value,
        )
        result = {"+": before + operand, "-": before - operand, "*": before * operand}[op]
        checks.append(StepCheck(True, copied, result == after))
        value = after
    return checks
