"""What Baton adds to vLLM's own worker class, in each process that runs a model. Imported by vLLM, by name.

`VllmEngine` names `WorkerExtension` as the engine's ``worker_extension_cls``: vLLM imports this module in every worker
process, before the worker exists and so before a kernel is chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.engine.weight_reader import WeightReader


def avoid_amx_attention() -> None:
    """Have vLLM's CPU attention take its ``vec`` kernel where it would take the AMX one.

    vLLM 0.32 takes ``amx`` for bfloat16 with blocks of a multiple of 32 tokens, on processors with AMX tiles
    (`vllm.v1.attention.backends.cpu_attn._get_attn_isa`), and the text is then wrong; with ``vec`` it is right
    (docs/lab-notes.md, 2026-11-29). No setting reaches that choice: it follows from the type, the block size, which
    is a multiple of 32 anyway, and the processor. ``vec`` takes each case that ``amx`` does, fp8 KV included.
    """
    from vllm.v1.attention.backends import cpu_attn

    choose = cpu_attn._get_attn_isa
    if getattr(choose, "avoids_amx", False):
        return

    def without_amx(*arguments: Any, **named: Any) -> str:
        isa: str = choose(*arguments, **named)
        return "vec" if isa.startswith("amx") else isa

    without_amx.avoids_amx = True  # type: ignore[attr-defined]
    cpu_attn._get_attn_isa = without_amx


def rewind_generators(runner: Any) -> None:
    """Have a model runner class of vLLM give seeded requests back what it drew for a token that it drops.

    A prompt that is computed in several steps has a token sampled in each, of which the last one counts. vLLM 0.32
    rewinds the request's generator by an offset, which CUDA's have (`GPUModelRunner._bookkeeping_sync`); those of a CPU
    raise, and the engine dies with all that it has. Here the state from before the draw is put back.
    """
    sample, bookkeep = runner._sample, runner._bookkeeping_sync
    if getattr(sample, "rewinds", False):
        return

    def dropped(self: Any) -> dict[int, Any]:
        mask, generators = self.discard_request_mask.np[: self.input_batch.num_reqs], self.input_batch.generators
        return {int(at): generators[int(at)] for at in np.nonzero(mask)[0] if int(at) in generators}

    def sample_and_rewind(self: Any, *arguments: Any, **named: Any) -> Any:
        before = [(generator, generator.get_state()) for generator in dropped(self).values()]
        output = sample(self, *arguments, **named)
        for generator, state in before:
            generator.set_state(state)
        return output

    def without_dropped(self: Any, *arguments: Any, **named: Any) -> Any:
        batch, gone = self.input_batch, dropped(self)
        generators = batch.generators
        batch.generators = {at: each for at, each in generators.items() if at not in gone}
        try:
            return bookkeep(self, *arguments, **named)
        finally:
            batch.generators = generators

    sample_and_rewind.rewinds = True  # type: ignore[attr-defined]
    runner._sample, runner._bookkeeping_sync = sample_and_rewind, without_dropped


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


if _on_cpu():
    avoid_amx_attention()
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    rewind_generators(CPUModelRunner)


class WorkerExtension(WeightReader):
    """Methods that vLLM mixes into its worker class; called with `AsyncLLM.collective_rpc`."""

    vllm_config: Any

    def attention_kernels(self) -> list[str]:
        """Attention kernels of the model's layers: the backend's name and, on CPU, its instruction set."""
        layers = self.vllm_config.compilation_config.static_forward_context.values()
        kernels = set()
        for layer in layers:
            if hasattr(layer, "get_attn_backend"):
                isa = getattr(layer, "isa", None)
                kernels.add(layer.get_attn_backend().get_name() + (f"/{isa}" if isa else ""))
        return sorted(kernels)
