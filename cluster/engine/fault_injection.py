"""Makes a real engine compute wrongly, for tests of the canary. Reachable only where ``BATON_TEST_FAULTS`` is set.

``BATON_TEST_FAULTS`` is a folder. A file ``<worker_id>.<fault>`` in it makes that worker's engine faulty from then on;
it is renamed to ``.applied`` when it is, so that the worker that replaces it is sound. Nothing here runs without the
variable: `arm` returns at once, and `swap_blocks` does nothing.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

FOLDER = "BATON_TEST_FAULTS"
WORKER = "BATON_WORKER_ID"
FAULTS = ("high_bit", "low_bit", "swapped_blocks", "zeroed_v_head", "wrong_kernel")
POLL_S = 0.1
HIGH_BIT = -2
"""Counted from the sign bit: the highest exponent bit, in every float type."""
KERNEL_ERROR = 0.1
"""Emulated: half of the heads come out a tenth too large. There is no kernel here that is wrong by itself."""

_active: set[str] = set()
_layers: list[Any] = []
_armed = False


def arm() -> None:
    """Watch for faults to inject, if this is a test. Called in the engine's process before the model is loaded."""
    global _armed
    if not os.environ.get(FOLDER) or _armed:
        return
    _armed = True
    _keep_unpacked_weights()
    _wrap_attention()
    threading.Thread(target=_watch, name="baton-test-faults", daemon=True).start()


def swap_blocks(metadata: Any) -> None:
    """With ``swapped_blocks``: what was read for the first two blocks of a request goes to one another's place."""
    if "swapped_blocks" not in _active:
        return
    for meta in metadata.reqs_to_recv.values():
        meta.local_block_ids = type(meta.local_block_ids)(
            [group[1], group[0], *group[2:]] if len(group) >= 2 else group for group in meta.local_block_ids
        )


def _watch() -> None:
    worker_id = os.environ.get(WORKER, "")
    while True:
        for fault in FAULTS:
            path = Path(os.environ[FOLDER]) / f"{worker_id}.{fault}"
            if path.exists():
                if fault in ("high_bit", "low_bit"):
                    _flip(HIGH_BIT if fault == "high_bit" else 0)
                _active.add(fault)
                path.rename(path.with_suffix(".applied"))
        time.sleep(POLL_S)


def _keep_unpacked_weights() -> None:
    """CPU linear layers give their weight away when it is packed; keep it, to pack it again with a bit flipped."""
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm

    def keeping(layer: Any, remove_weight: bool) -> None:
        original = layer.weight.detach().clone()
        pack(layer, remove_weight)
        if remove_weight:
            _layers.append((layer, original, pack))

    utils.dispatch_cpu_unquantized_gemm = keeping


def _flip(bit: int) -> None:
    """Flip one bit of one weight of the linear layer in the middle; ``bit`` counts from the lowest, -1 is the sign."""
    import torch

    layer, original, pack = _layers[len(_layers) // 2]
    size = original.element_size() * 8
    words = original.view({16: torch.int16, 32: torch.int32}[size]).reshape(-1)
    # The largest weight: a high exponent bit that is 0 there makes it enormous.
    at = int(original.abs().reshape(-1).argmax())
    mask = 1 << (bit % size)
    words[at] ^= mask
    layer.weight = torch.nn.Parameter(original, requires_grad=False)
    pack(layer, True)


def _wrap_attention() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    forward, update = CPUAttentionBackendImpl.forward, CPUAttentionBackendImpl.do_kv_cache_update

    def faulty_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        if "wrong_kernel" in _active and args[5] is not None:
            heads = output.view(output.shape[0], self.num_heads, -1)
            heads[:, ::2] *= 1 + KERNEL_ERROR
        return output

    def faulty_update(self: Any, layer: Any, key: Any, value: Any, *rest: Any) -> None:
        if "zeroed_v_head" in _active and ".0." in getattr(layer, "layer_name", ".0."):
            value = value.clone()
            value[:, 0] = 0
        update(self, layer, key, value, *rest)

    CPUAttentionBackendImpl.forward = faulty_forward
    CPUAttentionBackendImpl.do_kv_cache_update = faulty_update
