"""`baton model check`: writes right answers to the canary's prompts next to the model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import psutil
from rich.console import Console

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.errors import ConfigError, EngineFailed
from cluster.internal_rpc import InternalRpc
from cluster.model import model_path
from cluster.spec import portfolio
from cluster.spec.config import ClusterSpec, Role
from orchestrator.controller import reference_file
from orchestrator.controller.canary_ask import ask, prompts_for
from orchestrator.policy.canary_blame import judge
from orchestrator.policy.canary_probe import TOP_LOGPROBS, Answers, Position, Prompt, prompts, tolerance_nat
from orchestrator.policy.canary_record import Run
from orchestrator.policy.readiness import LOADED

FORWARD = "float32 forward pass with transformers"
MAX_FORWARD_BYTES = 8 << 30
"""Of float32 weights: 2 billion parameters, some minutes of one core for all prompts. Above that workers agree."""
MEMORY_SHARE = 0.6
MIN_WORKERS = 3
"""Fewer have no majority."""


def check(
    file: Path | None, controller: str | None, name: str | None, *, model: str | None = None, as_json: bool
) -> None:
    """Write the reference; see `baton model check --help`.

    Raises:
        ServingError: none can be had; the text says what would help.
    """
    console = Console(stderr=as_json, highlight=False)
    spec = portfolio.load(file).model(model)
    folder = model_path.check(spec.model.path)
    questions = _questions(spec, folder)
    size = _float32_bytes(folder)
    if size <= MAX_FORWARD_BYTES and size < MEMORY_SHARE * psutil.virtual_memory().available:
        with console.status("computing in float32"):
            answers: Answers = forward(folder, questions, trust=spec.model.trust_remote_code)
        method = FORWARD
    else:
        from orchestrator.local.state_file import running_state

        address = controller or running_state(name).registry
        with console.status("asking the workers"):
            answers, voters = asyncio.run(agreement(spec, address))
        method = f"agreement of {voters} workers in {spec.model.dtype}"
    path = reference_file.write(spec.model.path, questions, answers, method=method)
    if as_json:
        print(json.dumps({"path": str(path), "method": method, "prompts": list(answers)}))
    else:
        console.print(f"{path}: {len(answers)} answers by {method}; clusters judge by it from their next start on")


def _float32_bytes(folder: Path) -> float:
    stored = reference_file.parameter_bytes(folder)
    tree = json.loads((folder / "config.json").read_text())
    width = 4 if tree.get("dtype", tree.get("torch_dtype")) == "float32" else 2
    if "quantization_config" in tree or not stored:
        return float("inf")  # transformers would need the quantiser, or the weights are not in safetensors
    return stored * 4 / width


def _questions(spec: ClusterSpec, folder: Path) -> tuple[Prompt, ...]:
    tree = json.loads((folder / "config.json").read_text())
    vocab_size = tree.get("vocab_size") or tree.get("text_config", {}).get("vocab_size")
    if not vocab_size:
        raise ConfigError(f"{folder}/config.json has no vocab_size")
    (block_size,) = {pool.engine.block_size_tokens for _, pool in spec.pools.items() if pool.replicas}
    return prompts(vocab_size, block_size, spec.model.max_model_len_tokens)


def forward(
    folder: Path, questions: tuple[Prompt, ...], *, trust: bool = False, dtype: str = "float32"
) -> dict[str, tuple[Position, ...]]:
    """Answers by a plain forward pass."""
    from cluster.model.float32_forward import Float32Model

    model = Float32Model(folder, dtype=dtype, trust_remote_code=trust)
    return {
        prompt.name: tuple(
            Position(chosen, tuple(rows))
            for chosen, rows in model.greedy(prompt.token_ids, max_tokens=prompt.max_tokens, top=TOP_LOGPROBS)
        )
        for prompt in questions
    }


async def agreement(spec: ClusterSpec, address: str) -> tuple[Answers, int]:
    """Answers that all workers of a running cluster agree on, and how many that are.

    Raises:
        EngineFailed: they differ, or are too few.
    """
    rpc = InternalRpc(spec.security)
    async with rpc.channel(address) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        watch = stub.WatchMembers(registry_pb2.WatchMembersRequest(), timeout=10, metadata=rpc.metadata)
        ours = [each for each in (await watch.read()).members if each.model in ("", spec.model.served_name)]
        members = {each.worker_id: each for each in ours if each.state in LOADED}
        watch.cancel()
    if len(members) < MIN_WORKERS:
        raise EngineFailed(
            f"the model is too large for a forward pass here, and {len(members)} workers have no majority: "
            f"start at least {MIN_WORKERS}"
        )
    given: dict[str, Answers] = {}
    for worker_id in members:
        given[worker_id] = (await ask(Run(worker_id), members, rpc)).answers
    model = spec.model
    tolerance = tolerance_nat(model.dtype, model.kv_cache_dtype, model.quantization)
    blame = judge(given, tolerance_nat=tolerance)
    if blame.wrong or blame.undecided:
        names = ", ".join(blame.wrong) or ", ".join(blame.undecided)
        raise EngineFailed(f"the workers do not agree: {names}; `baton doctor` says by how much")
    whole = next((each for key, each in given.items() if members[key].role != Role.PREFILL.value), None)
    if whole is None or {prompt.name for prompt in prompts_for(next(iter(members.values())))} - whole.keys():
        raise EngineFailed("no worker that decodes answered")
    return whole, len(given)
