"""Whatever the bytes: a trace, or one sentence."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from planner.simulator.trace_formats import summary
from planner.simulator.trace_formats.reading import TraceOptions
from planner.simulator.traces import load

from .samples import SOME, TIMED, sharegpt

FILES = {name: make(SOME).encode() for name, make in TIMED.items()} | {"sharegpt": sharegpt(SOME).encode()}
SPLINTERS = [
    *(b"NaN", b"nan", b"-1", b"1e400", b"1e9", b"99999999999999999999999", b"9" * 5000, b"0.5", b"100.0", b"true"),
    *(b"null", b'""', b'"\\ud800"', b"[]", b"{}", b"[" * 3000, b"\x00", b"\xff", b"\r", b"\n", b",", b'"', b"{", b"}"),
    *(b"]", b":", b"\xef\xbb\xbf", b"\x1f\x8b", b"2024-13-45", b"2024-05-12", b" ", b";", b"\t", b"Infinity"),
]
own = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read_or_refuse(path: Path) -> None:
    for options in (TraceOptions(chars_per_token=4), TraceOptions(unit="s", chars_per_token=4, block_tokens=16)):
        try:
            reading = load(path, options)
        except ConfigError as error:
            text = str(error)
            assert text and text.isprintable() and len(text) < 600, text
        else:
            assert len(reading.workload)
            shown = "\n".join(summary.lines(reading))
            shown.encode()


@given(data=st.binary(max_size=400))
@own
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "trace"
    path.write_bytes(data)
    read_or_refuse(path)


@given(text=st.text(max_size=300))
@own
def test_any_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text, errors="replace")
    read_or_refuse(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
KEYS = {
    *("timestamp", "input_length", "output_length", "hash_ids", "session_id", "delay", "text_input", "chat_id"),
    *("arrival_s", "isl_tokens", "reasoning_tokens", "answer_tokens", "tenant", "priority", "session", "think_s"),
    *("conversations", "messages", "input_lens", "output_lens", "start_times", "errors", "benchmarks", "records"),
    *("metadata", "metrics", "error", "start_time", "end_time", "info", "requests", "successful"),
}
objects = st.dictionaries(st.sampled_from(sorted(KEYS)), json_values | st.integers(0, 99), max_size=6)


@given(values=st.lists(objects, min_size=1, max_size=4), array=st.booleans())
@settings(own, max_examples=150)
def test_known_keys_with_any_values(tmp_path: Path, values: list[object], array: bool) -> None:
    import json

    path = tmp_path / "trace"
    path.write_text(json.dumps(values) if array else "\n".join(map(json.dumps, values)))
    read_or_refuse(path)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@own
def test_damaged_files(tmp_path: Path, name: str, data: st.DataObject) -> None:
    whole = FILES[name]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(start, min(len(whole), start + 12)))
        whole = whole[:start] + data.draw(st.sampled_from(SPLINTERS) | st.binary(max_size=3)) + whole[end:]
    path = tmp_path / "trace"
    path.write_bytes(whole)
    read_or_refuse(path)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(own, max_examples=15)
def test_cut_and_packed_files(tmp_path: Path, name: str, data: st.DataObject) -> None:
    packed = gzip.compress(FILES[name], mtime=0)
    place = data.draw(st.integers(0, len(packed)))
    path = tmp_path / "trace"
    path.write_bytes(packed[:place] + data.draw(st.binary(max_size=4)))
    read_or_refuse(path)
