"""Readers of measured points. Field names as the tools write them; the values are made up."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from planner.capacity.measured import Point, read_points

EXPECTED = Point(8, 1000, 200, 0.25, 0.02)
OWN: dict[str, Any] = {"clients": 8, "isl_tokens": 1000, "osl_tokens": 200, "ttft_s": 0.25, "tpot_s": 0.02}
BENCH: dict[str, Any] = {
    "loop": "closed loop, 8 clients", "clients": 8, "completed": 10, "prompt_tokens": 10_000, "output_tokens": 2_000,
    "requests_per_s": 1.9, "ttft_s": {"p50": 0.2, "mean": 0.25}, "tpot_s": {"p50": 0.1, "mean": 0.02},
}  # fmt: skip
VLLM: dict[str, Any] = {
    "max_concurrency": 8, "request_rate": "inf", "completed": 10, "request_throughput": 1.9,
    "total_input_tokens": 10_000, "total_output_tokens": 2_000, "mean_ttft_ms": 250.0, "mean_tpot_ms": 20.0,
}  # fmt: skip
AIPERF: dict[str, Any] = {
    "input_config": {"loadgen": {"concurrency": 8}},
    "request_throughput": {"unit": "requests/sec", "avg": 1.9},
    "input_sequence_length": {"unit": "tokens", "avg": 1000.0},
    "output_sequence_length": {"unit": "tokens", "avg": 200.0},
    "time_to_first_token": {"unit": "ms", "avg": 250.0},
    "inter_token_latency": {"unit": "ms", "avg": 20.0},
}
PHASES = [
    {"name": "warmup", "type": "concurrency", "exclude_from_results": True, "concurrency": 2},
    {"name": "profiling", "type": "concurrency", "requests": 96, "concurrency": 8},
]
_MEANS = {
    "request_concurrency": 8.0, "prompt_token_count": 1000.0, "output_token_count": 200.0,
    "time_to_first_token_ms": 250.0, "inter_token_latency_ms": 20.0, "time_per_output_token_ms": 21.2,
}  # fmt: skip


def guidellm(**changes: Any) -> dict[str, Any]:
    metrics = {name: {"successful": {"mean": value}} for name, value in _MEANS.items()}
    return {"benchmarks": [{"metrics": metrics, **changes}]}


@pytest.mark.parametrize(
    "tree",
    [
        OWN,
        [OWN],
        {"points": [OWN]},
        BENCH,
        BENCH | {"clients": None},  # an open loop: 1.9 requests a second, 4.23 s each
        VLLM,
        VLLM | {"max_concurrency": None, "completed": 8, "total_input_tokens": 8_000, "total_output_tokens": 1_600},
        VLLM | {"max_concurrency": None, "request_rate": 2.0},
        AIPERF,
        AIPERF | {"input_config": {"phases": PHASES}},
        AIPERF | {"input_config": {"loadgen": {"request_rate": 2.0}}},
        AIPERF | {"time_to_first_token": {"unit": "sec", "avg": 0.25}},
        guidellm(),
        guidellm(args={"strategy": {"type_": "constant", "rate": 2.0}}),
    ],
)
def test_every_known_form_is_read(tmp_path: Path, tree: Any) -> None:
    path = tmp_path / "points.json"
    path.write_text(json.dumps(tree))
    assert read_points([path]) == [EXPECTED]


@pytest.mark.parametrize("key", ["args", "config"])
def test_guidellm_streams_count_over_the_measured_mean(tmp_path: Path, key: str) -> None:
    path = tmp_path / "points.json"
    path.write_text(json.dumps(guidellm(**{key: {"strategy": {"type_": "concurrent", "streams": 10}}})))
    assert read_points([path])[0].clients == 10


def test_lines_and_tables_hold_several(tmp_path: Path) -> None:
    lines = json.dumps(OWN) + "\n" + json.dumps(VLLM) + "\n"
    (tmp_path / "own.jsonl").write_text(lines)
    (tmp_path / "appended.json").write_text(lines)  # vllm bench serve --append-result
    (tmp_path / "own.csv").write_text(",".join(OWN) + "\n" + ",".join(str(value) for value in OWN.values()) + "\n")
    found = read_points([tmp_path / name for name in ("own.jsonl", "appended.json", "own.csv")])
    assert found == [EXPECTED] * 5


@pytest.mark.parametrize("text", ["{}", "[1]", "{", '{"clients": 0}', '{"benchmarks": [{}]}', "{}\n{"])
def test_what_is_in_no_known_form_is_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "points.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"points\.json"):
        read_points([path])
    with pytest.raises(ConfigError, match="cannot read"):
        read_points([tmp_path / "none.json"])
