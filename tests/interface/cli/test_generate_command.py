"""`baton generate` and `baton chat`, against a server on loopback with a scripted backend."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from baton.v1 import inference_pb2 as pb
from cluster.errors import DeadlineExceeded, InvalidRequest, RequestRejected
from interface.cli import generate_command
from interface.cli import main as cli
from interface.client.completion import Choice, Completion
from tests.fakes.backend import FakeBackend, Stall, admitted, delta, finished, reply, script

Served = tuple[FakeBackend, str]


def baton(served: Served, *arguments: str) -> None:
    command, *rest = arguments
    cli.app([command, "--endpoint", served[1], *rest], standalone_mode=False)


def text_of(draw: Any, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(draw)
    return console.export_text()


def a_completion(**summary: Any) -> Completion:
    return Completion(
        choices=[Choice(text="yes", summary=pb.ChoiceSummary(**summary))],
        usage=pb.Usage(prompt_tokens=12, cached_tokens=4, answer_tokens=3),
        cost_usd=0.5,
    )


# --- generate -------------------------------------------------------------------------------------------------------


def test_an_answer_is_streamed_between_question_and_figures(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served[0].script = reply(("Hel", "lo"), ("let me ", "think"))
    baton(served, "generate", "Why?")
    out = capsys.readouterr().out
    parts = ["> Why?", "reasoning", "let me think", "answer", "Hello", "what it took", "prefill-0 → decode-0"]
    places = [out.index(part) for part in parts]
    assert places == sorted(places), out


def test_an_answer_without_thinking_has_no_rules(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    baton(served, "generate", "Hi")
    out = capsys.readouterr().out
    assert "Hello" in out
    assert "──" not in out.split("what it took")[0]
    assert "TTFAT" not in out


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/nothing]", ":smile:", "a [red", "\\[", "1234 'x' 0.5"])
def test_text_is_printed_as_it_came(served: Served, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Neither the prompt nor the answer is markup of the terminal's."""
    served[0].script = reply((text,))
    baton(served, "generate", text)
    out = capsys.readouterr().out
    assert out.count(text) == 2


def test_json_is_all_that_is_printed(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served[0].script = reply(("Hel", "lo"), ("hm",), "LENGTH")
    baton(served, "generate", "Hi", "--json")
    tree = json.loads(capsys.readouterr().out)
    assert tree["text"] == "Hello"
    assert tree["reasoning"] == "hm"
    assert tree["token_ids"] == [100, 101, 102]
    assert tree["finish_reason"] == "FINISH_REASON_LENGTH"
    assert tree["usage"]["reasoning_tokens"] == 1
    assert tree["usage"]["answer_tokens"] == 2
    assert tree["workers"] == {"prefill": "prefill-0", "decode": "decode-0"}
    assert tree["handoff"]["transport"] == "tcp"
    assert tree["timings"]["queue_s"] == 0  # a figure of zero is present, too
    assert tree["cost_usd"] == 0.25


def a_vote() -> list[pb.GenerateResponse]:
    branches = [
        pb.BranchProgress(branch=0, state=pb.BRANCH_STATE_FINISHED, tokens=40, answer="42"),
        pb.BranchProgress(branch=1, state=pb.BRANCH_STATE_RUNNING, tokens=20),
    ]
    running = pb.Progress(votes={"42": 1}, branches=branches, tokens=60, seconds=1.5, cost_usd=0.001)
    account = pb.InferenceScalingReport(
        strategy="vote", stop_reason="agreed", votes={"42": 4}, confidence=0.96875,
        branches=pb.BranchCounts(started=5, finished=4, cancelled=1), tokens=pb.BranchTokens(winner=40, losers=130),
    )  # fmt: skip
    end = finished()
    end.finished.inference_scaling.CopyFrom(account)
    return [admitted(), pb.GenerateResponse(progress=running), delta("it is 42"), end]


def test_traces_are_shown_as_they_run_and_accounted_for(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served[0].script = script(*a_vote())
    baton(served, "generate", "6 x 7?", "--strategy", "vote", "--usd", "0.02", "--samples", "8", "--answer", "number")
    out = capsys.readouterr().out
    for part in (
        "40 tokens",
        "running",
        "it is 42",
        "ended by agreed, confidence 0.969",
        "42: 4",
        "1 cancelled",
        "130",
    ):
        assert part in out, out
    (request,) = served[0].requests
    assert request.inference_scaling == pb.InferenceScaling(
        strategy="vote", samples=pb.Samples(max=8), budget=pb.ScalingBudget(usd=0.02),
        answer=pb.AnswerFormat(last_number=True), progress=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "strategy"),
    [(("--seconds", "5"), "single"), (("--agree", "0.9"), "vote"), (("--strategy", "refine"), "refine")],
)
def test_a_budget_alone_is_for_one_trace(served: Served, arguments: tuple[str, ...], strategy: str) -> None:
    baton(served, "generate", "Hi", "--json", *arguments)
    (request,) = served[0].requests
    assert request.inference_scaling.strategy == strategy
    assert not request.inference_scaling.progress


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), {}),
        (("--max-tokens", "7"), {"max_tokens": 7}),
        (("--temperature", "0"), {"temperature": 0.0}),
        (("--effort", "low"), {"effort": pb.EFFORT_LOW}),
        (("--budget", "0"), {"budget_tokens": 0}),
    ],
)
def test_only_options_that_were_given_are_sent(served: Served, arguments: tuple[str, ...], wanted: Any) -> None:
    baton(served, "generate", "Hi", *arguments)
    (request,) = served[0].requests
    found: dict[str, Any] = {}
    for message, names in (
        (request.sampling, ("max_tokens", "temperature")),
        (request.reasoning, ("effort", "budget_tokens")),
    ):
        present = {field.name for field, _ in message.ListFields()}
        optional = {name for name in names if message.DESCRIPTOR.fields_by_name[name].has_presence}
        present |= {name for name in optional if message.HasField(name)}
        found |= {name: getattr(message, name) for name in names if name in present}
    assert found == wanted
    assert request.deadline_s == pytest.approx(600, abs=5)


def test_raw_sends_the_prompt_itself(served: Served) -> None:
    baton(served, "generate", "Hi", "--raw")
    baton(served, "generate", "Hi")
    raw, chat = served[0].requests
    assert raw.prompt == "Hi"
    assert [(message.role, message.content) for message in chat.chat.messages] == [("user", "Hi")]


def test_the_deadline_ends_it(served: Served) -> None:
    served[0].script = script(admitted(), delta("Hel"), Stall())
    with pytest.raises(DeadlineExceeded):
        baton(served, "generate", "Hi", "--deadline-s", "0.2")


def test_an_effort_that_is_none_is_refused_before_anything_is_sent(served: Served) -> None:
    with pytest.raises(
        InvalidRequest, match="reasoning_effort: expected one of none, minimal, low, medium, high, xhigh, max"
    ):
        baton(served, "generate", "Hi", "--effort", "huge")
    assert not served[0].requests


def test_a_failure_in_mid_answer_is_raised(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served[0].script = script(admitted(), delta("Hel"), RequestRejected("full", retry_after_s=1))
    with pytest.raises(RequestRejected, match="full"):
        baton(served, "generate", "Hi")
    assert "what it took" not in capsys.readouterr().out


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_of_a_handoff() -> None:
    text = text_of(
        generate_command.figures(
            a_completion(
                workers=pb.Workers(prefill="prefill-1", decode="decode-2"),
                timings=pb.Timings(queue_s=0.0015, first_token_s=0.25, transfer_start_s=0.26, last_token_s=2.5),
                handoff=pb.HandoffFigures(transport="rdma", bytes=1 << 30, transfer_s=0.5, handoff_s=0.75),
            )
        )
    )
    for words in (
        "prefill-1 → decode-2", "12 tokens, 4 cached", "3 tokens: 0 reasoning, 3 answer",
        "250 ms, of it 1.5 ms queue", "2.50 s", "1024.00 MiB over rdma in 500.0 ms (2.00 GiB/s)",
        "750.0 ms to decode's first token", "first token sent at 250 ms, transfer began at 260 ms", "$0.50000000",
    ):  # fmt: skip
        assert words in text, words


def test_figures_without_a_handoff_tell_of_none() -> None:
    text = text_of(generate_command.figures(a_completion(workers=pb.Workers(decode="colocated-0"))))
    assert "colocated-0 (no handoff)" in text
    assert "KV handoff" not in text
    assert "order" not in text


def test_a_transfer_that_took_no_time_divides_by_nothing() -> None:
    text = text_of(generate_command.figures(a_completion(handoff=pb.HandoffFigures(transport="tcp", bytes=4096))))
    assert "(0.00 GiB/s)" in text


# --- chat -----------------------------------------------------------------------------------------------------------


def said(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    left = list(lines)

    def read(*_: object) -> str:
        if not left:
            raise EOFError
        return left.pop(0)

    monkeypatch.setattr("builtins.input", read)


def test_a_chat_sends_all_that_was_said_and_no_reasoning(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served[0].script = reply(("blue",), ("hm",))
    said(monkeypatch, "Which colour?", "  Why?  ", "")
    baton(served, "chat", "--effort", "high")
    first, second = served[0].requests
    assert [(message.role, message.content) for message in first.chat.messages] == [("user", "Which colour?")]
    assert [(message.role, message.content) for message in second.chat.messages] == [
        ("user", "Which colour?"),
        ("assistant", "blue"),
        ("user", "Why?"),
    ]
    assert {request.reasoning.effort for request in served[0].requests} == {pb.EFFORT_HIGH}


def test_a_chat_ends_at_the_end_of_input(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch)
    baton(served, "chat")
    assert not served[0].requests


def test_each_turn_ends_with_its_figures(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served[0].script = script(admitted(), delta("Hi"), finished(prompt=9, cached=8, reasoning=2, answer=3))
    said(monkeypatch, "Hi")
    baton(served, "chat")
    assert "9 in (8 cached), 5 out, TTFT 10 ms" in capsys.readouterr().out
