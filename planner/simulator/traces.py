"""Request traces: one entry for every format, used by `baton simulate`, `plan`, `bench` and `trace`.

Each format has a reader of its own in `trace_formats`; docs/simulator.md has the table of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from cluster.errors import ConfigError
from planner.simulator.servegen import ServeGen
from planner.simulator.trace_formats import azure, burstgpt, log, mooncake, plausible, results, sample, sharegpt
from planner.simulator.trace_formats.reading import TraceOptions, TraceReading
from planner.simulator.trace_formats.sniff import NAMES, sniff
from planner.simulator.workload import Workload

_FORMATS: dict[str, Callable[[Path, TraceOptions], TraceReading]] = {
    "azure": azure.read,
    "burstgpt": burstgpt.read,
    "mooncake": mooncake.read,
    "bailian": mooncake.read_bailian,
    "sample": sample.read,
    "log": log.read,
    "sharegpt": sharegpt.read,
    "vllm_bench": results.read_vllm,
    "guidellm": results.read_guidellm,
    "aiperf": results.read_aiperf,
    "inference_perf": results.read_inference_perf,
    "baton_bench": log.read_bench,
}
_BY_CONVENTION = frozenset({"mooncake", "bailian", "burstgpt"})
"""Formats whose times are numbers without a unit in their name."""
PLAIN = TraceOptions()


def detect(path: Path) -> str:
    """Name of a file's format, by its first line.

    Raises:
        ConfigError: it cannot be read, or is of no known format.
    """
    return sniff(path)


def load(
    path: Path,
    options: TraceOptions = PLAIN,
    *,
    form: str = "auto",
    quantiles: Path | None = None,
    rate_per_s: float | None = None,
    seed: int = 0,
) -> TraceReading:
    """Read a trace of any format, with all there is to say about it.

    Args:
        path: The file; a folder of ServeGen's chunks too.
        options: What the user says about it.
        form: Name of the format; ``auto`` finds it.
        quantiles: ServeGen's client windows need the file of their length quantiles.
        rate_per_s: Arrivals for a file without times.
        seed: Of what is drawn.
    Raises:
        ConfigError: no reader knows the file, something in it is malformed (the text names the line), or its unit of
            time has to be said.
    """
    found = sniff(path) if form in ("auto", "servegen") else form
    if found not in NAMES:
        raise ConfigError(f"format {form}: expected auto or one of {', '.join(NAMES)}")
    if form not in ("auto", found):
        raise ConfigError(f"{path}: is {found}, not {form}")
    rng = np.random.default_rng(seed)
    if found not in _FORMATS:
        return TraceReading("servegen", servegen(path, quantiles).draw(rng), "s", True, notes=(DRAWN,))
    reading = plausible.checked(path, _FORMATS[found](path, options), _BY_CONVENTION)
    if rate_per_s is None:
        return reading
    if reading.timed:
        raise ConfigError(f"{path}: has times of its own: leave rate_per_s out")
    return reading.at_rate(rate_per_s, rng)


DRAWN = "requests are drawn from ServeGen's client windows, each length by itself"


def servegen(path: Path, quantiles: Path | None) -> ServeGen:
    """ServeGen's client windows, from its own folder of chunks or from two tables.

    Raises:
        ConfigError: a file is malformed, or the second table was not given.
    """
    if path.is_dir():
        return ServeGen.read_folder(path)
    if quantiles is None:
        raise ConfigError(
            f"{path}: ServeGen's client windows hold no requests: say --quantiles, the file of their length quantiles"
        )
    return ServeGen.read(path, quantiles)


def need_times(path: Path, reading: TraceReading, remedy: str = "--rate (`rate_per_s:`) for arrivals") -> TraceReading:
    """The reading, where it says when requests come.

    Raises:
        ConfigError: it does not; ``remedy`` is what to say then.
    """
    if not reading.timed:
        raise ConfigError(f"{path}: holds lengths and no times: say {remedy}")
    return reading


def _workload(form: str, path: Path) -> Workload:
    return _FORMATS[form](path, PLAIN).workload


READERS: dict[str, Callable[[Path], Workload]] = {name: partial(_workload, name) for name in _FORMATS}
"""Readers of files whose format is known, by its name."""
read_log = READERS["log"]


def write_log(workload: Workload, path: Path) -> None:
    """Write a workload as a request log; what prompts share is not kept."""
    with path.open("w") as file:
        for index in range(len(workload)):
            line: dict[str, object] = {
                "arrival_s": round(float(workload.arrival_s[index]), 6),
                "isl_tokens": int(workload.isl_tokens[index]),
                "cached_tokens": int(workload.cached_tokens[index]),
                "reasoning_tokens": int(workload.reasoning_tokens[index]),
                "answer_tokens": int(workload.answer_tokens[index]),
                "tenant": workload.tenants[int(workload.tenant[index])],
                "priority": int(workload.priority[index]),
            }
            if workload.session[index] >= 0:
                line["session"] = int(workload.session[index])
            if not np.isnan(workload.think_s[index]):
                line["think_s"] = float(workload.think_s[index])
            file.write(json.dumps(line) + "\n")
