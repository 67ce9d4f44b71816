"""Which processor the tests run on, and as which one."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

HOOK = Path(__file__).parent / "cpu_variant"
ONEDNN = {"avx2": "AVX2", "avx512": "AVX512_CORE_VNNI"}
ATEN = {"avx2": "avx2", "avx512": "avx512"}
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
"""Flags of /proc/cpuinfo by which vLLM, oneDNN or ATen choose kernels."""


def force_variant(environment: MutableMapping[str, str]) -> str:
    """Have processes started with this environment take the kernels of ``BATON_TEST_CPU``; empty: of the processor.

    Raises:
        ValueError: there is no such variant, or the processor cannot run it.
    """
    variant = environment.get("BATON_TEST_CPU", "")
    if not variant:
        return ""
    if variant not in ONEDNN:
        raise ValueError(
            f"BATON_TEST_CPU={variant}: expected {' or '.join(ONEDNN)}, or nothing for the processor's own"
        )
    if variant == "avx512" and "avx512f" not in flags():
        raise ValueError("BATON_TEST_CPU=avx512: this processor has no AVX-512")
    environment["ONEDNN_MAX_CPU_ISA"] = ONEDNN[variant]
    environment["ATEN_CPU_CAPABILITY"] = ATEN[variant]
    paths = [str(HOOK), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return variant


def flags() -> frozenset[str]:
    """What the processor has of `FLAGS`."""
    return frozenset(_field("flags").split()) & frozenset(FLAGS)


def description() -> str:
    """One line for the head of a test run."""
    variant = os.environ.get("BATON_TEST_CPU")
    has = ", ".join(flag for flag in FLAGS if flag in flags()) or "none of " + ", ".join(FLAGS)
    return f"{_field('model name')}: {has}; " + (f"forced to {variant}" if variant else "kernels of its own choice")


def _field(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
