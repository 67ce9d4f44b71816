"""Single values of a trace: counts, seconds, dates; and whether times can be meant as they were read."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from planner.simulator.trace_formats.cells import MISSING, MOST_TOKENS, UNITS_S, Clock, is_epoch, seconds, tokens
from planner.simulator.trace_formats.plausible import checked, question
from planner.simulator.trace_formats.reading import TraceOptions, TraceReading, trace_options
from planner.simulator.trace_formats.summary import shared_share, span_text
from planner.simulator.trace_formats.text import counter_for
from planner.simulator.workload import Workload

# --- counts ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, MOST_TOKENS), st.sampled_from([int, str, float, lambda n: f"{n}.0", lambda n: f" {n} "]))
def test_a_count_is_read_however_it_is_written(count: int, write: Any) -> None:
    assert tokens(write(count), "n") == count


@pytest.mark.parametrize("value", [None, "", " ", "NaN", "null", "None", "N/A", "-", math.nan])
def test_what_stands_for_nothing_is_missing(value: Any) -> None:
    assert tokens(value, "n") == MISSING


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1, "no token count"),
        ("-1", "no token count"),
        (MOST_TOKENS + 1, "0 to 10,000,000"),
        ("1e300", "no token count"),
        (1.5, "no whole number"),
        ("1.5", "no whole number"),
        ("inf", "no whole number"),
        (math.inf, "no whole number"),
        ("many", "no number"),
        ([3], "expected a number"),
        (True, "expected a number"),
        ({}, "expected a number"),
    ],
)
def test_what_is_no_count_names_its_column(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match="ContextTokens: ") as refused:
        tokens(value, "ContextTokens")
    assert words in str(refused.value)
    assert len(str(refused.value)) < 200


# --- seconds --------------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.sampled_from(sorted(UNITS_S)))
def test_a_unit_is_a_factor(number: float, unit: str) -> None:
    assert seconds(number, "t", unit) == pytest.approx(number * UNITS_S[unit])
    assert seconds(repr(number), "t", unit) == seconds(number, "t", unit)


@pytest.mark.parametrize("value", [True, "soon", None, [], math.nan, math.inf, "inf"])
def test_what_is_no_time_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="pause: "):
        seconds(value, "pause")


def test_a_least_value_is_kept() -> None:
    assert seconds(0, "pause", least=0.0) == 0
    with pytest.raises(ValueError, match="pause: expected at least 0, got"):
        seconds(-1e-9, "pause", least=0.0)


# --- dates ----------------------------------------------------------------------------------------------------------

dates = st.datetimes(datetime(1970, 1, 2), datetime(2099, 12, 30))
hours = st.integers(-12, 12)
FORMS = ("{:%Y-%m-%dT%H:%M:%S.%f}{}", "{:%Y/%m/%d %H:%M:%S.%f}{}", " {:%Y-%m-%dt%H:%M:%S.%f}{}")


@given(dates, hours, st.sampled_from(FORMS))
def test_dates_with_a_zone_are_moments(at: datetime, hour: int, form: str) -> None:
    zone = f"{'-' if hour < 0 else '+'}{abs(hour):02}:00"
    read_s = Clock("t", "auto", None).seconds(form.format(at, zone))
    moment = at.replace(tzinfo=timezone(timedelta(hours=hour)))
    assert read_s == pytest.approx(moment.timestamp(), abs=1e-3)


@given(dates, st.sampled_from(["Z", "z", " UTC", " GMT", "+00:00", " +00:00", " +0000"]))
def test_names_of_the_zero_zone_are_one(at: datetime, zone: str) -> None:
    text = f"{at:%Y-%m-%d %H:%M:%S}{zone}"
    expected = at.replace(microsecond=0, tzinfo=UTC).timestamp()
    assert Clock("t", "auto", None).seconds(text) == pytest.approx(expected)


@given(dates)
def test_without_a_zone_a_date_is_utc_and_differences_are_kept(at: datetime) -> None:
    clock = Clock("t", "auto", None)
    first, second = (clock.seconds(f"{each:%Y-%m-%d %H:%M:%S}") for each in (at, at + timedelta(hours=1)))
    assert second - first == pytest.approx(3600)
    assert clock.zoned is False
    assert clock.kind == "date"


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("2024-05-12 00:00:00", "2024-05-12 00:00:01+00:00", "has the zone that others do not"),
        ("2024-05-12 00:00:00Z", "2024-05-12 00:00:01", "lacks the zone"),
        ("2024-05-12 00:00:00", "17", "no date such as"),
        ("2024-05-12 00:00:00", 17, "no date such as"),
        ("1.5", "2024-05-12 00:00:00", "no number"),
        (1.5, None, "no number"),
        (1.5, True, "no number"),
        (1.5, "nan", "no number"),
    ],
)
def test_a_column_holds_times_of_one_kind(first: Any, second: Any, words: str) -> None:
    clock = Clock("TIMESTAMP", "auto", "s")
    clock.seconds(first)
    with pytest.raises(ValueError, match="TIMESTAMP: ") as refused:
        clock.seconds(second)
    assert words in str(refused.value)


def test_numbers_where_dates_are_usual_need_a_unit() -> None:
    with pytest.raises(ValueError, match="is a number, not a date: say its unit with --unit s, ms or us"):
        Clock("t", "auto", None).seconds(17)
    assert Clock("t", "ms", None).seconds("1500") == 1.5


@pytest.mark.parametrize("text", ["1969-12-31 23:59:59", "2100-01-01 00:00:01"])
def test_a_date_of_another_century_is_a_mistake(text: str) -> None:
    with pytest.raises(ValueError, match="outside the years 1970 to 2099"):
        Clock("t", "auto", None).seconds(text)


# --- plausible units ------------------------------------------------------------------------------------------------


def reading(times_s: list[float], unit: str = "s", *, start_s: float = 0.0, given: bool = False) -> TraceReading:
    count = len(times_s)
    ones = np.ones(count, np.int64)
    workload = Workload(np.array(times_s), ones, ones * 0, ones)
    return TraceReading("mooncake", workload, rows=count, unit=unit, unit_given=given, start_s=start_s)


def asked(times_s: list[float], unit: str, **more: Any) -> str | None:
    return question(reading(times_s, unit, **more), frozenset({"mooncake"}))


FAST = [i / 1000 for i in range(100)]  # 100 requests in a tenth of a second
SLOW = [i * 2000.0 for i in range(100)]


@pytest.mark.parametrize(
    ("times_s", "unit", "other"),
    [(FAST, "ms", "seconds"), (FAST, "us", "milliseconds"), (FAST, "ns", "microseconds"), (SLOW, "s", "milliseconds")],
)
def test_a_rate_that_cannot_be_meant_is_asked_about(times_s: list[float], unit: str, other: str) -> None:
    text = asked(times_s, unit)
    assert text is not None
    assert f"are these {other}?" in text
    assert f"--unit {unit} keeps" in text


@pytest.mark.parametrize(
    ("times_s", "unit", "more"),
    [
        pytest.param(FAST, "ms", {"given": True}, id="the user said so"),
        pytest.param(FAST[:19], "ms", {}, id="too few to tell"),
        pytest.param([0.0] * 50, "ms", {}, id="all at once"),
        pytest.param(FAST, "s", {}, id="nothing is coarser"),
        pytest.param(SLOW, "ms", {}, id="milliseconds may be slow"),
        pytest.param([float(i) for i in range(100)], "s", {}, id="one a second"),
        pytest.param(FAST, "date", {}, id="dates have no unit"),
    ],
)
def test_what_can_be_meant_is_not(times_s: list[float], unit: str, more: dict[str, Any]) -> None:
    assert asked(times_s, unit, **more) is None


def test_only_formats_with_a_convention_are_doubted() -> None:
    assert question(reading(FAST, "ms"), frozenset({"azure"})) is None


def test_a_number_that_is_a_date_in_another_unit_is_asked_about() -> None:
    text = asked([0.0, 1.0], "s", start_s=1.7e12)
    assert text is not None
    assert "dates if they are milliseconds" in text
    assert asked([0.0, 1.0], "s", start_s=1.7e9) is None
    with pytest.raises(ConfigError, match=r"t\.jsonl: .*--unit ms"):
        checked(Path("t.jsonl"), reading([0.0, 1.0], "s", start_s=1.7e12), frozenset({"mooncake"}))


@pytest.mark.parametrize(
    ("at_s", "is_date"), [(0, False), (946_684_799, False), (946_684_800, True), (4_102_444_800, False)]
)
def test_seconds_of_this_century_are_dates(at_s: float, is_date: bool) -> None:
    assert is_epoch(at_s) is is_date


# --- summary --------------------------------------------------------------------------------------------------------


@given(st.floats(0.001, 1e8), st.floats(0.001, 1e8))
def test_spans_keep_their_order_and_their_size(one_s: float, two_s: float) -> None:
    units = {"s": 1, "min": 60, "h": 3600, "days": 86_400}

    def shown_s(span_s: float) -> float:
        digits, unit = span_text(span_s).split()
        return float(digits) * units[unit]

    low_s, high_s = sorted((one_s, two_s))
    assert shown_s(low_s) <= shown_s(high_s) * 1.01
    assert shown_s(low_s) == pytest.approx(low_s, rel=0.01)


@given(st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=8))
def test_sharing_is_that_of_leading_units_seen_before(prompts: list[list[int]]) -> None:
    """Against a plain account of whole prefixes: a unit's id stands for all before it, as hashes of blocks do."""
    chains = [[tuple(prompt[: i + 1]) for i in range(len(prompt))] for prompt in prompts]
    ids = {chain: index for index, chain in enumerate({each for chain in chains for each in chain})}
    units = [ids[each] for chain in chains for each in chain]
    count = len(prompts)
    isl = np.array([16 * len(prompt) + 1 for prompt in prompts], np.int64)
    starts = np.cumsum([0, *map(len, prompts)])
    workload = Workload(
        np.arange(count, dtype=float), isl, np.zeros(count, np.int64), np.ones(count, np.int64),
        unit_starts=starts, units=np.array(units, np.int64), unit_tokens=16,
    )  # fmt: skip
    seen: set[tuple[int, ...]] = set()
    hits = 0
    for chain in chains:
        hits += sum(each in seen for each in chain)
        seen.update(chain)
    share = shared_share(workload)
    assert share == (None if not units else pytest.approx(hits * 16 / isl.sum()))


# --- what a user says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unit": "h"}, "--unit h: expected one of auto, s, ms, us, ns"),
        ({"unit": "s", "chars_per_token": 0.0}, "chars_per_token=0.0: expected 0.1 to 100"),
        ({"unit": "s", "chars_per_token": 1e9}, "expected 0.1 to 100"),
        ({"unit": "s", "block_tokens": 0}, "block_tokens=0: expected 1 to"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        trace_options(**options)
    assert words in str(refused.value)


@given(st.text(max_size=200), st.floats(0.1, 100))
def test_an_estimate_counts_every_text_but_the_empty_one(text: str, per_token: float) -> None:
    counter = counter_for(Path("t"), TraceOptions(chars_per_token=per_token))
    count = counter.count(text)
    assert (count == 0) == (not text)
    assert count <= max(1, len(text) / per_token + 0.5)
    assert counter.count(text + text) >= count


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"cannot load the tokenizer {tmp_path}/tokenizer\.json"):
        counter_for(Path("t"), TraceOptions(tokenizer=tmp_path))
