"""Measure the small reasoning model: answers, single steps, trace lengths, sampling, vLLM against PyTorch.

``python -m models.evaluate`` reproduces every figure in the model card but those of the thinking budget, which
``benchmarks/reasoner_budget.py`` takes through a cluster. The verifiers and ``budget_curve`` need no torch and are
meant to be imported: tests score what a cluster answers with them.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.problems import Problem, generate_many
from models.tokenizer import EOS_ID, PAD_ID, THINK_END_ID, build_tokenizer, prompt_ids
from models.verify import split_text, verify_answer, verify_steps

Generate = Callable[[list[dict[str, str]], int], str | Awaitable[str]]
"""``generate(messages, thinking_budget_tokens)``: the model's text, plain or to be awaited."""


@dataclass(frozen=True, slots=True)
class BudgetPoint:
    """Accuracy of one band of problems at one thinking budget."""

    steps: int
    share: float
    """Budget over the tokens of the natural trace."""
    budget_tokens: float
    """Mean budget over the problems of this point."""
    problems: int
    accuracy: float


async def budget_curve(
    generate: Generate,
    problems: Sequence[Problem],
    *,
    shares: Sequence[float] = (0.0, 0.125, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25),
    concurrency: int = 16,
) -> list[BudgetPoint]:
    """Accuracy against thinking budget, by number of steps.

    Each problem is asked once per share with a budget of that share of its natural trace, in tokens (the tokenizer
    makes one token of a character). A budget of the whole trace or more changes nothing.

    Args:
        generate: Asks the model; its text may be the whole completion or the answer alone.
        problems: Problems of a few different lengths, several of each.
        shares: Budgets, as shares of each problem's own natural trace.
        concurrency: Requests in flight at once, where ``generate`` is asynchronous.
    """
    gate = asyncio.Semaphore(concurrency)

    async def ask(problem: Problem, budget_tokens: int) -> bool:
        async with gate:
            reply = generate(problem.messages, budget_tokens)
            text = await reply if inspect.isawaitable(reply) else reply
        return verify_answer(problem, text)

    points = []
    for steps in sorted({len(problem.steps) for problem in problems}):
        band = [problem for problem in problems if len(problem.steps) == steps]
        for share in shares:
            budgets = [round(share * len(problem.trace)) for problem in band]
            right = await asyncio.gather(*(ask(p, budget) for p, budget in zip(band, budgets, strict=True)))
            points.append(BudgetPoint(steps, share, statistics.mean(budgets), len(band), statistics.mean(right)))
    return points


def plot_budget(points: Sequence[BudgetPoint], path: Path, source: str) -> None:
    """Draw ``budget_curve``'s result as a PNG.

    Args:
        points: The curve.
        path: Where to write, such as ``docs/reasoner_budget.png``.
        source: What answered, for the title: ``one vLLM engine``, ``prefill pool, handoff, decode pool``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bands = sorted({point.steps for point in points})
    for index, steps in enumerate(bands):
        band = [point for point in points if point.steps == steps]
        tone = 0.15 + 0.7 * index / max(len(bands) - 1, 1)
        axes.plot(
            [100 * point.share for point in band],
            [100 * point.accuracy for point in band],
            marker="o",
            color=(0.1, 0.25 + 0.4 * (1 - tone), 0.3 + 0.6 * tone),
            linewidth=0.8 + 1.4 * tone,
            label=f"{steps} steps (n={band[0].problems})",
        )
    axes.set_xlabel("thinking budget, % of the problem's natural trace")
    axes.set_ylabel("exact answers, %")
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.set_title(f"Accuracy against thinking budget: {source}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode."""

    temperature: float = 0.0
    count: int = 1
    """Completions per problem."""
    seed: int = 1
    max_tokens: int = 1100
    """Above the longest natural trace, so only a model that lost its way reaches it."""


Backend = Callable[[list[Problem], Sampling], list[list[list[int]]]]
"""Completions (token ids) of each problem."""


def torch_backend(folder: Path, *, rows: int = 32) -> Backend:
    """Decode with transformers in float32, on the GPU where there is one."""
    import torch
    from transformers import LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()

    def complete(problems: list[Problem], sampling: Sampling) -> list[list[list[int]]]:
        # Rows of about one length together: a batch runs as long as its longest trace.
        order = sorted(range(len(problems)), key=lambda index: len(problems[index].completion))
        results: list[list[list[int]]] = [[] for _ in problems]
        torch.manual_seed(sampling.seed)
        for begin in range(0, len(order), rows):
            chosen = order[begin : begin + rows]
            prompts = [prompt_ids(problems[index].prompt) for index in chosen]
            width = max(map(len, prompts))
            ids = torch.tensor([[PAD_ID] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
            output = model.generate(
                input_ids=ids,
                attention_mask=(ids != PAD_ID).long(),
                max_new_tokens=sampling.max_tokens,
                max_length=None,
                do_sample=sampling.temperature > 0,
                temperature=sampling.temperature or None,
                num_return_sequences=sampling.count,
            )
            for row, completion in enumerate(output[:, width:].tolist()):
                kept = completion[: completion.index(EOS_ID) + 1] if EOS_ID in completion else completion
                results[chosen[row // sampling.count]].append(kept)
        return results

    return complete


class VllmEngine:
    """One vLLM engine on this machine."""

    def __init__(self, folder: Path):
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import LLM
        from vllm.platforms import current_platform

        options: dict[str, Any] = {}
        if current_platform.is_cpu():
            options = {"block_size": 32, "enforce_eager": True}
        self._llm = LLM(
            model=str(folder),
            max_model_len=2048,
            max_num_seqs=64,
            **options,
        )

    def complete(self, problems: list[Problem], sampling: Sampling) -> list[list[list[int]]]:
        """Completions of each problem, decoded in one continuous batch."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=sampling.temperature, n=sampling.count, seed=sampling.seed, max_tokens=sampling.max_tokens
        )
        prompts = [{"prompt_token_ids": prompt_ids(problem.prompt)} for problem in problems]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [[list(one.token_ids) for one in output.outputs] for output in outputs]


@dataclass(frozen=True, slots=True)
class Row:
    """Accuracy over problems of one length."""

    steps: int
    problems: int
    accuracy: float
    """Exact answers, greedy."""
    step_accuracy: float
    """Steps written, copied and computed right, greedy."""
    sampled_accuracy: float | None = None
    """Exact answers at temperature 0.7, mean over all samples."""
    vote_accuracy: float | None = None
    """Exact answers of the majority among ``votes`` samples."""
    votes: int = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens between ``<think>`` and ``</think>`` over the natural mix."""

    problems: int
    p50: float
    p90: float
    p99: float
    longest: int
    mean: float


def lengths_of(traces: Sequence[int]) -> Lengths:
    """Summary of trace lengths in tokens."""
    ordered = sorted(traces)
    cut = statistics.quantiles(ordered, n=100, method="inclusive")
    return Lengths(len(ordered), cut[49], cut[89], cut[98], ordered[-1], statistics.mean(ordered))


def evaluate(
    complete: Backend,
    decode: Callable[[list[int]], str],
    *,
    problems: int,
    samples: int,
    lengths: Sequence[int] = (0, 2, 4, 8, 12, 20, 30, 45, 60),
    sampled: Sequence[int] = (4, 12, 30, 60),
) -> list[Row]:
    """Greedy accuracy at each length on held-out problems, and at some lengths accuracy at temperature 0.7."""
    asked = {steps: generate_many(11, problems, steps=steps) for steps in lengths}
    everything = [problem for band in asked.values() for problem in band]
    texts = iter([decode(rows[0]) for rows in complete(everything, Sampling())])
    drawn: dict[int, list[list[str]]] = {}
    if samples:
        some = [problem for steps in sampled for problem in asked[steps]]
        rows = iter(complete(some, Sampling(temperature=0.7, count=samples)))
        drawn = {steps: [[decode(ids) for ids in next(rows)] for _ in asked[steps]] for steps in sampled}
    result = []
    for steps, band in asked.items():
        written = [next(texts) for _ in band]
        checks = [check.correct for p, text in zip(band, written, strict=True) for check in verify_steps(p, text)]
        sampled_accuracy = vote_accuracy = None
        if steps in drawn:
            pairs = list(zip(band, drawn[steps], strict=True))
            sampled_accuracy = statistics.mean(verify_answer(p, text) for p, many in pairs for text in many)
            votes = [(p, Counter(split_text(text)[1] for text in many).most_common(1)[0][0]) for p, many in pairs]
            vote_accuracy = statistics.mean(verify_answer(p, answer) for p, answer in votes)
        accuracy = statistics.mean(verify_answer(p, text) for p, text in zip(band, written, strict=True))
        step_accuracy = statistics.mean(checks) if checks else 1.0
        count = samples if steps in drawn else 0
        result.append(Row(steps, len(band), accuracy, step_accuracy, sampled_accuracy, vote_accuracy, count))
    return result


def trace_tokens(completion: Sequence[int]) -> int:
    """Tokens before ``</think>``, or all of them where it never came."""
    return completion.index(THINK_END_ID) if THINK_END_ID in completion else len(completion)


def render(measured: dict[str, Any]) -> str:
    """The measured part of the model card, in Markdown."""
    lines = [
        "| steps | problems | greedy answers | greedy steps | T=0.7 answers | majority of samples |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in measured["accuracy"]:
        sampled = vote = ""
        if row["sampled_accuracy"] is not None:
            sampled, vote = f"{row['sampled_accuracy']:.1%}", f"{row['vote_accuracy']:.1%} of {row['votes']}"
        greedy = f"{row['accuracy']:.1%} | {row['step_accuracy']:.2%}"
        lines.append(f"| {row['steps']} | {row['problems']} | {greedy} | {sampled} | {vote} |")
    some = measured["lengths"]
    lines += [
        "",
        f"Natural mix, {some['problems']} held-out problems: {measured['natural_accuracy']:.1%} answered right "
        f"(greedy). Trace tokens: median {some['p50']:.0f}, p90 {some['p90']:.0f}, p99 {some['p99']:.0f} "
        f"({some['p99'] / some['p50']:.1f} times the median), longest {some['longest']}, mean {some['mean']:.0f}.",
    ]
    if "agreement" in measured:
        both = measured["agreement"]
        lines += [
            "",
            f"vLLM (bfloat16) against PyTorch (float32), {both['problems']} problems of the natural mix, greedy: "
            f"{both['same_answers']} answers and {both['same_tokens']} whole completions the same, token for token.",
        ]
    return "\n".join(lines) + "\n"


def write_card(folder: Path, measured: dict[str, Any]) -> None:
    """Put the figures into ``evaluation.json`` and between the card's two markers."""
    (folder / "evaluation.json").write_text(json.dumps(measured, indent=1) + "\n")
    card = folder / "README.md"
    begin, end = "<!-- measured: begin -->\n", "<!-- measured: end -->"
    if card.exists():
        head, found, rest = card.read_text().partition(begin)
        if found:
            card.write_text(head + begin + render(measured) + end + rest.partition(end)[2])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "reasoner")
    parser.add_argument("--problems", type=int, default=100, help="held-out problems at each length")
    parser.add_argument("--natural", type=int, default=400, help="held-out problems of the natural mix")
    parser.add_argument("--samples", type=int, default=5, help="completions per problem at temperature 0.7; 0: none")
    parser.add_argument(
        "--backend", choices=("vllm", "torch", "both"), default="both", help="both: vLLM, checked by torch"
    )
    parser.add_argument("--write", action="store_true", help="write the card")
    given = parser.parse_args()
    begun_s = time.monotonic()
    tokenizer = build_tokenizer()

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    engine = VllmEngine(given.model) if given.backend != "torch" else None
    complete = engine.complete if engine else torch_backend(given.model)
    rows = evaluate(complete, decode, problems=given.problems, samples=given.samples)
    natural = generate_many(13, given.natural)
    completions = [many[0] for many in complete(natural, Sampling())]
    right = [verify_answer(p, decode(ids)) for p, ids in zip(natural, completions, strict=True)]
    measured: dict[str, Any] = {
        "decoded_by": "vllm" if engine else "torch",
        "accuracy": [asdict(row) for row in rows],
        "natural_accuracy": statistics.mean(right),
        "lengths": asdict(lengths_of([trace_tokens(ids) for ids in completions])),
    }
    if given.backend == "both":
        some = natural[:200]
        theirs = [many[0] for many in torch_backend(given.model)(some, Sampling())]
        pairs = list(zip(theirs, completions, strict=False))
        answers = sum(split_text(decode(a))[1] == split_text(decode(b))[1] for a, b in pairs)
        measured["agreement"] = {
            "problems": len(pairs),
            "same_answers": answers,
            "same_tokens": sum(a == b for a, b in pairs),
        }
    print(render(measured))
    print(f"took {time.monotonic() - begun_s:.0f} s")
    if given.write:
        write_card(given.model, measured)


if __name__ == "__main__":
    main()
