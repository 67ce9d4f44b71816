"""The loads of `benchmarks/autoscaling.py`: an hour, a swap of lengths, a burst of one tenant, and others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from planner.simulator.servegen import ServeGen
from planner.simulator.traces import READERS
from planner.simulator.workload import Change, Workload


def hour(data: Path) -> Workload:
    return READERS["sample"](data / "servegen_r1_shift_1h.csv")


def swapped(data: Path) -> Workload:
    """The long traces first."""
    whole = hour(data)
    first, second = whole.between(0, 1800), whole.between(1800, 3600)
    index = np.concatenate((np.flatnonzero(whole.arrival_s >= 1800), np.flatnonzero(whole.arrival_s < 1800)))
    index = index[np.r_[: len(second), len(whole) - len(first) : len(whole)]]
    return whole.rows(index, np.concatenate((second.arrival_s, first.arrival_s + 1800)))


def tenant_burst(data: Path) -> Workload:
    """The first half hour, in whose second third a tenant of 4 % of the requests sends ten times as many."""
    whole = hour(data).between(0, 1800)
    burst = (whole.tenants.index("19") == whole.tenant) & (whole.arrival_s >= 600) & (whole.arrival_s < 1200)
    times = np.repeat(np.flatnonzero(burst), 9)
    rng = np.random.default_rng(0)
    index = np.concatenate((np.arange(len(whole)), times))
    arrival_s = np.concatenate((whole.arrival_s, whole.arrival_s[times] + rng.uniform(-30, 30, len(times))))
    order = np.argsort(arrival_s, kind="stable")
    return whole.rows(index[order], arrival_s[order])


def tripled(data: Path) -> Workload:
    """The first half hour, whose traces grow to three times their length between minutes 10 and 15."""
    whole = hour(data).between(0, 1800)
    factor = 1 + 2 * np.clip((whole.arrival_s - 600) / 300, 0, 1)
    return replace(
        whole,
        reasoning_tokens=np.rint(whole.reasoning_tokens * factor).astype(np.int64),
        answer_tokens=np.maximum(1, np.rint(whole.answer_tokens * factor)).astype(np.int64),
    )


def stationary(rate: float) -> Callable[[Path], Workload]:
    """Two hours of requests drawn from the first half hour, at random times of a steady rate."""

    def read(data: Path) -> Workload:
        half = hour(data).between(0, 1800)
        rng = np.random.default_rng(0)
        count = round(4 * rate * len(half))
        return half.rows(rng.integers(0, len(half), count), np.sort(rng.uniform(0, 7200, count)))

    return read


def azure(name: str, rate: float) -> Callable[[Path], Workload]:
    """An Azure trace at several times its rate, so that a pool has more than one worker."""

    def read(data: Path) -> Workload:
        whole = READERS["azure"](data / f"azure_llm_2023_{name}.csv")
        return Change(rate=rate).apply(whole, np.random.default_rng(0))

    return read


def day(rate: float) -> Callable[[Path], Workload]:
    """The day, at a share of its rate."""

    def read(data: Path) -> Workload:
        generator = ServeGen.read(data / "servegen_r1_client_windows.csv", data / "servegen_r1_length_quantiles.csv")
        return generator.draw(np.random.default_rng(0), rate=rate)

    return read
