"""Reads the weights inside a vLLM worker process, as its kernels see them; part of `vllm_worker.WorkerExtension`.

Where kernels read the parameters, their bytes are summed. vLLM's CPU linear layers keep a packed copy of their weight
inside oneDNN (or sgl-kernel) that cannot be read; there the layer multiplies rows of the identity matrix: each
product is one weight times 1.0 plus zeros, so the weights come out exactly, through the very kernel that serves.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cluster.engine import fault_injection

CPU_PIECE_BYTES = 16 << 20
GPU_PIECE_BYTES = 1 << 30
PIECE_FLOPS = 1e9
"""Of one product with rows of the identity: some 20 ms on one core. The engine makes no step meanwhile."""

fault_injection.arm()


@dataclass(frozen=True, slots=True)
class _Piece:
    name: str
    read: Callable[[], str]


class WeightReader:
    """A part of what vLLM mixes into its worker; called by ``collective_rpc``."""

    def baton_read_weights(self, first: int, budget_s: float) -> dict[str, Any]:
        """Sums of pieces from ``first`` on, as many as fit the time, at least one; `weight_sums` joins the ranks."""
        started_s = time.perf_counter()
        pieces: list[_Piece] | None = getattr(self, "_baton_pieces", None)
        if pieces is None:
            pieces = self._baton_pieces = _cut(self.model_runner.get_model())  # type: ignore[attr-defined]
        first %= len(pieces)
        sums: list[str] = []
        with torch.inference_mode():
            for piece in pieces[first:]:
                sums.append(piece.read())
                if time.perf_counter() - started_s >= budget_s:
                    break
        layout = hashlib.sha256("\n".join(piece.name for piece in pieces).encode()).hexdigest()[:16]
        return {
            "layout": layout,
            "pieces": len(pieces),
            "first": first,
            "sums": sums,
            "duration_s": time.perf_counter() - started_s,
        }


def _cut(model: torch.nn.Module) -> list[_Piece]:
    """Everything that is read when the model computes, in pieces; tied weights once."""
    pieces: list[_Piece] = []
    seen: set[int] = set()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.numel() == 0 or tensor.is_meta or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        pieces += _of_tensor(name, tensor)
    for name, module in model.named_modules():
        if hasattr(module, "cpu_linear"):
            pieces += _of_packed(name, module)
    return pieces


def _of_tensor(name: str, tensor: torch.Tensor) -> Iterator[_Piece]:
    most = (CPU_PIECE_BYTES if tensor.device.type == "cpu" else GPU_PIECE_BYTES) // tensor.element_size()
    for start in range(0, tensor.numel(), most):
        end = min(start + most, tensor.numel())

        def read(start: int = start, end: int = end) -> str:
            return _sum(tensor.detach().reshape(-1)[start:end])

        yield _Piece(f"{name}[{start}:{end}] {tensor.dtype}", read)


def _of_packed(name: str, module: Any) -> Iterator[_Piece]:
    if module.weight.numel():
        outputs, inputs = module.weight.shape
    elif hasattr(module, "input_size_per_partition"):
        outputs, inputs = module.output_size_per_partition, module.input_size_per_partition
    else:
        return
    rows = max(1, min(inputs, int(PIECE_FLOPS / (2 * inputs * outputs))))
    for start in range(0, inputs, rows):
        end = min(start + rows, inputs)

        def read(start: int = start, end: int = end) -> str:
            ones = torch.zeros(end - start, inputs, dtype=module.weight.dtype)
            ones[torch.arange(end - start), torch.arange(start, end)] = 1
            return _sum(module.cpu_linear(ones, module.weight, None))

        yield _Piece(f"{name} packed[{start}:{end}] {module.weight.dtype}", read)


def _sum(tensor: torch.Tensor) -> str:
    """Sum of the bytes, four at a time where that goes: one flipped bit always changes it."""
    raw = tensor.contiguous().view(-1).view(torch.uint8)
    if raw.numel() % 4 == 0 and raw.data_ptr() % 4 == 0:
        raw = raw.view(torch.int32)
    return f"{int(raw.sum(dtype=torch.int64)) & 0xFFFFFFFFFFFFFFFF:x}"
