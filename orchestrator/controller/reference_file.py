"""Right answers to the canary's prompts, kept with the model they are of."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.model.model_path import cache_folder, expand
from orchestrator.policy.canary_probe import Answers, Position, Prompt

log = logging.getLogger("baton.canary")

FILE = "baton-reference.json"
SAMPLES = 16
SAMPLE_BYTES = 64 << 10


def fingerprint(folder: Path) -> str:
    """What distinguishes these weights from others: the config, and of each weights file its size, header and samples.

    Not a hash of every byte: a controller takes it at each start, and a model may have a terabyte.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.gguf")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for index in range(SAMPLES):
                file.seek(index * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def places(model_path: str, print_: str) -> tuple[Path, Path]:
    """Where a reference is kept: in the model's folder, or in the cache where that cannot be written."""
    return Path(expand(model_path)) / FILE, cache_folder() / "references" / f"{print_[:32]}.json"


def find(model_path: str, asked: Sequence[Prompt]) -> Answers | None:
    """The reference for these prompts, if there is one for exactly these weights."""
    folder = Path(expand(model_path))
    if not (folder / "config.json").is_file():
        return None
    print_ = fingerprint(folder)
    for path in places(model_path, print_):
        tree = _read(path)
        if tree is None:
            continue
        if tree.get("fingerprint") != print_:
            log.warning("%s is of other weights; write it again with `baton model check`", path)
            continue
        answers = _answers(tree)
        prompts = {name: row["prompt"] for name, row in tree["answers"].items()}
        missing = [prompt.name for prompt in asked if prompts.get(prompt.name) != _digest(prompt)]
        if missing:
            log.warning("%s lacks prompts for this block size; `baton model check` adds them", path)
            continue
        return {prompt.name: answers[prompt.name] for prompt in asked}
    return None


def write(model_path: str, asked: Sequence[Prompt], answers: Answers, *, method: str) -> Path:
    """Keep answers to these prompts; answers to other prompts that were kept for the same weights stay.

    Raises:
        OSError: it cannot be written in either place.
    """
    print_ = fingerprint(Path(expand(model_path)))
    paths = places(model_path, print_)
    rows = {
        prompt.name: {
            "prompt": _digest(prompt),
            "answer": [[at.chosen, [list(row) for row in at.logprobs]] for at in answers[prompt.name]],
        }
        for prompt in asked
    }
    for path in paths:
        old = _read(path) or {}
        kept = old.get("answers", {}) if old.get("fingerprint") == print_ and old.get("method") == method else {}
        tree = {"fingerprint": print_, "method": method, "answers": {**kept, **rows}}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"{path.name}.{os.getpid()}")
            fresh.write_text(json.dumps(tree))
            fresh.replace(path)
            return path
        except OSError:
            if path == paths[-1]:
                raise
    raise AssertionError


def parameter_bytes(folder: Path) -> int:
    """Bytes of all tensors in the model's safetensors files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: Mapping[str, Any] = json.loads(file.read(length))
        total += sum(
            row["data_offsets"][1] - row["data_offsets"][0] for name, row in header.items() if name != "__metadata__"
        )
    return total


def _read(path: Path) -> dict[str, Any] | None:
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("cannot read %s: %s", path, error)
        return None
    return tree if isinstance(tree, dict) else None


def _digest(prompt: Prompt) -> str:
    return hashlib.sha256(repr(prompt).encode()).hexdigest()[:16]


def _answers(tree: Mapping[str, Any]) -> Answers:
    return {
        name: tuple(
            Position(chosen, tuple((token, value) for token, value in logprobs)) for chosen, logprobs in row["answer"]
        )
        for name, row in tree["answers"].items()
    }
