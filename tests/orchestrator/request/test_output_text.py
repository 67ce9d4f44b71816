from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.phases import Phase, ReasoningMarkers, open_at_end
from orchestrator.request.output_text import OutputText, StopMatcher
from tests.fakes.tokenizer import END_THINK, MARKERS, THINK, byte_tokenizer

TOKENIZER = byte_tokenizer()
LONG = ReasoningMarkers((60, 60), (62, 62, 63))  # "<<" and ">>?"


def decoded(
    ids: list[int], cuts: list[int], markers: ReasoningMarkers | None, stops: list[str], **options: object
) -> tuple[str, str, list[int], str | None]:
    """Reasoning, answer, tokens and stop of one way of cutting the tokens into pushes."""
    out = OutputText(TOKENIZER, [72, 105], markers, stops=stops, **options)  # type: ignore[arg-type]
    pieces = []
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    for start, end in pairwise(edges):
        pieces += out.push(ids[start:end])
    pieces += out.finish()
    assert out.reasoning_tokens + out.answer_tokens == sum(len(piece.token_ids) for piece in pieces)
    text = {phase: "".join(piece.text for piece in pieces if piece.phase is phase) for phase in Phase}
    tokens = [token for piece in pieces for token in piece.token_ids]
    return text[Phase.REASONING], text[Phase.ANSWER], tokens, out.stop_matched


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from([60, 62, 63, 97, 98, 99, 0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80, THINK, END_THINK]), max_size=24
    ),
    st.lists(st.integers(0, 100), max_size=6),
    st.sampled_from([None, MARKERS, LONG]),
    st.lists(st.sampled_from(["ab", "abc", "é", "c>", "ca"]), max_size=2),
    st.integers(0, 6),
    st.booleans(),
)
def test_the_cuts_between_pushes_do_not_show(
    ids: list[int], cuts: list[int], markers: ReasoningMarkers | None, stops: list[str], least: int, include: bool
) -> None:
    options = {"min_tokens": least, "include_stop": include}
    assert decoded(ids, cuts, markers, stops, **options) == decoded(ids, [], markers, stops, **options)


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="abé😀ñ\n ", min_size=1, max_size=12), st.lists(st.integers(0, 100), max_size=5))
def test_text_whose_characters_span_tokens_comes_out_whole(text: str, cuts: list[int]) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert ids == list(text.encode())
    assert decoded(ids, cuts, None, [])[1] == text


def test_reasoning_and_answer_are_distinguished_and_markers_leave_no_text() -> None:
    ids = [THINK, *b"hm", END_THINK, *b"yes"]
    assert decoded(ids, [], MARKERS, [])[:2] == ("hm", "yes")


def test_a_marker_of_several_tokens_may_be_begun_in_vain() -> None:
    assert decoded(list(b"<<a>>b>>>?c"), [3, 6], LONG, [])[:2] == ("a>>b>", "c")


def test_a_marker_is_never_text_and_the_answer_goes_on_behind_it() -> None:
    ids = [THINK, END_THINK, *b"a", THINK, *b"b", END_THINK, *b"c"]
    assert decoded(ids, [], MARKERS, [])[:2] == ("", "abc")
    assert decoded([*b"a", END_THINK, *b"b", THINK, *b"c"], [], MARKERS, [])[:2] == ("", "abc")
    assert decoded(list(b"<<a>>?b>>?c<<d"), [3, 6], LONG, [])[:2] == ("a", "bcd")


def closed(ids: list[int], within_tokens: int) -> tuple[str, str]:
    """Reasoning and answer where the trace in ``ids`` was closed by us."""
    out = OutputText(TOKENIZER, [72, THINK], MARKERS)
    out.expect_second_end(within_tokens)
    pieces = [piece for token in ids for piece in out.push([token])] + out.finish()
    assert [token for piece in pieces for token in piece.token_ids] == ids
    assert out.reasoning_tokens + out.answer_tokens == len(ids)
    text = {phase: "".join(piece.text for piece in pieces if piece.phase is phase) for phase in Phase}
    return text[Phase.REASONING], text[Phase.ANSWER]


def test_what_a_model_thinks_behind_a_closed_marker_is_reasoning_if_it_closes_it_soon() -> None:
    assert closed([*b"17 + 5", END_THINK, *b" = 22", END_THINK, *b"22"], 5) == ("17 + 5 = 22", "22")
    assert closed([*b"17 + 5", END_THINK, *b" = 22", END_THINK, *b"22"], 4) == ("17 + 5", " = 2222")
    assert closed([*b"17", END_THINK, *b"22"], 5) == ("17", "22")
    assert closed([*b"17", END_THINK, END_THINK, *b"22"], 5) == ("17", "22")
    assert closed([*b"17", END_THINK, *b"answer"], 5) == ("17", "answer")


def test_stop_strings_count_in_the_answer_alone_unless_asked_otherwise() -> None:
    ids = [THINK, *b"so ab", END_THINK, *b"b ab c"]
    assert decoded(ids, [], MARKERS, ["ab"]) == ("so ab", "b ", ids[:-2], "ab")
    assert decoded(ids, [], MARKERS, ["ab"], stop_in_reasoning=True)[:2] == ("so ", "")


def test_a_stop_string_does_not_begin_in_the_reasoning() -> None:
    assert decoded([THINK, *b"xa", END_THINK, *b"bc"], [], MARKERS, ["ab"])[:2] == ("xa", "bc")


def test_the_prompt_may_leave_the_reasoning_open() -> None:
    assert open_at_end([THINK], MARKERS)
    assert not open_at_end([THINK, END_THINK], MARKERS)
    assert not open_at_end([1, 2], MARKERS)
    out = OutputText(TOKENIZER, [72, THINK], MARKERS)
    assert [piece.phase for piece in out.push([*b"a", END_THINK, *b"b"])] == [Phase.REASONING, Phase.ANSWER]


def test_after_a_stop_nothing_more_is_taken() -> None:
    out = OutputText(TOKENIZER, [72], None, stops=["b"])
    assert [piece.text for piece in out.push(list(b"ab"))] == ["a"]
    assert out.stop_matched == "b"
    assert out.push(list(b"cd")) == out.finish() == []


def test_of_two_stops_the_first_in_the_text_wins() -> None:
    assert StopMatcher(["late", "at"], include=False).push("xlate") == ("x", "late")
    assert StopMatcher(["z", "y"], include=True).push("ayz") == ("ay", "y")


@pytest.mark.parametrize("least", [1, 2, 3])
def test_a_stop_before_min_tokens_does_not_count(least: int) -> None:
    text = decoded(list(b"abab"), [], None, ["ab"], min_tokens=least)[1]
    assert text == {1: "", 2: "ab", 3: "ab"}[least]  # what was sent already cannot be part of a stop
