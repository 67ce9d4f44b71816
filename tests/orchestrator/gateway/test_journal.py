"""Traffic and the journal alone: nothing is lost or counted twice, whatever the controller answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton.internal.v1 import registry_pb2
from baton.v1 import cluster_pb2
from baton.v1 import inference_pb2 as pb
from orchestrator.gateway.journal import RequestJournal
from orchestrator.gateway.traffic import Traffic
from tests.fakes.gateway_parts import FakeRun


def summary(answer_tokens: int) -> pb.ChoiceSummary:
    return pb.ChoiceSummary(usage=pb.Usage(prompt_tokens=10, reasoning_tokens=3, answer_tokens=answer_tokens))


@given(st.lists(st.sampled_from(["arrives", "ends", "sends", "heard"]), max_size=40))
def test_every_request_is_in_one_answered_report(steps: list[str]) -> None:
    traffic = Traffic()
    journal = RequestJournal("m", traffic, {})
    came = ended = 0
    sent: registry_pb2.ReportRequestsRequest | None = None
    taken: dict[int, tuple[int, int]] = {}
    for step in [*steps, "sends", "heard", "sends", "heard"]:
        if step == "arrives":
            traffic.arrived(0.0, "a", 10, 1)
            came += 1
        elif step == "ends":
            traffic.finished(ended, "a", summary(4))
            ended += 1
        elif step == "sends":
            report = journal.next_report()
            if sent is not None:
                assert report.sequence == sent.sequence  # what was not answered is sent again
            sent = report
        elif sent is not None:
            taken[sent.sequence] = (len(sent.arrived), len(sent.finished))
            journal.heard(registry_pb2.ReportRequestsResponse())
            sent = None
    assert sum(row[0] for row in taken.values()) == came
    assert sum(row[1] for row in taken.values()) == ended


def test_further_choices_bring_no_prompt() -> None:
    traffic = Traffic()
    traffic.arrived(0.0, "a/high", 100, 3)
    assert [row.isl_tokens for row in traffic.take().arrived] == [100, 0, 0]
    assert not traffic.take().arrived


def test_lengths_by_phase() -> None:
    traffic = Traffic()
    assert traffic.lengths() == []
    for tokens in range(1, 101):
        traffic.finished(tokens, "a", summary(tokens))
    rows = {row.phase: row for row in traffic.lengths()}
    assert (rows["answer"].p50_tokens, rows["answer"].p99_tokens, rows["prompt"].p90_tokens) == (51, 100, 10)


def test_in_flight_is_what_runs_now_even_in_a_report_sent_again() -> None:
    runs = {run.number: run for run in (FakeRun(), FakeRun().decodes("decode-0", 5))}
    journal = RequestJournal("m", Traffic(), runs)
    rows = {row.request: row for row in journal.next_report().in_flight}
    assert [(row.phase, row.decode_id, row.generated_tokens) for row in rows.values()] == [
        ("queued", "", 0),
        ("decoding", "decode-0", 5),
    ]
    runs.popitem()
    assert len(journal.next_report().in_flight) == 1


def test_budgets_shrink_only_by_a_fresh_answer() -> None:
    journal = RequestJournal("m", Traffic(), {})
    assert journal.severity == 0
    journal.heard(registry_pb2.ReportRequestsResponse(scaling=cluster_pb2.Scaling(thinking_severity=0.5)))
    assert journal.severity == 0.5
    journal._heard_s -= 61
    assert journal.severity == 0
