"""Closed and open loops against a target of the test, CPU seconds of processes, and one run from end to end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bench import cpu, measure
from bench.cpu import CpuMeter, marked
from bench.measure import BenchRun, open_target
from bench.record import RequestRecord
from bench.runner import RunOutcome, run
from bench.target import RequestStyle
from bench.workload import ClosedPlan, PlannedRequest

STYLE = RequestStyle(model="m")


@dataclass
class Scripted:
    """A target that needs ``takes_s`` for each request and notes what was under way."""

    takes_s: float = 0.0
    fails: Callable[[PlannedRequest], str] = lambda request: ""
    running: int = 0
    most: int = 0
    sent: list[PlannedRequest] = field(default_factory=list)
    styles: list[RequestStyle] = field(default_factory=list)
    closed: bool = False

    async def model(self) -> str:
        return "served"

    async def send(self, request: PlannedRequest, style: RequestStyle, epoch_s: float) -> RequestRecord:
        start_s = time.perf_counter() - epoch_s
        self.sent.append(request)
        self.styles.append(style)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.takes_s)
        self.running -= 1
        end_s = time.perf_counter() - epoch_s - start_s
        return RequestRecord(
            request.index, request.isl_tokens, request.osl_tokens, start_s, end_s=end_s, message_s=[end_s],
            output_tokens=request.osl_tokens, failure=self.fails(request),
        )  # fmt: skip

    async def close(self) -> None:
        self.closed = True


def ran(target: Scripted, plan: Sequence[PlannedRequest], **more: Any) -> RunOutcome:
    options = {"concurrency": 4, "meter": CpuMeter(()), **more}
    return asyncio.run(run(target, plan, STYLE, **options))


def arriving(*times_s: float) -> list[PlannedRequest]:
    return [PlannedRequest(index, 4, 4, at_s) for index, at_s in enumerate(times_s)]


# --- loops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "concurrency", "most"), [(12, 4, 4), (3, 8, 3), (5, 1, 1), (0, 4, 0)])
def test_a_closed_loop_keeps_so_many_under_way_and_no_more(count: int, concurrency: int, most: int) -> None:
    target = Scripted(0.001)
    outcome = ran(target, ClosedPlan(4, 4, count), concurrency=concurrency)
    assert target.most == most
    assert sorted(request.index for request in target.sent) == list(range(count))
    assert len(outcome.records) == count


def test_an_endless_plan_ends_by_its_time() -> None:
    target = Scripted(0.001)
    outcome = ran(target, ClosedPlan(4, 4, None), duration_s=0.05)
    assert outcome.records
    assert all(record.start_s < 0.05 for record in outcome.records)
    assert target.running == 0


def test_an_open_loop_sends_all_at_once_where_all_are_due() -> None:
    target = Scripted(0.01)
    outcome = ran(target, arriving(*[0.0] * 9), concurrency=None)
    assert target.most == 9
    assert [record.index for record in outcome.records] == list(range(9))


def test_an_open_loop_stops_sending_at_its_time() -> None:
    target = Scripted()
    ran(target, arriving(0.0, 0.01, 5.0, 9.0), concurrency=None, duration_s=0.0)
    assert not target.sent


def test_a_request_that_is_sent_late_says_by_how_much() -> None:
    outcome = ran(Scripted(), arriving(0.0, 0.02), concurrency=None)
    for record, due_s in zip(outcome.records, (0.0, 0.02), strict=True):
        assert record.lag_s == pytest.approx(record.start_s - due_s)
        assert record.lag_s >= 0


def test_later_turns_are_sent_in_order_each_after_the_one_before() -> None:
    third = PlannedRequest(2, 4, 4)
    second = PlannedRequest(1, 4, 4, then=third)
    target = Scripted(0.001)
    outcome = ran(target, [PlannedRequest(0, 4, 4, then=second)], concurrency=4)
    assert [request.index for request in target.sent] == [0, 1, 2]
    assert target.most == 1
    ends = [record.start_s + record.end_s for record in outcome.records]
    assert all(end_s <= after.start_s for end_s, after in zip(ends, outcome.records[1:], strict=False))


def test_no_turn_follows_after_the_time_is_up() -> None:
    target = Scripted(0.05)
    ran(target, [PlannedRequest(0, 4, 4, then=PlannedRequest(1, 4, 4))], duration_s=0.01)
    assert [request.index for request in target.sent] == [0]


def test_records_are_in_order_of_sending_and_every_one_was_reported() -> None:
    done: list[RequestRecord] = []
    outcome = ran(Scripted(0.001), ClosedPlan(4, 4, 20), on_done=done.append)
    starts = [record.start_s for record in outcome.records]
    assert starts == sorted(starts)
    assert {record.index for record in done} == set(range(20))
    last_s = max(record.start_s + record.end_s for record in outcome.records)
    assert outcome.duration_s == pytest.approx(last_s - starts[0])


# --- one run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted()
    monkeypatch.setattr(measure, "open_target", lambda endpoint, **_: scripted)
    return scripted


def a_run(**more: Any) -> BenchRun:
    return BenchRun("http://h:1", ClosedPlan(8, 32, 6), RequestStyle(model=""), **more)


def test_the_first_model_served_is_asked_where_none_is_named(target: Scripted) -> None:
    summary, records = asyncio.run(measure.measure(a_run()))
    assert summary["model"] == "served"
    assert {style.model for style in target.styles} == {"served"}
    assert (summary["requests"], summary["completed"], len(records)) == (6, 6, 6)
    assert target.closed


def test_warm_up_is_other_prompts_short_and_not_counted(target: Scripted) -> None:
    progress: list[int] = []
    summary, _ = asyncio.run(measure.measure(a_run(warmup=3), progress.append))
    assert summary["requests"] == 6
    assert progress == [1, 2, 3, 4, 5, 6]
    warm, measured = target.sent[:3], target.sent[3:]
    assert {request.osl_tokens for request in warm} == {16}
    assert {request.osl_tokens for request in measured} == {32}
    assert not {style.seed for style in target.styles[:3]} & {style.seed for style in target.styles[3:]}


def test_the_connections_are_closed_after_a_failure(target: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> RequestRecord:
        raise KeyboardInterrupt

    monkeypatch.setattr(target, "send", fails)
    with pytest.raises(BaseException):  # noqa: B017  # a task group wraps it
        asyncio.run(measure.measure(a_run()))
    assert target.closed


def test_failures_are_distinguished_with_the_first_detail_of_each(target: Scripted) -> None:
    target.fails = lambda request: ("timeout", "", "short")[request.index % 3]
    summary, _ = asyncio.run(measure.measure(a_run()))
    assert summary["failures"] == {"timeout": 2, "short": 2}
    assert (summary["completed"], summary["failed"]) == (2, 4)


@pytest.mark.parametrize(("endpoint", "kind"), [("grpc://h:1", "GrpcTarget"), ("http://h:1", "HttpTarget")])
def test_the_scheme_names_the_protocol(endpoint: str, kind: str) -> None:
    async def opened() -> str:
        target = open_target(endpoint, api_key="k")
        try:
            return type(target).__name__
        finally:
            await target.close()

    assert asyncio.run(opened()) == kind


# --- CPU seconds ----------------------------------------------------------------------------------------------------


class Processes:
    """A tree of processes with CPU seconds, as psutil shows them."""

    def __init__(self) -> None:
        self.cpu_s: dict[int, float] = {}
        self.created_s: dict[int, float] = {}
        self.children: dict[int, list[int]] = {}

    def add(self, pid: int, cpu_s: float = 0.0, created_s: float = 1.0, parent: int = 0) -> None:
        self.cpu_s[pid], self.created_s[pid] = cpu_s, created_s
        self.children.setdefault(parent, []).append(pid)

    def __call__(self, pid: int) -> Any:
        if pid not in self.cpu_s:
            raise psutil.NoSuchProcess(pid)
        return SimpleNamespace(
            pid=pid,
            children=lambda recursive: [self(each) for each in self._under(pid)],
            cpu_times=lambda: SimpleNamespace(user=self.cpu_s[pid] / 2, system=self.cpu_s[pid] / 2),
            create_time=lambda: self.created_s[pid],
        )

    def _under(self, pid: int) -> list[int]:
        return [each for child in self.children.get(pid, []) for each in (child, *self._under(child))]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    found = Processes()
    monkeypatch.setattr(cpu.psutil, "Process", found)
    return found


def test_children_and_grandchildren_count_each_once(processes: Processes) -> None:
    processes.add(10, 5.0)
    processes.add(11, 1.0, parent=10)
    processes.add(12, 2.0, parent=11)
    meter = CpuMeter((10, 11))
    meter.start()
    for pid, more_s in ((10, 1.0), (11, 2.0), (12, 4.0)):
        processes.cpu_s[pid] += more_s
    used_s, own_s = meter.stop()
    assert used_s == pytest.approx(7.0)
    assert meter.by_process() == {10: pytest.approx(1.0), 11: pytest.approx(2.0), 12: pytest.approx(4.0)}
    assert own_s >= 0


def test_a_process_that_began_since_counts_whole_and_one_of_an_old_id_too(processes: Processes) -> None:
    processes.add(10, 5.0)
    processes.add(11, 9.0, parent=10)
    meter = CpuMeter((10,))
    meter.start()
    processes.add(12, 3.0, created_s=2.0, parent=10)
    processes.cpu_s[11], processes.created_s[11] = 0.5, 2.0  # another process with the id of one that ended
    assert meter.stop()[0] == pytest.approx(3.5)


def test_a_process_that_is_gone_counts_nothing(processes: Processes) -> None:
    processes.add(10, 5.0)
    meter = CpuMeter((10, 99))
    meter.start()
    del processes.cpu_s[10]
    assert meter.stop()[0] == 0.0


def test_without_processes_there_is_no_figure_of_the_servers() -> None:
    meter = CpuMeter(())
    meter.start()
    assert meter.stop()[0] is None


def test_processes_are_found_by_a_mark_in_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(pid: int, environment: dict[str, str] | psutil.Error) -> Any:
        def environ() -> dict[str, str]:
            if isinstance(environment, psutil.Error):
                raise environment
            return environment

        return SimpleNamespace(pid=pid, environ=environ)

    found = [
        one(1, {"MARK": "a"}), one(2, {"MARK": "b"}), one(3, {}), one(4, psutil.AccessDenied(4)),
        one(5, psutil.NoSuchProcess(5)), one(6, {"MARK": "a", "OTHER": "b"}),
    ]  # fmt: skip
    monkeypatch.setattr(cpu.psutil, "process_iter", lambda: found)
    assert marked("MARK", "a") == [1, 6]
    assert os.getpid() not in marked("MARK", "nobody has this")
