"""The pool: what workers go through, and what is published of it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError, EngineFailed, WorkerDied
from cluster.spec.config import Role
from tests.fakes.controller_parts import started


async def test_a_worker_is_published_from_its_start_to_its_end(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    assert parts.published[-1] == {
        "prefill-0": "ready", "prefill-1": "ready", "decode-0": "ready", "decode-1": "ready", "decode-2": "standby"
    }  # fmt: skip
    (worker,) = parts.pool.begin_drain(["decode-0", "decode-0"], returns=False)
    await parts.pool.publish()
    assert parts.published[-1]["decode-0"] == "draining"
    assert parts.published[-1]["decode-2"] == "standby"  # one that leaves the pool leaves no place
    await parts.pool.retire(worker)
    await parts.pool.forget(worker)
    assert "decode-0" not in parts.published[-1]
    assert parts.runtime.removed == ["decode-0"]
    assert parts.said[-2:] == [("decode-0", "stopping", ""), ("decode-0", "drained", "stopped")]
    assert parts.pool.add_another(Role.DECODE, worker.pool).worker_id == "decode-0"


async def test_what_cannot_be_drained_says_why(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    parts.pool.begin_drain(["decode-0"], returns=False)
    for worker_id, why in (("decode-0", "is draining"), ("decode-9", "is unknown; .*prefill-0, prefill-1")):
        with pytest.raises(ConfigError, match=why):
            parts.pool.begin_drain(["prefill-0", worker_id], returns=False)
    assert parts.state("prefill-0") == "ready"  # none of an order that is refused


async def test_a_worker_that_does_not_stop_by_itself_is_removed_all_the_same(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    parts.runtime.answers["decode-1", "stop"] = TimeoutError()
    await parts.pool.abandon(parts.worker("decode-1"))
    assert parts.runtime.removed == ["decode-1"]
    assert parts.pool.find("decode-1") is None


async def test_a_worker_without_a_process_is_not_called(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    worker = parts.worker("decode-1")
    assert [await parts.pool.release_for_restart(worker) for _ in range(3)] == [0, 1, 2]
    assert parts.runtime.removed == ["decode-1"]
    with pytest.raises(WorkerDied):
        await parts.pool.call(worker, "check_health")


async def test_an_engine_that_does_not_start_leaves_its_logs(tmp_path: Path) -> None:
    parts = await started(tmp_path)
    logs = tmp_path / "session" / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "worker.err").write_text("no memory")
    parts.runtime.session_folder = tmp_path / "session"
    parts.runtime.answers["decode-1", "start"] = WorkerDied("its process is gone")
    worker = parts.worker("decode-1")
    with pytest.raises(EngineFailed, match=r"decode-1 did not start: .*its process is gone"):
        await parts.pool.start(worker)
    assert (tmp_path / "ray" / "worker.err").read_text() == "no memory"
    assert worker.handle is not None  # it still has its place, and is to be removed


EVENTS = ("lose", "serve", "drain", "drain to return", "retire", "role", "grow", "give up", "fail")


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 7)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_no_place_is_empty_while_a_worker_of_its_role_is_on_standby(events: list[tuple[str, int]]) -> None:
    asyncio.run(_places_are_filled(events))


async def _places_are_filled(events: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = await started(Path(folder))
    pool = parts.pool
    for event, index in events:
        workers = pool.workers()
        if not workers:
            return
        worker = workers[index % len(workers)]
        match event:
            case "lose" if worker.up:
                await pool.lose(worker)
            case "serve" if not worker.up and not worker.draining:
                pool.serve(worker)
            case "drain" | "drain to return" if worker.up and not worker.draining:
                pool.begin_drain([worker.worker_id], returns=event != "drain")
            case "retire" if worker.draining:
                await pool.retire(worker)
                await pool.forget(worker)
            case "role" if worker.member.state == "ready":
                await pool.take_role(worker, Role.PREFILL if worker.role is Role.DECODE else Role.DECODE)
            case "grow":
                pool.add_another(Role.DECODE, worker.pool)
            case "give up" if worker.starting:
                pool.give_up(worker)
            case "fail" if worker.starting:
                await pool.fail_start(worker)
        await pool.publish()
        for role in (Role.PREFILL, Role.DECODE):
            mine = [each for each in pool.workers() if each.role is role and not each.unwanted.is_set()]
            waiting = [each for each in mine if each.standby and each.up]
            absent = [each for each in mine if not each.standby and not each.up and (each.returns or not each.draining)]
            assert not (waiting and absent)
            assert all(each.member.state == "standby" for each in waiting)
