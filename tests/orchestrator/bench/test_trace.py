import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from orchestrator.bench.trace import TraceRow, parse_trace, read_trace

counts = st.integers(1, 100_000)
rows = st.lists(st.tuples(st.floats(0, 1e6), counts, st.integers(0, 1000), counts), min_size=1, max_size=20)


@given(rows)
def test_our_log_is_read_back_in_order(values: list[tuple[float, int, int, int]]) -> None:
    lines = [
        json.dumps({"arrival_s": at, "isl_tokens": isl, "reasoning_tokens": thought, "answer_tokens": answer, "x": 1})
        for at, isl, thought, answer in values
    ]
    found = parse_trace(lines)
    start = min(at for at, *_ in values)
    assert sorted((row.isl_tokens, row.osl_tokens) for row in found) == sorted((i, t + a) for _, i, t, a in values)
    assert [row.arrival_s for row in found] == sorted(at - start for at, *_ in values)
    assert found[0].arrival_s == 0


def test_azure() -> None:
    found = parse_trace(
        [
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            "2023-11-16 18:17:04.0319600,3180,8",
            "2023-11-16 18:17:03.9799600,4808,10",
            "2023-11-16 18:17:05.0000000,5,0",
            "",
        ]
    )
    assert [(row.isl_tokens, row.osl_tokens) for row in found] == [(4808, 10), (3180, 8)]
    assert found[1].arrival_s == pytest.approx(0.052, abs=1e-6)


def test_mooncake(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"timestamp": 3000, "input_length": 9, "output_length": 2, "hash_ids": [0]}\n' * 2)
    assert read_trace(file) == [TraceRow(0.0, 9, 2)] * 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "empty"),
        (['{"arrival_s": 1}'], "trace:1: 'reasoning_tokens' is missing"),
        (['{"timestamp": 1, "input_length": 3}'], "trace:1: 'output_length' is missing"),
        (["{"], "trace:1"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,1,2"], "trace:2"),
        (["a,b", "1,2"], "'TIMESTAMP' is missing"),
        (["a,b", "1,2,3"], "trace:2"),
    ],
)
def test_what_is_wrong_is_named(lines: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_trace(lines)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the trace"):
        read_trace(tmp_path / "none")
