"""Train the small reasoning model: seeded, resumable, on a CPU in about an hour and on a GPU in minutes.

``python -m models.train --out models/reasoner`` writes a folder that transformers and vLLM load.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from models.problems import MAX_STEPS, MIN_STEPS, Form, Problem, draw_steps, generate, generate_many
from models.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY, build_tokenizer, completion_ids, prompt_ids

IGNORED = -100
"""Label of a position that carries no loss (PyTorch's own convention)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, apart from the arithmetic of the device."""

    seed: int = 1
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    rope_theta: float = 10_000.0
    updates: int = 2700
    """Optimizer steps. Only the cool-down depends on it, so a run may be lengthened or cut before that begins."""
    batch_tokens: int = 2048
    """Tokens of one update, padding included, in ``micro_batches`` batches of different lengths."""
    micro_batches: int = 2
    matrix_rate: float = 0.012
    vector_rate: float = 0.008
    weight_decay: float = 0.02
    warmup_updates: int = 50
    cooldown: float = 0.35
    """Share of the updates, at the end, over which the rates fall linearly to nothing."""
    symbols_to: int = 1100
    """Update up to which only symbols are drawn: short prompts, so the arithmetic is seen most often."""
    ramp_from: int = 1000
    ramp_to: int = 1900
    """Updates between which the longest chain grows from 6 steps to MAX_STEPS."""
    natural_share: float = 0.5
    """Share of batches drawn at the natural mix's lengths; the others are uniform, so that long chains are learned."""
    slip_rate: float = 0.05
    slips_from: int = 2000
    """Update at which slips begin: the arithmetic is learned sooner from clean traces."""

    @property
    def cooldown_from(self) -> int:
        """Update at which the rates begin to fall."""
        return round(self.updates * (1 - self.cooldown))


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """Momentum made orthogonal by Newton-Schulz, for the weight matrices; it needs fewer updates than AdamW.

    ``torch.optim.Muon`` rounds to bfloat16 on the way, which CPUs without bfloat16 units do slowly; this one stays in
    float32 and takes matrices of one shape together. Source: Jordan et al. 2024, "Muon"; the update is scaled to the
    root mean square of AdamW's, ``0.2 * sqrt(max(rows, columns))``, as in arXiv:2502.16982.
    """

    def __init__(
        self, matrices: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def step(self) -> None:
        """Update every matrix once."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                rows, columns = matrix.shape
                shapes.setdefault((rows, columns), []).append(matrix)
            for matrices in shapes.values():
                self._update(matrices, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, matrices: list[torch.nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        directions = []
        with torch.no_grad():
            for matrix in matrices:
                buffer = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                buffer.lerp_(matrix.grad, 1 - momentum)
                directions.append(matrix.grad.lerp(buffer, momentum))
            updates = _orthogonal(torch.stack(directions)) * (0.2 * math.sqrt(max(matrices[0].shape)))
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.mul_(1 - lr * weight_decay).add_(update, alpha=-lr)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices, roughly: five quintic Newton-Schulz steps."""
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """A fresh model with the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return LlamaForCausalLM(config)


def collate(problems: list[Problem]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of whole problems, padded on the right; only the completion carries loss."""
    prompts = [prompt_ids(problem.prompt) for problem in problems]
    completions = [completion_ids(problem.trace, str(problem.answer)) for problem in problems]
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids = torch.full((len(problems), width), PAD_ID)
    labels = torch.full((len(problems), width), IGNORED)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : end] = torch.tensor(completion)
    return ids, labels


def draw_batch(recipe: Recipe, update: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One micro-batch: chains of one form and about one length, so that little is padding. A pure function."""
    rng = random.Random(f"batch:{recipe.seed}:{update}:{micro}")
    grown = min(max((update - recipe.ramp_from) / (recipe.ramp_to - recipe.ramp_from), 0.0), 1.0)
    longest = round(6 + (MAX_STEPS - 6) * grown)
    steps = draw_steps(rng) if rng.random() < recipe.natural_share else rng.randint(MIN_STEPS, longest)
    steps = min(steps, longest)
    slip_rate = recipe.slip_rate if update >= recipe.slips_from else 0.0
    form: Form | None = "symbols" if update < recipe.symbols_to else None
    problems: list[Problem] = []
    width, budget = 0, recipe.batch_tokens // recipe.micro_batches
    while True:
        count = min(max(round(steps * rng.uniform(0.9, 1.1)), min(steps, 1)), longest)
        if form == "words":
            count = min(count, 30)
        elif form == "recipe":
            count = min(count, 40)
        problem = generate(rng.getrandbits(62), steps=count, split="train", form=form, slip_rate=slip_rate)
        form = problem.form
        width = max(width, len(problem.prompt) + len(problem.completion) + 8)
        if problems and width * (len(problems) + 1) > budget:
            return collate(problems)
        problems.append(problem)


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the completions; the vocabulary is projected to only where there is loss."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    logits = model.lm_head(hidden[wanted])
    return torch.nn.functional.cross_entropy(logits, targets[wanted], reduction="sum")


def exact_share(model: LlamaForCausalLM, problems: list[Problem], rows: int = 8) -> float:
    """Share of problems whose whole completion greedy decoding would write.

    Greedy text equals the expected text exactly when every next token is the likeliest one given the expected tokens
    before it, so one pass over the text decides it without decoding.
    """
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for begin in range(0, len(problems), rows):
        ids, labels = (part.to(device) for part in collate(problems[begin : begin + rows]))
        with torch.no_grad():
            best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        targets = labels[:, 1:]
        right += int(((best == targets) | (targets == IGNORED)).all(-1).sum())
    model.train()
    return right / len(problems)


def rate_at(recipe: Recipe, update: int) -> float:
    """Learning-rate factor: a short rise, a plateau, a linear fall."""
    left = (recipe.updates - update) / (recipe.updates - recipe.cooldown_from)
    return min(1.0, (update + 1) / recipe.warmup_updates, left)


def save(model: LlamaForCausalLM, recipe: Recipe, folder: Path) -> None:
    """Write weights in bfloat16, tokenizer, configurations and the recipe, loadable by transformers and vLLM."""
    model.to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False, max_length=2048
    ).save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")


def train(recipe: Recipe, checkpoint: Path, device: torch.device, *, report_every: int = 200) -> LlamaForCausalLM:
    """Train, or go on from the checkpoint if there is one; the checkpoint is written again at every report.

    Raises:
        ValueError: the checkpoint belongs to another recipe.
    """
    model = build_model(recipe).to(device)
    matrices = [
        p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    chosen = {id(p) for p in matrices}
    vectors = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay)
    adam = torch.optim.AdamW(vectors, lr=recipe.vector_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    update = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        written = Recipe(**json.loads(saved["recipe"]))
        before_cooldown = saved["update"] <= min(written.cooldown_from, recipe.cooldown_from)
        if written != recipe and not (before_cooldown and replace(written, updates=recipe.updates) == recipe):
            raise ValueError(f"{checkpoint} was written by another recipe; remove it, or pass --checkpoint")
        model.load_state_dict(saved["model"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        update = saved["update"]
    probes = {steps: generate_many(7, count, steps=steps) for steps, count in ((3, 32), (12, 16), (30, 8), (60, 2))}
    console = Console(width=None if os.isatty(1) else 160)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    begun_s, seen, total = time.monotonic(), 0, 0.0
    targets = 1
    with Progress(*columns, console=console, disable=not os.isatty(1)) as progress:
        task = progress.add_task("training", total=recipe.updates, completed=update)
        model.train()
        while update < recipe.updates:
            batches = [draw_batch(recipe, update, micro) for micro in range(recipe.micro_batches)]
            wanted = sum(int((labels != IGNORED).sum()) for _, labels in batches)
            for ids, labels in batches:
                loss = loss_of(model, ids.to(device), labels.to(device)) / wanted
                loss.backward()
                total += float(loss.detach()) * wanted
                seen += ids.numel()
            targets += wanted
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            factor = rate_at(recipe, update)
            for optimizer, rate in ((muon, recipe.matrix_rate), (adam, recipe.vector_rate)):
                optimizer.param_groups[0]["lr"] = rate * factor
                optimizer.step()
                optimizer.zero_grad()
            update += 1
            progress.update(task, completed=update)
            if update % report_every == 0 or update == recipe.updates:
                scores = " ".join(f"{steps}:{exact_share(model, some):.2f}" for steps, some in probes.items())
                speed = seen / (time.monotonic() - begun_s)
                console.print(
                    f"update {update}  loss {total / targets:.4f}  exact by steps {scores}  {speed:,.0f} tokens/s"
                )
                begun_s, seen, total, targets = time.monotonic(), 0, 0.0, 1
                state = {"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict()}
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                partial = checkpoint.with_suffix(".partial")
                torch.save({**state, "update": update, "recipe": json.dumps(asdict(recipe))}, partial)
                partial.replace(checkpoint)
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models/reasoner"))
    parser.add_argument("--checkpoint", type=Path, default=Path("models/checkpoints/reasoner.pt"))
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--report-every", type=int, default=200, help="updates between a report and checkpoint")
    for name in (
        "seed",
        "updates",
        "hidden",
        "layers",
        "intermediate",
        "batch_tokens",
        "micro_batches",
        "slips_from",
        "ramp_from",
        "ramp_to",
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Recipe(), name))
    for name in ("matrix_rate", "vector_rate", "rope_theta", "slip_rate"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Recipe(), name))
    given = vars(parser.parse_args())
    out, checkpoint, threads, every = (given.pop(name) for name in ("out", "checkpoint", "threads", "report_every"))
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = Recipe(**given)
    model = train(recipe, checkpoint, device, report_every=every)
    save(model.to("cpu"), recipe, out)


if __name__ == "__main__":
    main()
