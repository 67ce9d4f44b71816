"""Generated requests come out of every format as they went in, however the file is packed."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.simulator.trace_formats.reading import TraceOptions
from planner.simulator.traces import detect, load

from .samples import SOME, TIMED, Row, sharegpt

# Too few for a doubt about the unit of their times.
rows = st.lists(
    st.tuples(st.integers(0, 80_000_000), st.integers(1, 130_000), st.integers(2, 30_000)), min_size=1, max_size=18
).map(lambda found: [*found, (86_000_000, 9, 9)])

PACKINGS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode()),
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "packed with a mark and CRLF": lambda text: gzip.compress(text.replace("\n", "\r\n").encode("utf-8-sig")),
    "blank lines": lambda text: ("\n" + text + "\n\n").encode(),
}


def expected(made: list[Row]) -> list[tuple[int, int, int]]:
    first = min(at for at, *_ in made)
    return sorted((at - first, isl, osl) for at, isl, osl in made)


def read(path: Path, options: TraceOptions | None = None) -> list[tuple[int, int, int]]:
    workload = load(path, options or TraceOptions()).workload
    at_ms = (workload.arrival_s - workload.arrival_s[0]) * 1000
    return sorted(
        zip(at_ms.round().astype(int).tolist(), workload.isl_tokens.tolist(), workload.osl_tokens.tolist(), strict=True)
    )


@pytest.mark.parametrize("name", TIMED)
@given(made=rows)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_format_goes_round(tmp_path: Path, name: str, made: list[Row]) -> None:
    path = tmp_path / "trace"
    path.write_text(TIMED[name](made))
    assert detect(path) == name.split()[0]
    assert read(path) == expected(made)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", TIMED)
def test_packing_and_line_ends_do_not_matter(tmp_path: Path, name: str, packing: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(PACKINGS[packing](TIMED[name](SOME)))
    assert read(path) == expected(SOME)


@pytest.mark.parametrize("packing", PACKINGS)
def test_text_of_chats_goes_round(tmp_path: Path, packing: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(PACKINGS[packing](sharegpt(SOME)))
    found = read(path, TraceOptions(chars_per_token=1))
    assert [each[1:] for each in found] == sorted(each[1:] for each in SOME)
    assert load(path, TraceOptions(chars_per_token=1)).unit == ""
