from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engine.reasoning_end import ends_within
from orchestrator.policy.closing import OutputGate, Turn, reasoning_limit
from orchestrator.policy.phases import ReasoningMarkers
from orchestrator.request.output_text import LineEnds
from tests.fakes.tokenizer import END_THINK, MARKERS, THINK, byte_tokenizer

LONG = ReasoningMarkers((60, 60), (62, 62, 63))
CALLS = ReasoningMarkers((THINK,), (END_THINK,), ((66,), (62, 63)))
"""Two tool calls end its reasoning, too."""
NEWLINE = 10
ids_of = st.lists(st.sampled_from([65, 66, NEWLINE, 60, 62, 63, THINK, END_THINK]), max_size=30)
markers_of = st.sampled_from([MARKERS, LONG, CALLS])


def gate(markers: ReasoningMarkers = MARKERS, *, opens: bool = True, **changes: object) -> OutputGate:
    prompt = [72, *markers.start_ids] if opens else [72]
    return OutputGate(markers, prompt, ends_line=lambda token: token == NEWLINE, **changes)  # type: ignore[arg-type]


def fed(made: OutputGate, ids: list[int], cuts: list[int]) -> tuple[list[int], Turn | None]:
    """What goes into the ledger of a leg that says these tokens, and its turn."""
    ledger: list[int] = []
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    for start, end in pairwise(edges):
        taken, turn = made.take(ids[start:end], ends=end == len(ids))
        ledger += taken
        if turn is not None:
            return ledger, turn
    return ledger, None


# --- how much a request may think -----------------------------------------------------------------------------------


@given(st.none() | st.integers(0, 3000), st.integers(1, 3000), st.integers(1, 200), st.integers(0, 40), markers_of)
def test_trace_and_marker_leave_tokens_for_the_answer(
    budget: int | None, most: int, reserve: int, window: int, markers: ReasoningMarkers
) -> None:
    limit = reasoning_limit(
        budget, max_tokens=most, answer_reserve_tokens=reserve, window_tokens=window, markers=markers
    )
    assert 0 <= limit <= (most if budget is None else budget)
    assert limit == 0 or limit >= window
    if limit:
        assert most - limit - len(markers.end_ids) >= min(reserve, most // 2)


@given(
    ids_of, st.lists(st.integers(1, 3)), markers_of, st.none() | st.integers(0, 12), st.integers(0, 8), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_what_passes_is_what_would_be_taken(
    ids: list[int],
    widths: list[int],
    markers: ReasoningMarkers,
    limit: int | None,
    window: int,
    opens: bool,
    grammar: bool,
) -> None:
    looked, quick = (
        gate(markers, opens=opens, limit_tokens=limit, window_tokens=window, grammar=grammar) for _ in range(2)
    )
    for width in [*widths, *[1] * len(ids)]:
        part, ids = ids[:width], ids[width:]
        if not part:
            return
        expected = looked.take(part)
        found = (tuple(part), None) if quick.passes(part) else quick.take(part)
        assert found == expected
        if expected[1] is not None:
            return
        assert (quick.reasoning_tokens, quick.awaits_answer) == (looked.reasoning_tokens, looked.awaits_answer)


# --- closing --------------------------------------------------------------------------------------------------------


@given(
    ids_of, st.lists(st.integers(0, 100), max_size=6), markers_of, st.integers(0, 12), st.integers(0, 8), st.booleans()
)
def test_how_tokens_come_together_does_not_show(
    ids: list[int], cuts: list[int], markers: ReasoningMarkers, limit: int, window: int, opens: bool
) -> None:
    settings = {"opens": opens, "limit_tokens": limit, "window_tokens": window}
    assert fed(gate(markers, **settings), ids, cuts) == fed(gate(markers, **settings), ids, [])  # type: ignore[arg-type]


@given(ids_of, markers_of, st.integers(0, 12), st.integers(0, 8))
def test_a_trace_never_exceeds_its_limit_by_more_than_the_marker(
    ids: list[int], markers: ReasoningMarkers, limit: int, window: int
) -> None:
    made = gate(markers, limit_tokens=limit, window_tokens=window)
    ledger, turn = fed(made, ids, [])
    assert ledger == ids[: len(ledger)]
    if turn is None:
        assert ledger == ids
        assert not made.closed
    else:
        assert turn == Turn(markers.end_ids, closes=True)
        assert made.closed
        assert not made.awaits_answer
        assert len(ledger) >= limit - window
    # A marker of several tokens that is begun in vain may put as many on top before it is closed.
    assert made.reasoning_tokens <= limit + 2 * len(markers.end_ids) - 1
    assert made.take([65, THINK, 66], ends=True)[1] is None or turn is None


def test_the_model_may_close_at_the_limit_by_itself() -> None:
    made = gate(limit_tokens=2)
    assert made.take([65, 66, END_THINK, 67]) == ((65, 66, END_THINK, 67), None)
    assert not made.closed
    assert made.answer_began


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([65] * 30, 20),
        ([*[65] * 13, NEWLINE, *[65] * 9], 14),
        ([*[65] * 11, NEWLINE, *[65] * 9], 20),  # eight tokens are left, which is the window
        ([*[65] * 19, NEWLINE, *[65] * 9], 20),
        ([*[65] * 13, NEWLINE, END_THINK, *[65] * 9], 24),
    ],
)
def test_a_trace_is_closed_at_the_end_of_a_line_near_its_limit(ids: list[int], kept: int) -> None:
    assert len(gate(limit_tokens=20, window_tokens=8).take(ids)[0]) == kept


def test_a_resumed_trace_goes_on_where_it_was() -> None:
    made = gate(limit_tokens=3)
    made.push([65, 66, 67])
    assert made.take([68]) == ((), Turn((END_THINK,), closes=True))


def test_a_trace_that_the_model_opens_is_counted_too() -> None:
    made = gate(opens=False, limit_tokens=2)
    assert made.take([THINK, 65, 66]) == ((THINK, 65), Turn((END_THINK,), closes=True))


def test_a_model_that_opens_it_again_against_a_budget_of_none_is_closed_at_once() -> None:
    made = gate(opens=False, limit_tokens=0, closed=True)
    assert made.take([THINK, 65]) == ((THINK,), Turn((END_THINK,), closes=True))
    assert made.take([THINK, 65]) == ((THINK, 65), None)


def test_a_model_without_markers_is_let_be() -> None:
    made = OutputGate(None, [72], grammar=True)
    assert made.take([65, END_THINK]) == ((65, END_THINK), None)
    assert made.answer_began
    assert not made.awaits_answer


# --- where a grammar begins -----------------------------------------------------------------------------------------


@given(ids_of.filter(bool), st.lists(st.integers(0, 100), max_size=6), markers_of)
def test_an_undecided_start_is_decided_by_the_start_marker_alone(
    ids: list[int], cuts: list[int], markers: ReasoningMarkers
) -> None:
    made = gate(markers, opens=False, grammar=True)
    ledger, turn = fed(made, ids, cuts)
    if tuple(ids[: len(markers.start_ids)]) == markers.start_ids:
        assert (ledger, turn) == (ids, None)
    else:
        assert (ledger, turn) == ([], Turn((), closes=False))
        assert not made.awaits_answer


def test_a_start_marker_cut_off_with_its_leg_is_begun_again() -> None:
    made = gate(LONG, opens=False, grammar=True)
    assert made.take([60]) == ((), None)
    assert made.held_tokens == 1
    assert made.forget_held() == 1
    assert made.take([60, 60, 65]) == ((60, 60, 65), None)


def test_a_closed_prompt_is_no_question() -> None:
    made = gate(opens=False, grammar=True, closed=True)
    assert not made.awaits_answer
    assert made.take([65]) == ((65,), None)


@given(ids_of, st.integers(1, 5), markers_of)
def test_where_a_marker_ends(ids: list[int], last: int, markers: ReasoningMarkers) -> None:
    end = markers.end_ids
    ends = [at for at in range(len(end), len(ids) + 1) if tuple(ids[at - len(end) : at]) == end]
    assert ends_within(ids, last, end) is any(at > len(ids) - last for at in ends)


def test_lines_end_by_the_text_of_a_token() -> None:
    ends_line = LineEnds(byte_tokenizer())
    assert [ends_line(token) for token in (10, 65, 10)] == [True, False, True]
