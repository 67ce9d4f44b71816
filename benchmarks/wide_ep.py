"""DeepSeek-R1 with attention in data parallel and experts spread wide: our model beside published throughput.

    python benchmarks/wide_ep.py

Published: the SGLang team, 5 May 2025 (lmsys.org/blog/2025-05-05-large-scale-ep), 96 H100 with NICs of 400 Gb/s;
DeepSeek, "DeepSeek-V3/R1 Inference System Overview", March 2025, H800, means of one day of its own service; the vLLM
team, 17 December 2025, "DeepSeek @ 2.2k tok/s/H200 with Wide-EP". Where a source leaves batch or lengths open, what is
assumed is printed beside the figure. Constants are SGLang's (vLLM's for vLLM), fitted on single nodes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from cluster.hardware.catalogue import GpuSpec, gpu
from cluster.hardware.engine_constants import engine_constants
from cluster.model.known_models import known_model
from decode_workers.cost import DecodeCost

GPUS_PER_NODE = 8
MODEL = known_model("DeepSeek-R1")
H800 = replace(gpu("H100-SXM"), name="H800", scaleup_bytes_per_s=200e9)


@dataclass(frozen=True)
class Figure:
    """A published throughput and what we say of it, tokens a second and node."""

    name: str
    published: float
    ours: float
    assumed: str = ""

    @property
    def error(self) -> float:
        return self.ours / self.published - 1.0


def _cost(kind: GpuSpec, dp: int, engine: str = "sglang") -> DecodeCost:
    return DecodeCost(MODEL, kind, engine_constants(engine), 1, expert_parallel=True, dp=dp)


def prefill_per_node(cost: DecodeCost, isl_tokens: int, tokens_per_rank: int = 8192, cached_tokens: int = 0) -> float:
    """Prompt tokens a second and node with full steps on every rank."""
    dp, each = cost.roofline.dp, max(1, tokens_per_rank // isl_tokens)
    step_s = cost.mixed_step_s(0, 0, ((isl_tokens, cached_tokens),) * (dp * each))
    return GPUS_PER_NODE * each * isl_tokens / step_s


def decode_per_node(cost: DecodeCost, batch_per_gpu: int, context_tokens: int) -> float:
    """Output tokens a second and node."""
    batch = batch_per_gpu * cost.roofline.dp
    return GPUS_PER_NODE * batch_per_gpu / cost.step_s(batch, batch * context_tokens)


def at_speed(cost: DecodeCost, tokens_per_s: float, context_tokens: int) -> tuple[float, int]:
    """Output tokens a second and node, and requests a GPU, where each request gets ``tokens_per_s``."""
    batch = 1
    while decode_per_node(cost, batch + 1, context_tokens) / (batch + 1) / GPUS_PER_NODE >= tokens_per_s:
        batch += 1
    return decode_per_node(cost, batch, context_tokens), batch


def figures() -> list[Figure]:
    """All figures."""
    h100, h200, found = gpu("H100-SXM"), gpu("H200-SXM"), []
    for isl, published in ((1024, 57_674.0), (2048, 54_543.0), (4096, 50_302.0)):
        ours = prefill_per_node(_cost(h100, 32), isl)
        found.append(Figure(f"SGLang prefill EP32, prompts of {isl}", published, ours, "8,192 tokens a rank and step"))
    ours = decode_per_node(_cost(h100, 72), 256, 2050)
    found.append(Figure("SGLang decode EP72, prompts of 2,000", 22_282.0, ours, "256 requests a GPU"))
    ours, batch = at_speed(_cost(H800, 144), 21.0, 4989)
    found.append(
        Figure("DeepSeek decode EP144, 21 tokens/s each", 14_800.0, ours, f"context 4,989: {batch} requests a GPU")
    )
    ours = prefill_per_node(_cost(H800, 32), 2048, cached_tokens=2640)
    found.append(Figure("DeepSeek prefill EP32, 56 % cached", 73_700.0 * 0.437, ours, "not cached; 2,048 after 2,640"))
    ours = decode_per_node(_cost(h200, 32, "vllm"), 128, 2500)
    found.append(Figure("vLLM decode H200", 8 * 2200.0, ours, "EP32, 128 requests a GPU, context 2,500"))
    return found


def main() -> None:
    print(f"{'tokens/s a node':<42} {'published':>10} {'ours':>10} {'error':>8}   assumed")
    for each in figures():
        print(f"{each.name:<42} {each.published:10,.0f} {each.ours:10,.0f} {each.error:+8.1%}   {each.assumed}")


if __name__ == "__main__":
    main()
