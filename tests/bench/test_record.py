import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.record import Message, RequestRecord, settle
from bench.report import Slo, spread, summarise


def record(**changes: object) -> RequestRecord:
    made = RequestRecord(0, 10, 4)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5)), min_size=1, max_size=50))
def test_gaps_number_tokens_minus_one_and_sum_to_the_stream(parts: list[tuple[float, int]]) -> None:
    at, messages = 0.0, []
    for gap, tokens in parts:
        at += gap
        messages.append(Message(at, True, False, tokens))
    made = record()
    settle(made, messages, None, exact=False)
    gaps = made.gaps_s()
    assert made.output_tokens == sum(tokens for _, tokens in parts)
    assert len(gaps) == made.output_tokens - 1
    assert made.e2e_s is not None and made.ttft_s is not None
    assert sum(gaps) == pytest.approx(made.e2e_s - made.ttft_s)
    if made.output_tokens > 1:
        assert made.tpot_s == pytest.approx(sum(gaps) / len(gaps))


def test_usage_says_which_silent_messages_were_tokens() -> None:
    # A role, a token whose text is still held back, two texts, and a closing message.
    messages = [Message(0.1 * number, number in (2, 3), False) for number in range(5)]
    made = record()
    settle(made, messages, 3, exact=False)
    assert made.output_tokens == 3
    assert made.message_s == pytest.approx([0.0, 0.2, 0.3])
    settle(made, messages, None, exact=False)
    assert made.output_tokens == 2


def test_several_tokens_in_one_message_by_usage() -> None:
    made = record()
    settle(made, [Message(0.5, True, True), Message(0.7, True, True)], 4, exact=True)
    assert made.gaps_s() == pytest.approx([0.2, 0.0, 0.0])
    assert made.first_answer_s == 0.5
    assert made.ok


def test_missing_tokens_are_a_failure_only_when_the_length_was_asked() -> None:
    made = record()
    settle(made, [Message(0.5, True, False)], 1, exact=False)
    assert made.ok
    settle(made, [Message(0.5, True, False)], 1, exact=True)
    assert (made.failure, made.detail) == ("short", "1 of 4 tokens")
    made = record()
    settle(made, [], None, exact=False)
    assert made.failure == "empty"
    made = record(failure="broken")
    settle(made, [Message(0.5, True, False)], None, exact=True)
    assert made.failure == "broken"


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_spread_is_ordered(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    ordered = [found[key] for key in ("min", "p50", "p90", "p95", "p99", "max")]
    assert all(low <= high * (1 + 1e-12) for low, high in itertools.pairwise(ordered))


def test_the_summary_counts_what_was_sent() -> None:
    good = [record(message_s=[0.1, 0.2, 0.3, 0.4], output_tokens=4) for _ in range(3)]
    slow = record(message_s=[1.0, 1.1, 1.2, 1.3], output_tokens=4)
    bad = [record(failure="http 429", detail="busy"), record(failure="timeout")]
    found = summarise([*good, slow, *bad], duration_s=2.0, slo=Slo(ttft_s=0.5), server_cpu_s=0.8, client_cpu_s=0.016)
    assert (found["requests"], found["completed"], found["failed"]) == (6, 4, 2)
    assert found["failures"] == {"http 429": 1, "timeout": 1}
    assert found["failure_details"]["http 429"] == "busy"
    assert found["output_tokens_per_s"] == 8
    assert found["slo_met"] == 3
    assert found["goodput_requests_per_s"] == 1.5
    assert found["itl_s"]["p50"] == pytest.approx(0.1)
    assert found["server_cpu_s_per_1k_tokens"] == pytest.approx(50)
    assert found["client_cpu_us_per_token"] == pytest.approx(1000)
    assert found["ttfat_s"] is None


def test_an_objective_that_cannot_be_seen_is_not_met() -> None:
    made = record(message_s=[0.1], output_tokens=1)
    assert Slo(itl_s=0.01).met_by(made)
    assert not Slo(ttfat_s=10).met_by(made)
    assert Slo().met_by(made)


def test_an_empty_run_has_a_summary() -> None:
    found = summarise([], duration_s=0.0, slo=Slo(ttft_s=1), server_cpu_s=None, client_cpu_s=0.0)
    assert found["output_tokens_per_s"] == 0
    assert found["goodput_requests_per_s"] is None
