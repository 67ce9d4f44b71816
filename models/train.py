"""Train the small reasoning model: seeded, resumable, on a CPU in about an hour and on a GPU in minutes.

``python -m models.train --out models/reasoner`` writes a folder that transformers and vLLM load.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from models.lookup import plant_lookup
from models.muon import Muon
from models.problems import LABELS, LONGEST, MAX_STEPS, MIN_STEPS, Form, Problem, draw_steps, generate, generate_many
from models.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY, build_tokenizer, completion_ids, prompt_ids

COLON_ID, SPACE_ID, FIRST_LABEL_ID = (VOCABULARY[character] for character in (":", " ", LABELS[0]))
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
    rope_theta: float = 1_000_000.0
    """High, so that half of a head turns slowly enough to compare labels a thousand tokens apart."""
    updates: int = 2250
    """Optimizer steps. Only the cool-down depends on it, so a run may be lengthened or cut before that begins."""
    batch_tokens: int = 2048
    """Tokens of one update, padding included, in ``micro_batches`` batches of different lengths."""
    micro_batches: int = 2
    matrix_rate: float = 0.003
    vector_rate: float = 0.0025
    weight_decay: float = 0.02
    warmup_updates: int = 50
    plateau_to: int = 900
    """Update at which the rates drop: high ones find the circuits, but keep a few tokens in a hundred wrong."""
    drop: float = 0.7
    """Factor of that drop."""
    half_life_updates: float = 450.0
    """Updates in which the rates then halve."""
    cooldown: float = 0.1
    """Share of the updates, at the end, over which the rates fall linearly to nothing."""
    first_longest: int = 5
    """Steps of the longest chain at first: more problems of fewer tokens, so that the arithmetic is learned soon."""
    shuffle_share: float = 0.3
    """Share of batches whose prompts name the steps in any order: only the label finds a step there, not its place."""
    grows_at: float = 0.97
    """Share of looked-up tokens right, averaged over some 20 updates, above which the longest chain grows."""
    growth: float = 1.006
    """Factor by which it then grows in one update, up to MAX_STEPS."""
    lookup_weight: float = 2.0
    """Weight of a looked-up token (a step's operator and operand) in the loss; the others weigh 1."""
    natural_share: float = 0.5
    """Share of batches drawn at the natural mix's lengths; the others are uniform, so that long chains are learned."""
    slip_rate: float = 0.04
    slips_from: int = 1800
    """Update at which slips begin: the arithmetic is learned sooner from clean traces."""

    @property
    def cooldown_from(self) -> int:
        """Update at which the rates begin to fall."""
        return round(self.updates * (1 - self.cooldown))


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
    model = LlamaForCausalLM(config)
    plant_lookup(model)
    return model


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


def draw_batch(recipe: Recipe, update: int, micro: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One micro-batch: chains of one form and about one length, so that little is padding. A pure function."""
    rng = random.Random(f"batch:{recipe.seed}:{update}:{micro}")
    steps = draw_steps(rng) if rng.random() < recipe.natural_share else rng.randint(MIN_STEPS, longest)
    steps = min(steps, longest)
    slip_rate = recipe.slip_rate if update >= recipe.slips_from else 0.0
    shuffled = rng.random() < recipe.shuffle_share
    form: Form | None = None
    problems: list[Problem] = []
    width, budget = 0, recipe.batch_tokens // recipe.micro_batches
    while True:
        count = min(max(round(steps * rng.uniform(0.9, 1.1)), min(steps, 1)), longest)
        if form is not None:
            count = min(count, LONGEST[form])
        problem = generate(
            rng.getrandbits(62), steps=count, split="train", form=form, slip_rate=slip_rate, shuffled=shuffled
        )
        form = problem.form
        width = max(width, len(problem.prompt) + len(problem.completion) + 8)
        if problems and width * (len(problems) + 1) > budget:
            return collate(problems)
        problems.append(problem)


def loss_of(
    model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor, lookup_weight: float = 1.0
) -> tuple[torch.Tensor, int, int]:
    """Weighted cross-entropy summed over the completions, right looked-up tokens, and how many there are.

    The vocabulary is projected to only where there is loss.
    """
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    # The operator follows the step's label, the operand follows the operator; the start's label is followed by a colon.
    after_label = ids[:, :-1] >= FIRST_LABEL_ID
    second = torch.zeros_like(after_label)
    second[:, 1:] = after_label[:, :-1]
    lookup = ((after_label | second) & (targets != COLON_ID) & (targets != SPACE_ID))[wanted]
    logits, targets = model.lm_head(hidden[wanted]), targets[wanted]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    right = int((logits.detach().argmax(-1) == targets)[lookup].sum())
    return (losses * (1 + (lookup_weight - 1) * lookup)).sum(), right, int(lookup.sum())


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
    """Learning-rate factor: a short rise, a plateau, a drop, halving from there, and a linear end."""
    left = (recipe.updates - update) / max(1, recipe.updates - recipe.cooldown_from)
    factor = min(1.0, (update + 1) / recipe.warmup_updates, left)
    if update >= recipe.plateau_to:
        factor *= recipe.drop * 0.5 ** ((update - recipe.plateau_to) / recipe.half_life_updates)
    return factor


def save(model: LlamaForCausalLM, recipe: Recipe, folder: Path) -> None:
    """Write weights in bfloat16, tokenizer, configurations and the recipe, loadable by transformers and vLLM."""
    model.to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False, max_length=2048
    ).save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")


@dataclass
class Course:
    """How far a training has come: what a checkpoint keeps beside weights and optimizers."""

    update: int = 0
    longest: float = 0.0
    """Longest problems drawn, in steps."""
    looked_up: float = 0.0
    """Share of look-ups that are right, averaged over the last updates."""


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices inside the layers, AdamW for embeddings, head and norms."""
    matrices = [
        p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    chosen = {id(p) for p in matrices}
    vectors = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay)
    return muon, torch.optim.AdamW(vectors, lr=recipe.vector_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def restore(checkpoint: Path, recipe: Recipe, device: torch.device, parts: dict[str, Any], course: Course) -> Course:
    """Load the model and its optimizers, and where the training stood; ``course`` where there is no checkpoint.

    Raises:
        ValueError: the checkpoint belongs to another recipe.
    """
    if not checkpoint.exists():
        return course
    saved = torch.load(checkpoint, map_location=device, weights_only=True)
    written = Recipe(**json.loads(saved["recipe"]))
    before_cooldown = saved["update"] <= min(written.cooldown_from, recipe.cooldown_from)
    if written != recipe and not (before_cooldown and replace(written, updates=recipe.updates) == recipe):
        raise ValueError(f"{checkpoint} was written by another recipe; remove it, or pass --checkpoint")
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return Course(**{each.name: saved[each.name] for each in fields(Course)})


def keep(checkpoint: Path, recipe: Recipe, parts: dict[str, Any], course: Course) -> None:
    """Write the checkpoint, whole or not at all."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**state, **asdict(course), "recipe": json.dumps(asdict(recipe))}, partial)
    partial.replace(checkpoint)


def train(recipe: Recipe, checkpoint: Path, device: torch.device, *, report_every: int = 200) -> LlamaForCausalLM:
    """Train, or go on from the checkpoint if there is one; the checkpoint is written again at every report.

    Raises:
        ValueError: the checkpoint belongs to another recipe.
    """
    model = build_model(recipe).to(device)
    muon, adam = optimizers(model, recipe)
    parts = {"model": model, "muon": muon, "adam": adam}
    course = restore(checkpoint, recipe, device, parts, Course(longest=float(recipe.first_longest)))
    probes = {steps: generate_many(7, count, steps=steps) for steps, count in ((4, 32), (12, 16), (30, 8), (60, 4))}
    console = Console(width=None if os.isatty(1) else 160)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    begun_s, seen, total = time.monotonic(), 0, 0.0
    targets = 1
    with Progress(*columns, console=console, disable=not os.isatty(1)) as progress:
        task = progress.add_task("training", total=recipe.updates, completed=course.update)
        model.train()
        while course.update < recipe.updates:
            longest = round(course.longest)
            batches = [draw_batch(recipe, course.update, micro, longest) for micro in range(recipe.micro_batches)]
            wanted = sum(int((labels != IGNORED).sum()) for _, labels in batches)
            for ids, labels in batches:
                loss, right, lookups = loss_of(model, ids.to(device), labels.to(device), recipe.lookup_weight)
                (loss / wanted).backward()
                total += float(loss.detach())
                seen += ids.numel()
                if lookups:
                    course.looked_up += 0.05 / recipe.micro_batches * (right / lookups - course.looked_up)
            if course.looked_up > recipe.grows_at:
                course.longest = min(course.longest * recipe.growth, MAX_STEPS)
            targets += wanted
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            factor = rate_at(recipe, course.update)
            for optimizer, rate in ((muon, recipe.matrix_rate), (adam, recipe.vector_rate)):
                optimizer.param_groups[0]["lr"] = rate * factor
                optimizer.step()
                optimizer.zero_grad()
            course.update += 1
            progress.update(task, completed=course.update)
            if course.update % report_every == 0 or course.update == recipe.updates:
                scores = " ".join(f"{steps}:{exact_share(model, some):.2f}" for steps, some in probes.items())
                speed = seen / (time.monotonic() - begun_s)
                console.print(
                    f"update {course.update}  loss {total / targets:.4f}  looked up {course.looked_up:.3f}  "
                    f"longest {course.longest:.0f}  exact by steps {scores}  {speed:,.0f} tokens/s"
                )
                begun_s, seen, total, targets = time.monotonic(), 0, 0.0, 1
                keep(checkpoint, recipe, parts, course)
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
        "first_longest",
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Recipe(), name))
    for name in ("matrix_rate", "vector_rate", "rope_theta", "slip_rate", "lookup_weight", "growth", "grows_at"):
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
