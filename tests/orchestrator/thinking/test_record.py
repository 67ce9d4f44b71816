"""What a branch says, kept in few messages, and how sure the model was of it."""

from __future__ import annotations

import pytest

from baton.v1 import inference_pb2 as pb
from orchestrator.policy.thinking.answers import Extractor
from orchestrator.policy.thinking.state import End
from orchestrator.thinking.record import MERGED_CHARS, WINDOW_TOKENS, TraceRecord


def say(record: TraceRecord, text: str, *, answer: bool = True, logprob: float = -0.5, end: str = "") -> None:
    phase = pb.PHASE_ANSWER if answer else pb.PHASE_REASONING
    row = pb.TokenLogprobs(chosen=pb.Logprob(token_id=7, logprob=logprob))
    delta = pb.Delta(phase=phase, text=text, token_ids=[7], logprobs=[row])
    if end:
        delta.finish_reason = pb.FinishReason.Value(f"FINISH_REASON_{end}")
    record.take(pb.GenerateResponse(delta=delta))


@pytest.mark.parametrize("keeps", [True, False])
def test_deltas_of_a_phase_become_one_and_nothing_is_lost(keeps: bool) -> None:
    record = TraceRecord(3, Extractor(last_number=True), keeps_logprobs=keeps)
    record.take(pb.GenerateResponse(first_token=pb.FirstToken(ttft_s=0.1)))
    for _ in range(1000):
        say(record, "step ", answer=False)
    for char in "it is 4":
        say(record, char)
    say(record, "2", end="STOP")
    deltas = [message.delta for message in record.messages if message.HasField("delta")]
    assert len(deltas) <= 5 * 1000 / MERGED_CHARS + 3
    assert "".join(delta.text for delta in deltas) == "step " * 1000 + "it is 42"
    assert sum(len(delta.token_ids) for delta in deltas) == 1008
    assert sum(len(delta.logprobs) for delta in deltas) == (1008 if keeps else 0)
    assert record.end() is End.FINISHED
    assert record.trace(1008, record.end()).answer == "42"


def test_the_least_sure_window_is_found_wherever_it_is() -> None:
    record = TraceRecord(0, None)
    for at in range(4 * WINDOW_TOKENS):
        say(record, "x", logprob=-3.0 if WINDOW_TOKENS <= at < 2 * WINDOW_TOKENS else -0.1)
    trace = record.trace(4 * WINDOW_TOKENS)
    assert trace.lowest_logprob == pytest.approx(-3.0)
    assert trace.mean_logprob == pytest.approx((-3.0 + 3 * -0.1) / 4)
    assert trace.answer is None


def test_a_closed_or_limited_trace_is_cut() -> None:
    limited = TraceRecord(0, Extractor())
    say(limited, "so", end="LENGTH")
    assert limited.end() is End.CUT
    assert limited.trace(1, limited.end()).answer is None
    closed = TraceRecord(0, Extractor())
    last = pb.Delta(phase=pb.PHASE_ANSWER, text="4", finish_reason=pb.FINISH_REASON_STOP, reasoning_closed=True)
    closed.take(pb.GenerateResponse(delta=last))
    assert closed.end() is End.CUT


def test_short_traces_are_scored_by_all_of_their_tokens() -> None:
    record = TraceRecord(0, None)
    say(record, "x", logprob=-0.2)
    say(record, "y", logprob=-0.4)
    assert record.trace(2).lowest_logprob == pytest.approx(-0.3)
