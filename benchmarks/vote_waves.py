"""What an early stop saves a vote, and what its waves cost in time: `python -m benchmarks.vote_waves`.

The strategy is the one that gateways run. Its traces are drawn, not generated: all of a problem are about equally long,
as the small reasoner's are, and each step slips with the rate fitted to that model (1.14 % at 30 steps, 1.43 % at 60),
by one to three, which is carried to the answer. So this says what the rule does with such votes, not what a model does.
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass

from orchestrator.policy.thinking.agreement import Tally
from orchestrator.policy.thinking.state import End, Settings, State, Trace
from orchestrator.policy.thinking.strategies import STRATEGIES

CAP = 16
SLIPS = {30: 0.0114, 60: 0.0143}
SPREAD = 0.05
"""By which traces of a problem end apart."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One problem: whether the vote and the majority of all are right, and what the vote took of tokens and time."""

    right: bool
    majority_right: bool
    tokens_share: float
    trace_times: float


def answer(draw: random.Random, steps: int) -> str:
    """How far off a trace's answer is; 0 is right."""
    slips = (draw.choice((-1, 1)) * draw.choice((1, 1, 1, 2, 3)) for _ in range(steps) if draw.random() < SLIPS[steps])
    return str(sum(slips) % 100)


def vote(draw: random.Random, steps: int, agree: float, least: int) -> Outcome:
    """Run the strategy over drawn traces, in time."""
    answers = [answer(draw, steps) for _ in range(CAP)]
    lengths = [1 + draw.random() * SPREAD for _ in range(CAP)]
    strategy = STRATEGIES["vote"](Settings(least, CAP, agree))
    running: dict[int, float] = {}
    ended: list[Trace] = []
    started, now = 0, 0.0
    while True:
        state = State(CAP, CAP - started, tuple(map(Trace, running)), tuple(ended))
        step = strategy.next(state)
        choice = step.choice
        for _ in range(min(step.start, CAP - started) if choice is None else 0):
            running[started] = now
            started += 1
        if choice is None and not running:
            choice = strategy.settle(state)
        if choice is not None:
            break
        first = min(running, key=lambda branch: running[branch] + lengths[branch])
        now = running.pop(first) + lengths[first]
        ended.append(Trace(first, 1, End.FINISHED, answers[first]))
    cut_short = sum((now - since) / lengths[branch] for branch, since in running.items())
    majority = Tally.of([Trace(branch, 1, End.FINISHED, each) for branch, each in enumerate(answers)]).leader
    return Outcome(answers[choice.branch] == "0", majority == "0", (len(ended) + cut_short) / CAP, now)


def main() -> None:
    """Print a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("steps agree first  vote  of 16  tokens  time p50  p95")
    for steps in SLIPS:
        for agree, least in ((0.95, 0), (0.95, 8), (0.90, 0), (0.90, 6)):
            draw = random.Random(options.seed)
            rows = [vote(draw, steps, agree, least) for _ in range(options.problems)]
            times = sorted(row.trace_times for row in rows)
            right, majority = (
                statistics.mean(row.right for row in rows),
                statistics.mean(row.majority_right for row in rows),
            )
            share = statistics.mean(row.tokens_share for row in rows)
            p50, p95 = times[len(times) // 2], times[int(0.95 * len(times))]
            print(f"{steps:5} {agree:5} {least:5} {right:6.2%} {majority:6.2%} {share:6.1%} {p50:8.2f} {p95:5.2f}")


if __name__ == "__main__":
    main()
