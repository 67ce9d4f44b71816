"""Every strategy at work on scripted branches in virtual time: caps, budgets and accounts hold whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.thinking.budget import TICK_S, Budget, Lengths, Meters, least
from orchestrator.policy.thinking.run import Answer, Cancel, Close, CutOff, Start, ThinkingRun, ends, tokens
from orchestrator.policy.thinking.state import End, Settings, Trace
from orchestrator.policy.thinking.strategies import STRATEGIES

ITL_S, START_S, USD_PER_S = 0.01, 0.05, 0.001
LENGTHS = Lengths(limit_tokens=1000, expected_tokens=120, closing_tokens=20)


@dataclass
class Branch:
    """What a trace will be, if nothing stops it."""

    length_tokens: int
    answer: str | None = "x"
    logprob: float = -0.1
    fails: bool = False
    limit_tokens: int = 0
    began_s: float = 0.0
    closes_at: int | None = None

    def tokens_at(self, now_s: float) -> int:
        return max(0, int((now_s - self.began_s - START_S) / ITL_S + 1e-6))

    @property
    def end_tokens(self) -> int:
        last = self.length_tokens if self.closes_at is None else min(self.length_tokens, self.closes_at)
        return min(last, self.limit_tokens)


@dataclass
class World:
    """Runs a `ThinkingRun` over branches that take their time and cost their share."""

    run: ThinkingRun
    script: list[Branch]
    may_start: int = 1 << 20
    now_s: float = 0.0
    usd: float = 0.0
    live: dict[int, Branch] = field(default_factory=dict)
    made: dict[int, int] = field(default_factory=dict)
    started: list[int] = field(default_factory=list)
    most_at_once: int = 0
    answer: Answer | None = None

    def trace(self, number: int, end: End | None) -> Trace:
        branch = self.live[number]
        made = min(branch.tokens_at(self.now_s), branch.end_tokens)
        answer = branch.answer if end is End.FINISHED else None
        return Trace(number, made, end, answer, branch.logprob, branch.logprob)

    def end(self, number: int, end: End) -> Trace:
        trace = self.trace(number, end)
        self.made[number] = trace.tokens
        del self.live[number]
        return trace

    def meters(self) -> Meters:
        return Meters(self.now_s, self.usd, ITL_S, USD_PER_S, START_S, START_S * USD_PER_S, self.may_start)

    def advance(self, ended: list[Trace]) -> None:
        """Do what is answered, until nothing more is."""
        while True:
            running = [self.trace(number, None) for number in self.live]
            actions = self.run.advance(self.meters(), ended=ended, running=running)
            ended = []
            for action in actions:
                match action:
                    case Start():
                        branch = self.script[action.branch]
                        branch.limit_tokens, branch.began_s = action.limit_tokens, self.now_s
                        self.live[action.branch] = branch
                        self.started.append(action.branch)
                        self.most_at_once = max(self.most_at_once, len(self.live))
                        assert action.of is None or action.of in self.made
                    case Cancel():
                        ended.append(self.end(action.branch, End.CANCELLED))
                    case Close():
                        branch = self.live[action.branch]
                        if branch.closes_at is None:
                            branch.closes_at = branch.tokens_at(self.now_s) + LENGTHS.closing_tokens
                    case CutOff():
                        ended.append(self.end(action.branch, End.CUT))
                    case Answer():
                        assert self.answer is None
                        self.answer = action
            if not ended:
                return

    def go(self) -> None:
        """To the end."""
        self.advance([])
        tick_s = TICK_S
        while not self.run.over:
            due = {n: b.began_s + START_S + b.end_tokens * ITL_S for n, b in self.live.items()}
            assert due or self.answer is not None, "nothing runs and nothing is answered"
            next_s = min([*due.values(), tick_s])
            self.usd += len(self.live) * USD_PER_S * (next_s - self.now_s)
            self.now_s = next_s
            if next_s == tick_s:
                tick_s += TICK_S
            ended = []
            for number, at_s in due.items():
                if at_s <= next_s:
                    branch = self.live[number]
                    whole = branch.end_tokens == branch.length_tokens
                    ended.append(self.end(number, End.FAILED if branch.fails else End.FINISHED if whole else End.CUT))
            self.advance(ended)


def world(strategy: str, branches: list[Branch], budget: Budget | None = None, **fields: object) -> World:
    made = STRATEGIES[strategy](Settings(**fields))  # type: ignore[arg-type]
    run = ThinkingRun(made, budget or Budget(), LENGTHS)
    filled = [*branches, *(Branch(100) for _ in range(made.cap))]
    return World(run, filled)


BRANCHES = st.lists(
    st.builds(
        Branch,
        st.integers(1, 1500),
        st.sampled_from(["x", "y", "z", None]),
        st.floats(-3, 0),
        st.booleans() | st.just(False) | st.just(False),
    ),
    max_size=16,
)
BUDGETS = st.builds(
    Budget,
    st.none() | st.integers(40, 4000),
    st.none() | st.floats(0.9, 20),
    st.none() | st.floats(0.002, 0.05),
)


@settings(max_examples=400)
@given(
    st.sampled_from(sorted(STRATEGIES)), BRANCHES, BUDGETS, st.integers(1, 16), st.floats(0.6, 0.99), st.integers(1, 20)
)
def test_caps_budgets_and_accounts_hold(
    strategy: str, branches: list[Branch], budget: Budget, most: int, agree: float, may_start: int
) -> None:
    here = world(strategy, branches, budget, most=most, agree=agree)
    here.may_start = may_start
    here.go()
    run = here.run
    # Every branch that was started ended exactly once, and there were no more than the cap.
    assert sorted(here.started) == sorted(here.made) == list(range(run.started))
    assert run.started <= run.strategy.cap
    assert sum(ends(run).values()) == run.started
    assert sum(tokens(run)) == sum(here.made.values())
    # Budgets.
    assert budget.tokens is None or sum(here.made.values()) <= budget.tokens
    assert budget.seconds is None or here.now_s <= budget.seconds * 1.05 + 1e-9
    assert budget.usd is None or here.usd <= budget.usd * 1.01 + 1e-9
    # There is an answer wherever a branch made its tokens, and it is of one that did.
    assert here.answer is not None
    choice = here.answer.choice
    able = {trace.branch for trace in run.ended if trace.end in (End.FINISHED, End.CUT)}
    assert (choice is None) == (not able) or strategy == "refine"
    assert choice is None or choice.branch in able


def test_a_vote_costs_what_it_needs() -> None:
    here = world("vote", [Branch(100) for _ in range(16)], most=16, agree=0.95)
    here.go()
    assert here.run.started == 4
    assert here.run.choice is not None
    assert here.run.choice.reason == "agreed"
    assert tokens(here.run) == (100, 300)


def test_losers_are_cancelled_when_the_answer_is_known() -> None:
    slow = [Branch(100), Branch(100), Branch(100), Branch(900)]
    here = world("vote", slow, most=4, least=4, agree=0.9)
    here.go()
    assert ends(here.run) == {"finished": 3, "cancelled": 1}
    assert here.now_s == pytest.approx(START_S + 1.0)


def test_seconds_close_the_trace_in_time_for_its_answer() -> None:
    here = world("single", [Branch(900)], Budget(seconds=3.0))
    here.go()
    assert here.run.choice is not None
    assert here.run.choice.reason == "seconds"
    assert 2.0 < here.now_s <= 3.0


def test_seconds_with_votes_in_hand_close_nothing() -> None:
    here = world("vote", [Branch(100), *(Branch(900) for _ in range(3))], Budget(seconds=3.0), most=4)
    here.go()
    assert here.run.choice is not None
    assert (here.run.choice.branch, here.run.choice.reason) == (0, "seconds")
    assert ends(here.run) == {"finished": 1, "cancelled": 3}


def test_dollars_stop_it_too() -> None:
    here = world("single", [Branch(900)], Budget(usd=0.004))
    here.go()
    assert here.run.choice is not None
    assert here.run.choice.reason == "usd"
    assert 0.003 < here.usd <= 0.004


def test_tokens_become_limits_and_fewer_branches() -> None:
    here = world("vote", [Branch(100) for _ in range(8)], Budget(tokens=260), most=8)
    here.go()
    assert here.most_at_once == 2
    assert sum(tokens(here.run)) <= 260


def test_under_load_a_wave_shrinks_and_one_branch_always_runs() -> None:
    here = world("vote", [Branch(100) for _ in range(8)], most=8)
    here.may_start = 0
    here.go()
    assert here.most_at_once == 1
    assert here.run.choice is not None
    assert here.run.choice.reason == "agreed"


@given(BUDGETS)
def test_the_least_that_would_do_does(budget: Budget) -> None:
    rates = Meters(0.0, 0.0, ITL_S, USD_PER_S, START_S, START_S * USD_PER_S)
    need = least(budget, rates, LENGTHS)
    enough = Budget(
        need.tokens or budget.tokens,
        need.seconds or budget.seconds,
        need.usd or budget.usd,
    )
    assert least(enough, rates, LENGTHS) == Budget()
    here = world("single", [Branch(900)], enough)
    here.go()
    assert here.run.choice is not None
