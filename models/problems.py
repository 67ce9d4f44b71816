"""Chains of integer arithmetic, written as symbols, programs or word problems, with the trace that solves each.

Pure and seeded: the same arguments always give the same problem, with no clock, file or torch inside.
A problem starts from a number and changes it step by step. Each step ends with a label of one letter that stands
nowhere else in the prompt, and labels count on (``α β γ ...``) from a random start. A small model gathers what stands
before a label and finds the step by it, however long the chain is. A line of the trace first copies the step, then
works it out:

    prompt  ``17κ; +5λ; -9μ; ?``
    trace   ``κ: 17\\nλ+5: 17 + 5 = 22\\nμ-9: 22 - 9 = 13\\n``
    answer  ``13``

Numbers in the trace always take two digits (``07``), and a step's parts stand at the same distances from its label
in every step of a form, so a small model finds each at a fixed distance.

A chain of no steps needs no thinking: its trace is empty and its answer stands in the prompt.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from typing import Literal

Form = Literal["symbols", "program", "words"]
Split = Literal["train", "held_out"]

MAX_VALUE = 99
"""Every start and every result lies in 0..MAX_VALUE."""
MAX_OPERAND = 9
"""Largest number added or taken away in one step."""
MIN_STEPS, MAX_STEPS = 2, 60
"""Bounds of a chain that needs thinking. A problem of 0 steps is asked for apart from these."""
TIMES_SHARE = 0.3
"""Share of steps that multiply, among those where a doubling stays in range."""
DIRECT_SHARE = 0.12
"""Share of the natural mix that needs no thinking."""
STEPS_MEDIAN, STEPS_SIGMA = 4.3, 1.15
"""Lognormal of the chain length in the natural mix, before rounding and clipping to MIN_STEPS..MAX_STEPS."""
HELD_OUT_SHARE = 1 / 16
"""Share of all chains that training never sees, chosen by a hash of the chain."""
THINK_END = "</think>"

LABELS = "αβγδεζηθικλμνξοπρστυφχψωΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩабвгдежзийклмнопрстуфхцчшщъыьэюя"
"""Greek, then Cyrillic letters: more than MAX_STEPS + 1, and none stands in the wording."""

LONGEST: dict[Form, int] = {"symbols": MAX_STEPS, "program": MAX_STEPS, "words": 40}
"""Most steps of a chain of each form that fit the context of 2,048 with their trace."""
_FORM_WEIGHTS: dict[Form, float] = {"symbols": 0.5, "program": 0.2, "words": 0.3}
_SEPARATORS = ("; ", ", ", "\n")
_NAMES = ("Ann", "Bob", "Eve", "Ian", "Kim", "Leo", "Mia", "Sam", "Tom", "Zoe")
_NOUNS = ("apples", "books", "cards", "coins", "eggs", "keys", "pens", "shells", "stamps", "tickets")
_VERBS = {
    "+": ("added", "earned", "found", "gained", "received"),
    "-": ("lent", "lost", "put out", "sent", "spent"),
    "*": ("times",),
}
"""The last letter gives the operator, as in ``_INSTRUCTIONS``: a model needs to look three characters back, no more."""
_INSTRUCTIONS = {"+": "add", "-": "sub", "*": "mul"}


@dataclass(frozen=True, slots=True)
class Step:
    """One change of the running value: ``before op operand = after``."""

    label: str
    before: int
    op: str
    operand: int
    after: int

    @property
    def text(self) -> str:
        """The step's line in the trace, its newline included."""
        return f"{self.label}{self.op}{self.operand}: {self.before:02} {self.op} {self.operand} = {self.after:02}\n"


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt, the steps that solve it, and what follows from them."""

    prompt: str
    form: Form
    label: str
    start: int
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The value after the last step."""
        return self.steps[-1].after if self.steps else self.start

    @property
    def trace(self) -> str:
        """What stands between ``<think>`` and ``</think>``: empty where no thinking is needed."""
        if not self.steps:
            return ""
        return f"{self.label}: {self.start:02}\n" + "".join(step.text for step in self.steps)

    @property
    def completion(self) -> str:
        """The whole text expected from the model: trace, ``</think>``, answer."""
        return f"{self.trace}{THINK_END}{self.answer}"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The problem as chat messages."""
        return [{"role": "user", "content": self.prompt}]

    @property
    def chain(self) -> str:
        """The arithmetic without labels or wording, such as ``17+5-9``; for a problem of no steps, the prompt."""
        if not self.steps:
            return self.prompt
        return str(self.start) + "".join(f"{step.op}{step.operand}" for step in self.steps)

    @property
    def split(self) -> Split:
        """Which side of the split this chain is on, whatever its wording and labels."""
        return split_of(self.chain)


def split_of(chain: str) -> Split:
    """Side of the split that a chain falls on: a pure function of its text, so training and evaluation cannot differ.

    Example:
        >>> split_of("17+5-9")
        'train'
    """
    digest = hashlib.sha256(chain.encode()).digest()
    return "held_out" if int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32 else "train"


def draw_steps(rng: random.Random) -> int:
    """Number of steps of one problem of the natural mix: 0, or heavy-tailed in MIN_STEPS..MAX_STEPS."""
    if rng.random() < DIRECT_SHARE:
        return 0
    steps = round(rng.lognormvariate(math.log(STEPS_MEDIAN), STEPS_SIGMA))
    return min(max(steps, MIN_STEPS), MAX_STEPS)


def generate(
    seed: int,
    *,
    steps: int | None = None,
    split: Split = "held_out",
    form: Form | None = None,
    slip_rate: float = 0.0,
    shuffled: bool = False,
) -> Problem:
    """One problem, the same for the same arguments.

    Args:
        seed: Any integer. Different seeds give independent problems.
        steps: 0, or 1..MAX_STEPS; by default drawn from the natural mix.
        split: Side of the split to draw from; the default is the side that training never sees.
        form: Wording; by default drawn, among those that fit the context at this length.
        slip_rate: For training alone: chance of a step whose result is wrong by one, the trace then going on from it.
        shuffled: For training alone: the prompt names the steps in any order, and their letters show the right one.
    Raises:
        ValueError: steps is out of range, or too many for the form asked for.
    """
    rng = random.Random(f"{split}:{seed}")
    count = draw_steps(rng) if steps is None else steps
    longest = MAX_STEPS if form is None else LONGEST[form]
    if not 0 <= count <= longest:
        raise ValueError(f"steps={count}: expected 0..{longest}")
    while True:
        problem = _draw(rng, count, form, slip_rate, shuffled)
        if problem.split == split:
            return problem


def generate_many(
    seed: int, count: int, *, steps: int | None = None, split: Split = "held_out", form: Form | None = None
) -> list[Problem]:
    """``count`` different problems; seeds of two calls never overlap while ``count`` is below a million."""
    problems: dict[str, Problem] = {}
    draw = seed * 1_000_000
    while len(problems) < count:
        problem = generate(draw, steps=steps, split=split, form=form)
        problems.setdefault(problem.prompt, problem)
        draw += 1
    return list(problems.values())


def _draw(rng: random.Random, count: int, form: Form | None, slip_rate: float, shuffled: bool) -> Problem:
    if form is None:
        fitting = [name for name, longest in LONGEST.items() if count <= longest]
        form = rng.choices(fitting, [_FORM_WEIGHTS[name] for name in fitting])[0]
    first_label = rng.randrange(len(LABELS))
    start = value = rng.randint(0, MAX_VALUE)
    steps = []
    for index in range(1, count + 1):
        op, operand = _draw_change(rng, value)
        after = {"+": value + operand, "-": value - operand, "*": value * operand}[op]
        if slip_rate and rng.random() < slip_rate:
            after += 1 if after == 0 or (after < MAX_VALUE and rng.random() < 0.5) else -1
        steps.append(Step(_label(first_label + index), value, op, operand, after))
        value = after
    write = {"symbols": _symbols, "program": _program, "words": _words}[form]
    label = _label(first_label)
    named = rng.sample(steps, len(steps)) if shuffled else steps
    return Problem(write(rng, label, start, named), form, label, start, tuple(steps))


def _label(index: int) -> str:
    """The letter at a place of LABELS, which begins again after its end."""
    return LABELS[index % len(LABELS)]


def _draw_change(rng: random.Random, value: int) -> tuple[str, int]:
    times = [factor for factor in (2, 3) if 0 < value * factor <= MAX_VALUE]
    if times and rng.random() < TIMES_SHARE:
        return "*", rng.choice(times)
    # High values are mostly lowered and low ones raised, or chains would stick at the bounds with operands of 1.
    if value == MAX_VALUE or (value > 0 and rng.random() < (value + 5) / (MAX_VALUE + 10)):
        return "-", _draw_operand(rng, value)
    return "+", _draw_operand(rng, MAX_VALUE - value)


def _draw_operand(rng: random.Random, most: int) -> int:
    """1..MAX_OPERAND, each as likely as its reciprocal.

    With equal chances a sum's last digit says nothing until both addends are read together, and training stands still
    for long; here most results lie near the number before, and the rest is learned from there.
    """
    operands = range(1, min(MAX_OPERAND, most) + 1)
    return rng.choices(operands, [1 / operand for operand in operands])[0]


def _symbols(rng: random.Random, label: str, start: int, steps: list[Step]) -> str:
    separator = rng.choice(_SEPARATORS)
    return separator.join([f"{start}{label}", *(f"{step.op}{step.operand}{step.label}" for step in steps), "?"])


def _program(rng: random.Random, label: str, start: int, steps: list[Step]) -> str:
    lines = [f"{_INSTRUCTIONS[step.op]} {step.operand}{step.label}" for step in steps]
    return rng.choice(("\n", "; ")).join([f"set {start}{label}", *lines, "Result?"])


def _words(rng: random.Random, label: str, start: int, steps: list[Step]) -> str:
    name, noun = rng.choice(_NAMES), rng.choice(_NOUNS)
    clauses = [f"{rng.choice(_VERBS[step.op])} {step.operand}{step.label}" for step in steps]
    events = f", {', '.join(clauses)}" if clauses else ""
    question = rng.choice((f"How many {noun} has {name}?", f"How many {noun} are there?"))
    return f"{name} had {start}{label} {noun}{events}. {question}"
