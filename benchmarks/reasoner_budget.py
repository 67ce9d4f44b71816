"""Accuracy of the small reasoner against its thinking budget, through prefill pool, handoff and decode pool.

    python benchmarks/reasoner_budget.py [--model FOLDER] [--problems 50]

Starts a cluster of one prefill and one decode worker, asks held-out problems of 4, 12, 30 and 60 steps with budgets cut
to shares of each problem's natural trace, and writes docs/reasoner_budget.json and docs/reasoner_budget.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from contenders import baton

from interface.client.client import AsyncClient
from models.evaluate import BudgetPoint, budget_curve, plot_budget
from models.problems import generate_many

ROOT = Path(__file__).resolve().parent.parent
STEPS = (4, 12, 30, 60)
ANSWER_TOKENS = 66
"""Tokens for the answer beyond the budget: what the cluster keeps for it, and the marker."""


async def measure(address: str, problems: int) -> tuple[list[BudgetPoint], int, int]:
    """The curve, how many requests were asked, and how many of them came to decode by a handoff."""
    asked = [problem for steps in STEPS for problem in generate_many(19, problems, steps=steps)]
    requests = handed_over = 0
    async with AsyncClient(address) as client:

        async def generate(messages: list[dict[str, str]], budget_tokens: int) -> str:
            nonlocal requests, handed_over
            completion = await client.complete(
                messages=messages,
                reasoning_budget_tokens=budget_tokens,
                temperature=0.0,
                max_tokens=min(budget_tokens, 1100) + ANSWER_TOKENS,
            )
            requests += 1
            handed_over += completion.handoff.tokens > 0
            return completion.text

        points = await budget_curve(generate, asked)
    return points, requests, handed_over


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "reasoner")
    parser.add_argument("--problems", type=int, default=50, help="held-out problems of each number of steps")
    given = parser.parse_args()
    pools = {"prefill": 1, "decode": 1}
    with baton(given.model, dtype="float32", max_model_len=2048, pools=pools, reasons=True) as server:
        address = server.endpoints["grpc"].removeprefix("grpc://")
        points, requests, handed_over = asyncio.run(measure(address, given.problems))
    for point in points:
        print(f"{point.steps:3} steps  {point.share:6.1%} of the trace  {point.accuracy:6.1%} right")
    print(f"{handed_over} of {requests} requests were handed over from prefill to decode")
    result = {"requests": requests, "handed_over": handed_over, "points": [asdict(point) for point in points]}
    (ROOT / "docs" / "reasoner_budget.json").write_text(json.dumps(result, indent=1) + "\n")
    plot_budget(points, ROOT / "docs" / "reasoner_budget.png", "prefill pool, handoff, decode pool")


if __name__ == "__main__":
    main()
