"""Traces as the load generator plays them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.trace import TraceRow, read_trace
from cluster.errors import ConfigError

counts = st.integers(1, 100_000)
rows = st.lists(st.tuples(st.floats(0, 1e6), counts, st.integers(0, 1000), counts), min_size=1, max_size=20)


@given(values=rows)
def test_our_log_is_read_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float, int, int, int]]
) -> None:
    file = tmp_path_factory.mktemp("trace") / "log.jsonl"
    keys = ("arrival_s", "isl_tokens", "reasoning_tokens", "answer_tokens")
    file.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in values))
    found = read_trace(file)
    start = min(at for at, *_ in values)
    assert sorted((row.isl_tokens, row.osl_tokens) for row in found) == sorted((i, t + a) for _, i, t, a in values)
    assert [row.arrival_s for row in found] == sorted(at - start for at, *_ in values)
    assert found[0].arrival_s == 0


def test_azure_with_spaces_in_its_header(tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(
        "TIMESTAMP, ContextTokens, GeneratedTokens\n2023-11-16 18:17:04.0319600,3180,8\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.0000000,5,0\n"
    )
    found = read_trace(file)
    assert [(row.isl_tokens, row.osl_tokens) for row in found] == [(4808, 10), (3180, 8)]
    assert found[1].arrival_s == pytest.approx(0.052, abs=1e-6)


def test_mooncake_with_and_without_hashes(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(
        '{"timestamp": 3000, "input_length": 9, "output_length": 2, "hash_ids": [0]}\n'
        '{"timestamp": 3000, "input_length": 9, "output_length": 2}\n'
    )
    assert read_trace(file) == [TraceRow(0.0, 9, 2)] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a trace I know"),
        ('{"arrival_s": 1, "isl_tokens": 2}', "line 1: reasoning_tokens is missing"),
        ('{"timestamp": 1, "input_length": 3}', "line 1: output_length is missing"),
        ("{", "not a trace I know"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2", "line 2"),
        ("a,b\n1,2", "not a trace I know"),
        ("client_id,window_start_s\n1,2", "client windows hold no requests"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_trace(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the trace"):
        read_trace(tmp_path / "none")
