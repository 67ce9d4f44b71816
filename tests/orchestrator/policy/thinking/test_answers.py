"""Answers in texts: where they stand, and when two are the same."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from orchestrator.policy.thinking.answers import Extractor, normalised


@pytest.mark.parametrize(
    ("fields", "text", "answer"),
    [
        ({}, " The Answer. ", "the answer"),
        ({}, "  ", None),
        ({"regex": r"answer: (\w+)"}, "answer: A ... answer: B", "b"),
        ({"regex": r"\d+"}, "1 then 07", "7"),
        ({"regex": r"\d+"}, "none", None),
        ({"boxed": True}, r"\boxed{\frac{1}{2}} and \boxed{\frac{3}{4}}", r"\frac{3}{4}"),
        ({"boxed": True}, r"\boxed{1", None),
        ({"last_number": True}, "about 3 or -1,042.50 in all", "-1042.5"),
        ({"last_number": True}, "none", None),
        ({"json_path": "$.steps[1].value"}, '{"steps": [0, {"value": 4.0}]}', "4"),
        ({"json_path": "$"}, '{"b": 1, "a": 2}', '{"a": 2, "b": 1}'),
        ({"json_path": "$.x"}, "{}", None),
        ({"json_path": "$.x"}, "not json", None),
        ({"json_path": "$.x[0]"}, '{"x": 1}', None),
    ],
)
def test_the_answer_of_a_text(fields: dict[str, object], text: str, answer: str | None) -> None:
    assert Extractor(**fields)(text) == answer  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": "("},
        {"regex": "a" * 513},
        {"regex": "(((a{99}){99}){99}){99}"},
        {"regex": "(a{ 99 }){0,99}"},
        {"json_path": "x"},
        {"json_path": "$..x"},
        {"boxed": True, "regex": "x"},
    ],
)
def test_what_cannot_be_read_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        Extractor(**fields)  # type: ignore[arg-type]


def test_a_pattern_that_backtracks_for_ever_finds_nothing_soon() -> None:
    began_s = time.process_time()
    assert Extractor(regex=r"^(a|aa)+(b|c)*d$")("a" * 5000) is None
    assert time.process_time() - began_s < 5  # for ever, without its limit


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_number_is_the_same_however_it_is_written(value: object) -> None:
    written = {normalised(text) for text in (f"{value}", f"{value:,}", f"{value:e}", f" ${value}. ", f"{value}000")}
    assert len(written) == 1


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_long_numbers_stay_apart() -> None:
    assert normalised("1" * 40 + "2") != normalised("1" * 40 + "3")
