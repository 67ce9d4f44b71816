"""Makes torch and vLLM take the kernels of a lesser processor, in every process that Python starts. On PYTHONPATH only.

``BATON_TEST_CPU=avx2`` or ``avx512`` (AVX-512 without its bfloat16 part, and without AMX). vLLM chooses its library by
what `torch.cpu` says (`vllm.platforms.cpu.CpuPlatform.import_kernels`); oneDNN and ATen read the environment that
`tests.support.cpu` sets. It forces the choice of kernels: the processor still is what it is.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

LACKS = {
    "avx2": ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"),
    "avx512": ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"),
}


class _Loader(importlib.abc.Loader):
    def __init__(self, real: importlib.abc.Loader) -> None:
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        for name in LACKS[os.environ["BATON_TEST_CPU"]]:
            if not hasattr(module, name):
                raise ImportError(f"this torch has no torch.cpu.{name}: the variant cannot be forced")
            setattr(module, name, lambda: False)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch.cpu":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if os.environ.get("BATON_TEST_CPU") in LACKS:
    sys.meta_path.insert(0, _Finder())
