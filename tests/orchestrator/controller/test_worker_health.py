"""Health checks: which silence is a worker's own, and what follows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.errors import WorkerDied
from orchestrator.controller.background_tasks import BackgroundTasks
from orchestrator.controller.worker_health import HealthChecks
from orchestrator.controller.worker_replacement import WorkerReplacement
from tests.fakes.controller_parts import IDLE, Admitted, Drained, Parts, Replaced, started

CHECKED = ["prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2"]


def checks(parts: Parts) -> tuple[HealthChecks, Replaced, Drained]:
    replaced, drained = Replaced(parts.pool), Drained()
    return HealthChecks(parts.spec, parts.pool, cast(Any, drained), cast(Any, replaced)), replaced, drained


@pytest.mark.parametrize("error", [TimeoutError(), WorkerDied("gone")])
async def test_one_that_is_gone_or_silent_alone_is_replaced(tmp_path: Path, error: Exception) -> None:
    parts = await started(tmp_path)
    health, replaced, _ = checks(parts)
    parts.runtime.answers["decode-1", "check_health"] = error
    await health.check()
    assert replaced.workers == ["decode-1"]
    assert [worker for worker, method in parts.runtime.calls if method == "check_health"] == CHECKED
    assert parts.worker("decode-0").load == IDLE
    assert parts.worker("decode-1").load is None
    assert parts.state("decode-2") == "ready"  # from standby


async def test_when_all_are_silent_none_is_replaced(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    health, replaced, _ = checks(parts)
    for worker_id in CHECKED:
        parts.runtime.answers[worker_id, "check_health"] = TimeoutError()
    await health.check()
    assert replaced.workers == []


async def test_one_that_is_asked_to_end_is_drained_and_comes_back(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    health, replaced, drained = checks(parts)
    parts.runtime.answers["decode-1", "check_health"] = {**IDLE, "draining": True}
    await health.check()
    assert drained.orders == [("decode-1", True)]
    assert replaced.workers == []


async def test_one_that_was_lost_while_it_was_asked_is_not_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = await started(tmp_path)
    health, replaced, drained = checks(parts)
    call = parts.runtime.call

    async def lost_meanwhile(handle: Any, method: str, *arguments: Any) -> Any:
        if handle.worker_id != "decode-1":
            return await call(handle, method, *arguments)
        await parts.pool.lose(parts.worker("decode-1"))  # as a canary does that finds it wrong
        return {**IDLE, "draining": True}

    monkeypatch.setattr(parts.runtime, "call", lost_meanwhile)
    await health.check()
    assert (drained.orders, replaced.workers) == ([], [])


async def test_nothing_is_replaced_while_the_cluster_ends(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    health, replaced, _ = checks(parts)
    parts.runtime.answers["decode-1", "check_health"] = WorkerDied("gone")
    parts.pool.begin_stop()
    await health.check()
    assert replaced.workers == []
    await parts.pool.stop()
    assert [worker for worker, method in parts.runtime.calls if method == "stop"] == CHECKED


# --- replacement ----------------------------------------------------------------------------------------------------


def replacement(parts: Parts, *refusals: WorkerDied) -> tuple[WorkerReplacement, BackgroundTasks]:
    tasks = BackgroundTasks()
    admission = Admitted(parts.pool, list(refusals))
    found = WorkerReplacement(
        parts.pool, cast(Any, admission), cast(Any, parts.runtime), tasks, on_progress=lambda *_: None
    )
    return found, tasks


async def over(tasks: BackgroundTasks) -> None:
    while tasks._tasks:
        await next(iter(tasks._tasks))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.controller.worker_replacement.RESTART_BACKOFF_S", (0.0,))
    monkeypatch.setattr("orchestrator.controller.worker_replacement.NODE_POLL_S", 0.001)


async def test_a_restart_is_tried_until_it_serves(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    replacing, tasks = replacement(parts, WorkerDied("again"), WorkerDied("and again"))
    await replacing.replace(parts.worker("decode-0"))
    await over(tasks)
    worker = parts.worker("decode-0")
    assert (worker.restarts, worker.member.state, worker.start_failed) == (3, "standby", False)
    assert parts.runtime.removed == ["decode-0"] * 3
    assert parts.state("decode-2") == "ready"


async def test_a_worker_whose_node_leaves_starts_once_it_has_left(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    replacing, tasks = replacement(parts)
    worker = parts.worker("decode-0")
    await parts.pool.lose(worker)
    asked = 0
    nodes = parts.runtime.nodes

    def leaving() -> list[Any]:
        nonlocal asked
        asked += 1
        return [replace(each, node_id="another") for each in nodes()] if asked > 2 else nodes()

    parts.runtime.nodes = leaving  # type: ignore[method-assign]
    replacing.restart(worker, once_gone="node")
    await over(tasks)
    assert asked >= 3
    assert worker.handle is not None
    assert worker.handle.node.node_id == "another"


async def test_a_faulty_worker_is_replaced_and_what_others_read_from_it_is_dropped(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    replacing, tasks = replacement(parts)
    parts.runtime.answers["decode-1", "forget_kv"] = TimeoutError()  # it keeps what may be wrong, so it goes, too
    await replacing.take_out("prefill-0", "computes wrongly")
    await over(tasks)
    forgot = [worker for worker, method in parts.runtime.calls if method == "forget_kv"]
    assert forgot == ["decode-0", "decode-1", "decode-2"]
    assert sorted(parts.runtime.removed) == ["decode-1", "prefill-0"]


async def test_a_faulty_worker_that_drains_is_left_to_its_drain(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    replacing, tasks = replacement(parts)
    parts.pool.begin_drain(["decode-1"], returns=False)
    await replacing.take_out("decode-1", "computes wrongly")
    await over(tasks)
    assert parts.state("decode-1") == "lost"
    assert parts.runtime.removed == []
    parts.pool.begin_stop()
    await replacing.take_out("decode-0", "computes wrongly")
    assert parts.state("decode-0") == "ready"


async def test_a_refused_link_has_its_reader_drop_what_it_read(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    replacing, tasks = replacement(parts)
    before = len(parts.published)
    await replacing.refuse_link("prefill-0", "decode-1", "wrong together")
    await over(tasks)
    assert len(parts.published) == before + 1
    assert parts.runtime.calls[-1] == ("decode-1", "forget_kv")


async def test_one_that_was_lost_while_it_was_to_forget_its_kv_is_not_replaced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = await started(tmp_path)
    replacing, tasks = replacement(parts)
    call = parts.runtime.call

    async def lost_meanwhile(handle: Any, method: str, *arguments: Any) -> Any:
        if method == "forget_kv":
            await parts.pool.lose(parts.worker(handle.worker_id))  # as a health check does
            raise TimeoutError
        return await call(handle, method, *arguments)

    monkeypatch.setattr(parts.runtime, "call", lost_meanwhile)
    await replacing.refuse_link("prefill-0", "decode-1", "wrong together")
    await over(tasks)
    assert parts.state("decode-1") == "lost"
    assert parts.runtime.removed == []


async def test_a_round_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parts = await started(tmp_path)
    often = parts.spec.model_copy(update={"health": parts.spec.health.model_copy(update={"interval_s": 0.001})})
    health = HealthChecks(often, parts.pool, cast(Any, Drained()), cast(Any, Replaced(parts.pool)))
    rounds: list[int] = []
    second = asyncio.Event()

    async def check() -> None:
        rounds.append(len(rounds))
        if len(rounds) == 2:
            second.set()
        raise RuntimeError("no such luck")

    monkeypatch.setattr(health, "check", check)
    task = asyncio.create_task(health.run())
    await second.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "a round of health checks failed" in caplog.text
