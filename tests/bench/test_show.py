"""Objectives, the summary's arithmetic, and the table that a run ends with."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.record import RequestRecord
from bench.report import Slo, summarise
from bench.show import show


def record(index: int = 0, **more: Any) -> RequestRecord:
    fields = {"message_s": [0.1, 0.2, 0.3], "output_tokens": 3, "first_answer_s": 0.2, "prompt_tokens": 5}
    return RequestRecord(index, 5, 3, **(fields | more))


def summary(*records: RequestRecord, slo: Slo | None = None, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"duration_s": 2.0, "server_cpu_s": 0.5, "client_cpu_s": 0.1}
    found = summarise(records, slo=slo or Slo(), **(options | more))
    return {"endpoint": "http://h:1", "model": "m", "loop": "closed loop, 1 client", **found}


def text_of(found: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=140, record=True)
    show(found, console)
    return console.export_text()


# --- objectives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (Slo(), True),
        (Slo(ttft_s=0.1), True),
        (Slo(ttft_s=0.099), False),
        (Slo(ttfat_s=0.2), True),
        (Slo(ttfat_s=0.19), False),
        (Slo(itl_s=0.1001), True),
        (Slo(itl_s=0.09), False),
        (Slo(e2e_s=0.3), True),
        (Slo(e2e_s=0.29), False),
        (Slo(ttft_s=9, ttfat_s=9, itl_s=9, e2e_s=0.29), False),
    ],
)
def test_every_objective_that_is_asked_must_hold(slo: Slo, met: bool) -> None:
    assert slo.met_by(record()) is met


def test_a_failed_request_meets_nothing() -> None:
    assert not Slo().met_by(record(failure="timeout"))


def test_one_token_has_no_gap_to_be_late() -> None:
    assert Slo(itl_s=0.0).met_by(record(message_s=[0.1], output_tokens=1))


@settings(max_examples=40)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.lists(st.floats(0.001, 0.5), min_size=1, max_size=8))
def test_a_looser_objective_is_met_by_no_fewer(one_s: float, two_s: float, gaps_s: list[float]) -> None:
    times, at_s = [], 0.0
    for gap_s in gaps_s:
        at_s += gap_s
        times.append(at_s)
    each = record(message_s=times, output_tokens=len(times))
    low_s, high_s = sorted((one_s, two_s))
    for name in ("ttft_s", "itl_s", "e2e_s"):
        assert Slo(**{name: low_s}).met_by(each) <= Slo(**{name: high_s}).met_by(each)


# --- arithmetic -----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=12), st.floats(0.1, 100))
def test_rates_are_of_requests_that_ended_well(rows: list[tuple[int, bool]], duration_s: float) -> None:
    records = [record(i, output_tokens=count, failure="" if ok else "broken") for i, (count, ok) in enumerate(rows)]
    found = summary(*records, duration_s=duration_s)
    good = [count for count, ok in rows if ok]
    assert (found["completed"], found["failed"]) == (len(good), len(rows) - len(good))
    assert found["output_tokens"] == sum(good)
    assert found["output_tokens_per_s"] * duration_s == pytest.approx(sum(good))
    assert found["requests_per_s"] * duration_s == pytest.approx(len(good))
    assert sum(found["failures"].values()) == found["failed"]


def test_cpu_is_shared_over_all_tokens_those_of_failed_requests_too() -> None:
    found = summary(record(output_tokens=300), record(1, output_tokens=100, failure="broken"))
    assert found["server_cpu_s_per_1k_tokens"] == pytest.approx(0.5 * 1000 / 400)
    assert found["client_cpu_us_per_token"] == pytest.approx(0.1e6 / 400)


@pytest.mark.parametrize("duration_s", [0.0, 2.0])
def test_a_run_of_nothing_divides_by_nothing(duration_s: float) -> None:
    found = summary(duration_s=duration_s, slo=Slo(ttft_s=1))
    assert found["goodput_requests_per_s"] in (None, 0.0)
    assert found["client_cpu_us_per_token"] is None
    assert found["ttft_s"] is None
    assert "0 of 0 requests" in text_of(found)


def test_goodput_counts_requests_that_met_all_objectives() -> None:
    found = summary(record(), record(1, message_s=[0.5, 0.6, 0.7]), record(2, failure="short"), slo=Slo(ttft_s=0.2))
    assert found["slo_met"] == 1
    assert found["goodput_requests_per_s"] == pytest.approx(0.5)
    assert "1 requests met ttft <= 0.2 s" in text_of(found)


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_is_in_milliseconds() -> None:
    lines = text_of(summary(record())).splitlines()
    (ttft,) = (line for line in lines if "TTFT" in line)
    assert ttft.count("100.0") == 6  # four percentiles, mean and maximum of one request
    assert any("E2E" in line and "300.0" in line for line in lines)
    assert "http://h:1 (m), closed loop, 1 client" in lines[0]


@pytest.mark.parametrize(
    ("change", "words", "there"),
    [
        ({}, "tokens per message", False),
        ({"message_s": [0.1], "output_tokens": 3}, "3.00 tokens per message", True),
        ({"lag_s": 0.009}, "late", False),
        ({"lag_s": 0.25}, "sent up to 250 ms late", True),
        ({"failure": "http 429", "detail": "[full]"}, "1 failed: http 429 ([full])", True),
        ({"failure": "broken", "detail": "[/x] [red]"}, "1 failed: broken ([/x] [red])", True),
    ],
)
def test_what_makes_figures_doubtful_is_said(change: dict[str, Any], words: str, there: bool) -> None:
    assert (words in text_of(summary(record(**change)))) is there


def test_cpu_of_a_server_that_was_not_watched_is_left_out() -> None:
    assert "server:" not in text_of(summary(record(), server_cpu_s=None))
    assert "server: 0.50 CPU seconds, 166.67 per 1,000 output tokens" in text_of(summary(record()))
