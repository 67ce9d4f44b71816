"""`baton status` and `baton top` of a gateway, and the lines they draw."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from baton.v1 import cluster_pb2 as pb
from cluster.errors import ConfigError
from interface.cli import main as cli
from interface.cli import top_view
from interface.cli.status_command import canary_lines, render
from tests.fakes.backend import FakeBackend

Served = tuple[FakeBackend, str]


def text_of(*draw: object) -> str:
    console = Console(file=io.StringIO(), width=240, record=True)
    console.print(*draw)
    return console.export_text()


def a_status(**more: object) -> pb.Status:
    return pb.Status(cluster="here", model="reasoner", **more)  # type: ignore[arg-type]


def test_status_of_an_endpoint(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    cli.app(["status", "--endpoint", served[1]], standalone_mode=False)
    out = capsys.readouterr().out
    assert "decode-0" in out
    assert "up 0:00:01" in out
    assert "finished 3" in out


def test_status_as_json_has_every_field_by_its_protos_name(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    cli.app(["status", "--endpoint", served[1], "--json"], standalone_mode=False)
    tree = json.loads(capsys.readouterr().out)
    (worker,) = tree["workers"]
    assert worker["state"] == "WORKER_STATE_READY"
    assert worker["output_tokens"] == str(1 << 40)
    assert worker["running_requests"] == 0
    assert tree["requests"]["queued"] == 0


def test_top_once_draws_one_screen_and_ends(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    cli.app(["top", "--endpoint", served[1], "--once"], standalone_mode=False)
    out = capsys.readouterr().out
    assert out.count("here") + out.count("test") >= 1
    assert "pools" in out


def test_watch_as_json_is_a_line_for_each_status(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from interface.client.client import Client

    monkeypatch.setattr(Client, "watch_status", lambda self: iter([a_status(uptime_s=1), a_status(uptime_s=2)]))
    cli.app(["status", "--endpoint", served[1], "--json", "--watch"], standalone_mode=False)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["uptime_s"] for line in lines] == [1, 2]


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uptime_s", "shown"), [(0, "0:00:00"), (59.9, "0:00:59"), (3600, "1:00:00"), (360_061, "100:01:01")]
)
def test_uptime(uptime_s: float, shown: str) -> None:
    assert f"up {shown} " in text_of(render(a_status(uptime_s=uptime_s)))


@pytest.mark.parametrize(
    ("used", "total", "shown", "filled"),
    [(0, 0, "0%", 0), (0, 10, "0%", 0), (5, 10, "50%", 6), (10, 10, "100%", 12), (1, 1000, "0%", 0)],
)
def test_the_bar_of_kv_used(used: int, total: int, shown: str, filled: int) -> None:
    worker = pb.WorkerStatus(worker_id="decode-0", role=pb.ROLE_DECODE, used_blocks=used, total_blocks=total)
    text = text_of(render(a_status(workers=[worker])))
    assert text.count("█") == filled
    assert text.count("█") + text.count("░") == 12
    assert f" {shown} " in text


def test_pairs_show_rate_handshake_and_refusal() -> None:
    moved = pb.PairStatus(
        prefill="prefill-0", decode="decode-0", transport="rdma", handoffs=3, bytes=1 << 30, transfer_s=0.5,
        handshake_s=0.25,
    )  # fmt: skip
    refused = pb.PairStatus(prefill="prefill-1", decode="decode-0", transport="tcp", refused=True)
    text = text_of(render(a_status(pairs=[moved, refused])))
    first, second = (line for line in text.splitlines() if "→" in line)
    assert "1024.0 MiB" in first
    assert "2.00 GiB/s" in first
    assert "250 ms" in first
    assert "refused" not in first
    assert "refused" in second
    assert " - " in second  # no rate where nothing was moved


def test_a_spot_node_is_marked() -> None:
    rows = [pb.WorkerStatus(worker_id=name, node=f"node-{name}", spot=name == "b") for name in "ab"]
    lines = text_of(render(a_status(workers=rows))).splitlines()
    assert [("node-" in line, "spot" in line) for line in lines if "node-" in line] == [(True, False), (True, True)]


def test_sections_that_a_cluster_has_not_are_left_out() -> None:
    text = text_of(render(a_status()))
    for word in ("pair", "canary", "autoscaler"):
        assert word not in text


# --- canary ---------------------------------------------------------------------------------------------------------


def canary(*rows: pb.CanaryStatus, reference: bool = True, findings: int = 0) -> pb.CanaryReport:
    return pb.CanaryReport(
        workers=rows,
        has_reference=reference,
        findings=[pb.CanaryFinding(unix_s=900 + i, sentence=f"finding {i}") for i in range(findings)],
    )


def asked(runs: int = 10, last_ok_unix_s: float = 940, cost_ratio: float = 0.001, **failures: int) -> pb.CanaryStatus:
    return pb.CanaryStatus(runs=runs, last_ok_unix_s=last_ok_unix_s, cost_ratio=cost_ratio, failures=failures)


def test_a_canary_that_asked_nobody_says_nothing() -> None:
    assert canary_lines(canary()) == []
    assert canary_lines(canary(asked(runs=0), findings=2)) == []


def test_the_canarys_line_sums_answers_and_takes_the_worst_of_the_rest() -> None:
    report = canary(asked(1000, 940, 0.001, alone=2), asked(500, 880, 0.004, alone=1, handoff=1))
    text = text_of(*canary_lines(report, now_unix_s=1000))
    for words in ("1,500 answers", "4 wrong", "the model's reference", "within the last 0:02:00", "at most 0.400%"):
        assert words in text, words


def test_without_a_reference_it_says_how_to_get_one() -> None:
    text = text_of(*canary_lines(canary(asked(), reference=False), now_unix_s=1000))
    assert "one another" in text
    assert "baton model check" in text


def test_a_worker_that_was_never_right_is_not_passed_over() -> None:
    text = text_of(*canary_lines(canary(asked(), asked(last_ok_unix_s=0)), now_unix_s=1000))
    assert "not all were right" in text


def test_the_last_three_findings_are_shown_with_their_age() -> None:
    lines = canary_lines(canary(asked(), findings=5), now_unix_s=1000)
    assert [text_of(line).strip() for line in lines[1:]] == [
        f"0:01:{38 - i:02d} ago: finding {2 + i}" for i in range(3)
    ]


# --- drawing --------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_short_figures_keep_their_order(one: float, two: float) -> None:
    """What is shown shorter is not shown larger: the unit and the digits order as the figures do."""
    unit = {"": 1.0, "k": 1e3, "M": 1e6}

    def shown(tokens: float) -> float:
        digits, _, name = top_view._short(tokens).partition(" ")
        return float(digits) * unit[name]

    low, high = sorted((one, two))
    assert shown(low) <= shown(high)
    assert shown(low) == pytest.approx(low, rel=0.05, abs=0.5)


@given(st.lists(st.floats(0, 1e9), max_size=200))
def test_a_curve_has_a_column_for_each_of_the_last_values_and_its_peak_is_full(values: list[float]) -> None:
    curve = top_view._curve(values)
    kept = values[-len(curve) :] if curve else []
    assert len(curve) == min(len(values), 36)
    if kept and max(kept) == max(values) > 0:
        assert curve[kept.index(max(kept))] == "█"
    assert all(level == "▁" for level, value in zip(curve, kept, strict=True) if value == 0)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_band_is_one_line_with_one_middle(one: float, two: float, three: float) -> None:
    low, mean, high = sorted((one, two, three))
    text = top_view._band(low, mean, high).plain
    assert len(text) == 36
    assert text.count("┃") == 1
    inside = text.replace("┃", "━").strip("·")
    assert "·" not in inside or mean - low < 1 / 36 or high - mean < 1 / 36


@given(st.floats(-1, 3))
def test_a_bar_never_leaves_its_frame(share: float) -> None:
    text = top_view._bar(share, "green").plain
    assert len(text) == 36
    assert text.rstrip("░").count("█") == len(text.rstrip("░")) == min(36, max(0, round(share * 36)))


# --- several models -------------------------------------------------------------------------------------------------


def two_models() -> pb.Status:
    def worker(name: str, model: str) -> pb.WorkerStatus:
        return pb.WorkerStatus(worker_id=name, model=model, role=pb.ROLE_DECODE, state=pb.WORKER_STATE_READY)

    scaling = pb.Scaling(pools=[pb.PoolScaling(role=pb.ROLE_DECODE, ready=3)])
    return a_status(
        models=[
            pb.ModelStatus(name="fast", requests=pb.RequestCounts(finished=11)),
            pb.ModelStatus(name="thinking", requests=pb.RequestCounts(finished=22), scaling=scaling),
        ],
        workers=[worker("fast-decode-0", "fast"), worker("thinking-decode-0", "thinking")],
        pairs=[pb.PairStatus(prefill="thinking-decode-0", decode="x")],
        requests=pb.RequestCounts(finished=33),
    )


def test_status_has_a_line_for_each_model() -> None:
    shown = text_of(render(two_models()))
    assert "fast, thinking" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["fast", "0", "0", "0", "11", "0", "0", "0"] in rows
    assert ["thinking", "0", "0", "0", "22", "0", "0", "0"] in rows
    assert "thinking:" in shown


@pytest.mark.parametrize(("model", "shown", "hidden"), [(None, "fast", "thinking"), ("thinking", "thinking", "fast")])
def test_top_shows_one_model(model: str | None, shown: str, hidden: str) -> None:
    own = top_view.of_model(two_models(), model)
    assert [worker.worker_id for worker in own.workers] == [f"{shown}-decode-0"]
    assert (own.model, own.HasField("scaling")) == (shown, shown == "thinking")
    assert own.requests.finished == (22 if shown == "thinking" else 11)
    assert len(own.pairs) == (shown == "thinking")
    assert text_of(top_view.TopView(model).render(two_models()))


def test_top_knows_the_models() -> None:
    with pytest.raises(ConfigError, match="no model 'big'; it has fast, thinking"):
        top_view.of_model(two_models(), "big")
    assert top_view.of_model(a_status(), None) == a_status()
