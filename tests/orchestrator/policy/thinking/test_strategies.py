"""Each strategy by itself: what it starts, when it stops, what it answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from orchestrator.policy.thinking.agreement import Tally, beats, votes_needed
from orchestrator.policy.thinking.state import Choice, End, Fork, Settings, State, Step, Strategy, Trace
from orchestrator.policy.thinking.strategies import STRATEGIES


def make(name: str, **fields: object) -> Strategy:
    return STRATEGIES[name](Settings(**fields))  # type: ignore[arg-type]


def state(*answers: str | None, cap: int = 16, running: int = 0, end: End = End.FINISHED) -> State:
    ended = tuple(Trace(number, 10, end, answer) for number, answer in enumerate(answers))
    return State(cap, cap, tuple(Trace(len(ended) + number) for number in range(running)), ended)


def test_the_strategies_are_those_of_the_folder() -> None:
    assert set(STRATEGIES) == {"single", "vote", "best_of_n", "confident_vote", "refine"}


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_rule_of_agreement_is_a_beta_distributions_tail(leader: int, second: int) -> None:
    steps = 4000
    density = [(at / steps) ** leader * (1 - at / steps) ** second for at in range(steps + 1)]
    assert beats(leader, second) == pytest.approx(sum(density[steps // 2 :]) / sum(density), abs=2e-3)


# --- vote -----------------------------------------------------------------------------------------------------------


def test_a_wave_is_the_least_that_can_agree_and_the_next_one_what_would_settle_it() -> None:
    vote = make("vote", most=16, agree=0.95)
    assert vote.next(state()) == Step(start=4)
    assert vote.next(state(running=4)) == Step(start=0)
    assert vote.next(state("a", running=3)) == Step(start=0)
    assert vote.next(state("a", "b", "a", running=1)) == Step(start=votes_needed(2, 1, 0.95) - 1)
    assert make("vote", most=16, agree=0.9).next(state()) == Step(start=3)
    assert make("vote", most=2).next(state(cap=2)) == Step(start=2)


def test_it_stops_once_the_leader_is_sure_enough() -> None:
    vote = make("vote", most=16, agree=0.95)
    assert vote.next(state("a", "a", "a", running=1)).choice is None
    assert vote.next(state("a", "a", "a", "a")).choice == Choice(0, "agreed", 0.96875)
    assert vote.next(state("b", "a", "a", "a", "a", "a", "a", "a")).choice == Choice(1, "agreed", beats(7, 1))


def test_it_stops_when_the_lead_cannot_be_caught() -> None:
    vote = make("vote", most=5, agree=0.99)
    assert vote.next(state("a", "a", running=1, cap=5)).choice is None
    assert vote.next(state("a", "a", "a", running=2, cap=5)).choice == Choice(0, "decided", 0.9375)


def test_cut_failed_and_unreadable_traces_are_no_votes() -> None:
    vote = make("vote", most=8, agree=0.9)
    for end in (End.CUT, End.FAILED, End.CANCELLED):
        assert vote.next(state("a", "a", "a", "a", cap=8, end=end)).choice is None
    assert vote.next(state(None, None, None, None, cap=8)).choice is None
    assert vote.settle(state(None, None)) == Choice(0, "no_votes", 0.0)
    assert vote.settle(state("a", end=End.CUT)) is None


def test_a_tie_goes_to_the_answer_that_came_first_and_says_how_sure_that_is() -> None:
    assert make("vote", most=4).settle(state("b", "a", "a", "b")) == Choice(0, "samples", 0.5)


def test_weights_decide_where_they_are_asked_for() -> None:
    traces = (
        Trace(0, 9, End.FINISHED, "a", -3.0),
        Trace(1, 9, End.FINISHED, "a", -3.0),
        Trace(2, 9, End.FINISHED, "b"),
    )
    three = State(3, 0, (), traces)
    assert make("vote", most=3).settle(three).branch == 0  # type: ignore[union-attr]
    weighted = make("vote", most=3, options={"weight": "confidence"})
    assert weighted.scores
    assert weighted.settle(three).branch == 2  # type: ignore[union-attr]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(0, 12), st.data())
def test_what_is_decided_no_later_vote_changes(answers: list[str], to_come: int, data: st.DataObject) -> None:
    traces = [Trace(number, 1, End.FINISHED, answer) for number, answer in enumerate(answers)]
    tally = Tally.of(traces)
    if tally.decided(to_come):
        rest = data.draw(st.lists(st.sampled_from("abcd"), max_size=to_come))
        more = [Trace(100 + number, 1, End.FINISHED, answer) for number, answer in enumerate(rest)]
        assert Tally.of([*traces, *more]).leader == tally.leader


@given(st.permutations(list("aaaabbbccd")), st.integers(1, 10))
def test_a_vote_that_stops_by_decision_gives_the_majority_of_all(order: list[str], most: int) -> None:
    vote = make("vote", most=most, agree=0.999999)
    for count in range(most + 1):
        seen = state(*order[:count], cap=most)
        choice = vote.next(seen).choice or (vote.settle(seen) if count == most else None)
        if choice is not None:
            assert order[choice.branch] == Tally.of(state(*order[:most], cap=most).votes).leader
            return
    raise AssertionError("no answer")


# --- by confidence ----------------------------------------------------------------------------------------------------


def scored(*scores: float, running: tuple[float, ...] = (), cap: int = 8) -> State:
    ended = tuple(Trace(n, 9, End.FINISHED, "x", score, score) for n, score in enumerate(scores))
    on = tuple(Trace(len(scores) + n, 5, None, None, score, score) for n, score in enumerate(running))
    return State(cap, cap, on, ended)


def test_best_of_n_waits_for_all_and_takes_the_surest() -> None:
    best = make("best_of_n", most=3)
    assert best.scores
    assert best.next(scored(cap=3)) == Step(start=3)
    assert best.next(scored(-0.5, -0.1, running=(0.0,), cap=3)).choice is None
    choice = best.next(scored(-0.5, -0.1, -0.3, cap=3)).choice
    assert choice == Choice(1, "samples", math.exp(-0.1))


def test_best_of_n_by_the_least_sure_window() -> None:
    lowest = make("best_of_n", most=2, options={"score": "lowest"})
    traces = (Trace(0, 9, End.FINISHED, None, -0.1, -5.0), Trace(1, 9, End.FINISHED, None, -0.2, -0.4))
    assert lowest.next(State(2, 0, (), traces)).choice.branch == 1  # type: ignore[union-attr]


def test_a_confident_vote_runs_its_first_wave_to_the_end_and_cancels_the_unsure_of_later_ones() -> None:
    vote = make("confident_vote", most=8, least=2, agree=1.0)
    assert vote.next(scored()) == Step(start=2)
    assert vote.next(scored(running=(-9.0, -9.0))) == Step(start=0)
    other = (Trace(0, 9, End.FINISHED, "x", -0.2, -0.2), Trace(1, 9, End.FINISHED, "y", -0.8, -0.8))
    running = (Trace(2, 5, None, None, -0.9, -0.9), Trace(3, 5, None, None, -0.7, -0.7))
    assert vote.next(State(8, 8, running, other)) == Step(start=4, cancel=(2,))
    low = make("confident_vote", most=8, least=2, agree=1.0, options={"keep": "low"})
    assert low.next(State(8, 8, running, other)).cancel == (2, 3)


# --- refine, single, options ------------------------------------------------------------------------------------------


def test_refine_goes_from_draft_to_critique_to_revision() -> None:
    refine = make("refine")
    assert refine.next(state(cap=3)) == Step(start=1)
    assert refine.next(state(running=1, cap=3)) == Step()
    assert [type(fork) for fork in refine.next(state("x", cap=3)).forks] == [Fork]
    assert refine.next(state("x", "y", cap=3)).forks[0].of == 1
    assert refine.next(state("x", "y", "z", cap=3)).choice == Choice(2, "revised")
    broken = State(3, 3, (), (Trace(0, 9, End.FINISHED), Trace(1, 3, End.FAILED)))
    assert refine.next(broken).choice == Choice(0, "draft")
    assert refine.next(State(3, 3, (), (Trace(0, 3, End.FAILED),))) == Step()


def test_options_are_known_or_refused() -> None:
    for name, options in (("single", {"x": "1"}), ("vote", {"weight": "odd"}), ("refine", {"keep": "low"})):
        with pytest.raises(InvalidRequest) as refused:
            make(name, options=options)
        assert (refused.value.field or "").startswith("inference_scaling.options")
