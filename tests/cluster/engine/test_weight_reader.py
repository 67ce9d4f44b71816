"""Weights are read exactly, also those that a layer has packed away, and one flipped bit of any is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engine import fault_injection
from cluster.engine.weight_reader import WeightReader, _sum

MASK = 0xFFFFFFFFFFFFFFFF


class Packed(torch.nn.Module):
    """As vLLM's linear layers on CPU: the weight is empty, and a closure has it."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.kept = [weight]
        self.output_size_per_partition, self.input_size_per_partition = weight.shape
        self.weight = torch.nn.Parameter(torch.empty(0, dtype=weight.dtype), requires_grad=False)
        self.cpu_linear = lambda x, _, bias: torch.nn.functional.linear(x, self.kept[0], bias)


class Worker(WeightReader):
    def __init__(self, model: torch.nn.Module) -> None:
        self.model_runner = self
        self.model = model

    def get_model(self) -> torch.nn.Module:
        return self.model


def model(dtype: torch.dtype) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(24, 40, dtype=dtype)
    parts = torch.nn.Sequential(torch.nn.Embedding(10, 40, dtype=dtype), Packed(hidden))
    return parts.requires_grad_(False), hidden


def read_all(worker: Worker) -> list[str]:
    sums: list[str] = []
    while True:
        found: dict[str, Any] = worker.baton_read_weights(len(sums), 0.0)
        assert found["first"] == len(sums)
        assert len(found["sums"]) == 1  # the least, where there is no time
        sums += found["sums"]
        if len(sums) == found["pieces"]:
            return sums


def test_a_packed_weight_comes_out_as_it_went_in() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        parts, hidden = model(dtype)
        sums = read_all(Worker(parts))
        assert sums[0] == _sum(parts[0].weight)  # type: ignore[union-attr]
        packed = sum(int(value, 16) for value in sums[1:]) & MASK
        if dtype is torch.float32:
            assert packed == int(_sum(hidden), 16)
        assert read_all(Worker(parts)) == sums


@settings(max_examples=40)
@given(st.integers(0, 24 * 40 - 1), st.integers(0, 31), st.booleans())
def test_one_flipped_bit_of_a_weight_is_seen(at: int, bit: int, packed: bool) -> None:
    parts, hidden = model(torch.float32)
    before = read_all(Worker(parts))
    target = hidden if packed else parts[0].weight.data  # type: ignore[union-attr]
    words = target.view(torch.int32).reshape(-1)
    words[at % len(words)] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert read_all(Worker(parts)) != before


def test_two_engines_of_the_same_model_cut_it_alike() -> None:
    one, two = (Worker(model(torch.float32)[0]).baton_read_weights(0, 1.0) for _ in range(2))
    assert (one["layout"], one["sums"]) == (two["layout"], two["sums"])
    other = Worker(model(torch.bfloat16)[0]).baton_read_weights(0, 1.0)
    assert other["layout"] != one["layout"]


def test_faults_cannot_be_injected_outside_tests() -> None:
    code = (
        "import threading\n"
        "from cluster.engine import fault_injection, weight_reader\n"
        "fault_injection.arm()\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "import sys\n"
        "assert 'vllm' not in sys.modules\n"
    )
    env = {key: value for key, value in os.environ.items() if key != fault_injection.FOLDER}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)
