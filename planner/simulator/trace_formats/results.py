"""Results of load generators as traces: when each request was sent, and how long prompt and output were.

``vllm bench serve --save-detailed``, guidellm's ``benchmarks.json``, aiperf's ``profile_export.jsonl`` and
inference-perf's ``per_request_lifecycle_metrics.json``. Requests that failed are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from planner.simulator.trace_formats.cells import Clock, tokens
from planner.simulator.trace_formats.reading import NO_TIMES, Rows, TraceOptions, TraceReading
from planner.simulator.trace_formats.source import document, json_lines, json_objects, shown

SENT = "times are those at which the load generator sent: a closed loop's follow the server it measured"


def read_vllm(path: Path, options: TraceOptions) -> TraceReading:
    """``vllm bench serve --save-result --save-detailed``; with ``--append-result`` the runs follow each other.

    Raises:
        ConfigError: the file cannot be read, holds no single requests, or is malformed.
    """
    rows, clock = Rows(), Clock("start_times", "auto", "s")
    timed, end_s, runs = True, 0.0, 0
    for where, run in _documents(path):
        lists = [run.get(name) for name in ("input_lens", "output_lens")]
        starts, errors = run.get("start_times"), run.get("errors")
        if not all(isinstance(each, list) for each in lists):
            raise ConfigError(f"{path}: {where} holds totals only: run vllm bench serve with --save-detailed")
        inputs, outputs = (list(each or ()) for each in lists)
        timed = timed and isinstance(starts, list)
        columns = [inputs, outputs, *([starts] if isinstance(starts, list) else []), *([errors] if errors else [])]
        if len({len(each) if isinstance(each, list) else -1 for each in columns}) > 1:
            raise ConfigError(f"{path}: {where}: input_lens, output_lens, start_times and errors differ in length")
        runs += 1
        try:
            ats = [clock.seconds(each) for each in starts] if isinstance(starts, list) else [0.0] * len(inputs)
            # Times count from the process's start, so each run is set behind the one before.
            shift_s = end_s - min(ats, default=0.0)
            for index, at_s in enumerate(ats):
                if errors and errors[index]:
                    rows.dropped["failed"] += 1
                    continue
                rows.add(at_s + shift_s, tokens(inputs[index], "input_lens"), tokens(outputs[index], "output_lens"))
            end_s = max(ats, default=0.0) + shift_s
        except ValueError as error:
            raise ConfigError(f"{path}: {where}: {error}") from error
    if runs > 1:
        rows.notes.append(f"{runs} runs, set one behind the other")
    rows.notes.append(SENT if timed else NO_TIMES)
    return rows.reading("vllm_bench", path, clock if timed else None)


def _documents(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        whole = document(path)
    except ConfigError:
        yield from json_lines(path)
    else:
        yield "the file", whole


def read_guidellm(path: Path, options: TraceOptions) -> TraceReading:
    """guidellm's ``benchmarks.json``, of 0.1 to 0.3 (``start_time``) or since (``request_start_time``).

    Raises:
        ConfigError: as for `read_vllm`.
    """
    rows, clock = Rows(), Clock("request_start_time", "auto", "s")
    benchmarks = document(path).get("benchmarks")
    listed = benchmarks if isinstance(benchmarks, list) else []
    for number, benchmark in enumerate(listed, 1):
        requests = benchmark.get("requests") if isinstance(benchmark, dict) else None
        if not isinstance(requests, dict) or not isinstance(requests.get("successful"), list):
            raise ConfigError(
                f"{path}: benchmark {number} holds no list requests.successful; was it cut to its totals?"
            )
        for kind in ("errored", "incomplete"):
            if isinstance(requests.get(kind), list) and requests[kind]:
                rows.dropped[kind] += len(requests[kind])
        for place, request in enumerate(requests["successful"], 1):
            try:
                at_s = clock.seconds(_first(request, "request_start_time", "start_time"))
                isl = tokens(_first(request, "prompt_tokens"), "prompt_tokens")
                rows.add(at_s, isl, tokens(_first(request, "output_tokens"), "output_tokens"))
            except (ValueError, AttributeError) as error:
                raise ConfigError(f"{path}: benchmark {number}, request {place}: {error}") from error
    if len(listed) > 1:
        rows.notes.append(f"{len(listed)} benchmarks, each at its own time and rate")
    rows.notes.append(SENT)
    return rows.reading("guidellm", path, clock)


def _first(values: Any, *names: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"expected an object {{...}}, got {shown(values)}")
    for name in names:
        if name in values:
            return values[name]
    raise ValueError(f"{' or '.join(names)} is missing")


def read_aiperf(path: Path, options: TraceOptions) -> TraceReading:
    """aiperf's ``profile_export.jsonl``.

    Raises:
        ConfigError: as for `read_vllm`.
    """
    rows, clock = Rows(), Clock("metadata.request_start_ns", "ns", None)
    clock.given = False
    for where, record in json_objects(path):
        try:
            metadata, metrics = record.get("metadata"), record.get("metrics")
            if not isinstance(metadata, dict):
                raise ValueError(f"metadata: expected an object {{...}}, got {shown(metadata)}")
            if record.get("error") or not isinstance(metrics, dict):
                rows.dropped["failed"] += 1
                continue
            if str(metadata.get("benchmark_phase", "profiling")).casefold() != "profiling":
                rows.dropped["of the warmup"] += 1
                continue
            at_s = clock.seconds(_first(metadata, "request_start_ns"))
            isl = tokens(_value(metrics, "input_sequence_length"), "input_sequence_length")
            osl = tokens(_value(metrics, "output_sequence_length"), "output_sequence_length")
            if rows.add(at_s, isl, osl):
                thought = tokens(_value(metrics, "reasoning_token_count"), "reasoning_token_count")
                reasoning = min(osl, max(0, thought))
                rows.reasoning.append(reasoning)
                rows.answer[-1] = osl - reasoning
        except ValueError as error:
            raise ConfigError(f"{path}: {where}: {error}") from error
    rows.notes.append(SENT)
    return rows.reading("aiperf", path, clock)


def _value(metrics: dict[str, Any], name: str) -> Any:
    metric = metrics.get(name)
    return metric.get("value") if isinstance(metric, dict) else metric


def read_inference_perf(path: Path, options: TraceOptions) -> TraceReading:
    """inference-perf's ``per_request_lifecycle_metrics.json``; the server's own counts go before the client's.

    Raises:
        ConfigError: as for `read_vllm`.
    """
    rows, clock = Rows(), Clock("start_time", "auto", "s")
    for where, request in json_objects(path):
        try:
            info = request.get("info")
            if request.get("error") or not isinstance(info, dict):
                rows.dropped["failed"] += 1
                continue
            response = _dict(info, "response_metrics")
            usage = _dict(response, "server_usage")
            text = _dict(_dict(info, "request_metrics"), "text")
            isl = _known(usage.get("prompt_tokens"), text.get("input_tokens"), info.get("input_tokens"))
            osl = _known(usage.get("completion_tokens"), response.get("output_tokens"), info.get("output_tokens"))
            rows.add(
                clock.seconds(_first(request, "start_time")), tokens(isl, "input_tokens"), tokens(osl, "output_tokens")
            )
        except ValueError as error:
            raise ConfigError(f"{path}: {where}: {error}") from error
    rows.notes.append(SENT)
    return rows.reading("inference_perf", path, clock)


def _dict(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _known(*values: Any) -> Any:
    return next((each for each in values if each is not None), None)


def refuse_totals(path: Path, keys: Iterable[str]) -> None:
    """Say what to pass in place of a result that holds totals only.

    Raises:
        ConfigError: the keys are those of one.
    """
    found = set(keys)
    hints = (
        ({"mean_ttft_ms"}, "vllm bench serve's totals: run it with --save-detailed"),
        ({"time_to_first_token", "input_config"}, "aiperf's totals: pass profile_export.jsonl beside it"),
        ({"successes", "failures"}, "inference-perf's totals: pass per_request_lifecycle_metrics.json"),
        ({"experiments"}, "genai-perf's texts and no token counts: pass aiperf's profile_export.jsonl"),
        ({"ttft_s", "completed"}, "baton bench's totals: run it with --out"),
    )
    for needed, hint in hints:
        if needed <= found:
            raise ConfigError(f"{path}: holds {hint}")
