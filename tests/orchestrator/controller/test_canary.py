"""The controller's canaries over fake engines: a worker that computes wrongly does not serve, and serves no longer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from cluster.errors import EngineFailed
from doctor import answers_check
from interface.cli.model_command import agreement
from interface.cli.status_command import canary_lines
from orchestrator.controller import reference_file
from orchestrator.controller.reference_file import fingerprint
from orchestrator.policy.canary_probe import Position, prompts
from tests.fakes.engine import FakeEngine, continuation, next_token
from tests.fakes.live_cluster import eventually
from tests.fakes.runtime import ControlledCluster, FakeRuntime, controlled

FAST = "health: {interval_s: 0.05, canary: {interval_s: 0.2, max_share: 1}}\n"


def wrong(ledger: Sequence[int]) -> int:
    return 65 + (next_token(ledger) - 64) % 26


def text(cluster: ControlledCluster) -> str:
    return generate_latest(cluster.gateway.metrics.registry).decode()


async def test_a_worker_that_begins_to_compute_wrongly_is_taken_out_and_replaced(tmp_path: Path) -> None:
    async with controlled(tmp_path, prefill=2, decode=2, more=FAST) as cluster:
        victim = cluster.runtime.engines["decode-1"]
        others = {key: each.incarnation for key, each in cluster.runtime.engines.items() if key != "decode-1"}
        await eventually(lambda: all(row.runs >= 2 for row in cluster.gateway.status().canary.workers))
        victim._rule = wrong
        await eventually(lambda: cluster.runtime.engines.get("decode-1") not in (None, victim), "a new one is started")
        await eventually(lambda: cluster.accepting("decode") == ["decode-0", "decode-1"], "it serves")
        (finding,) = cluster.gateway.status().canary.findings
        assert finding.worker_id == "decode-1"
        assert finding.sentence.startswith("decode-1 computes wrongly: its log-probabilities for prompt ")
        assert ("decode-1", "faulty", finding.sentence) in cluster.said
        assert {key: each.incarnation for key, each in cluster.runtime.engines.items() if key != "decode-1"} == others
        assert 'baton_canary_failures_total{probe="alone",worker="decode-1"}' in text(cluster)
        shown = " ".join(str(line) for line in canary_lines(cluster.gateway.status().canary))
        assert finding.sentence in shown
        # What the others had read from it is dropped.
        await eventually(lambda: cluster.runtime.engines["decode-0"].forgotten == 1)


async def test_weights_that_change_are_found_though_no_answer_reports(tmp_path: Path) -> None:
    async with controlled(tmp_path, prefill=1, decode=2, more=FAST) as cluster:
        victim = cluster.runtime.engines["prefill-0"]
        victim.weights = ["a", "flipped", "c"]
        await eventually(lambda: cluster.runtime.engines.get("prefill-0") not in (None, victim), "a new one is started")
        sentences = [each.sentence for each in cluster.gateway.status().canary.findings]
        assert sentences == ["prefill-0 has damaged weights: piece 1 of 3 is not what it was when it was loaded"]


async def test_sound_workers_go_on_and_metrics_tell_what_it_costs(tmp_path: Path) -> None:
    async with controlled(tmp_path, prefill=2, decode=2, more=FAST) as cluster:
        before = {key: each.incarnation for key, each in cluster.runtime.engines.items()}
        cluster.model.canary._published_s = -1e9
        await eventually(lambda: all(record.runs > 12 for record in cluster.model.canary.core.workers.values()))
        await cluster.model.pool.publish()
        await eventually(lambda: all(row.runs > 12 for row in cluster.gateway.status().canary.workers))
        assert {key: each.incarnation for key, each in cluster.runtime.engines.items()} == before
        report = cluster.gateway.status().canary
        assert not report.findings
        assert not report.has_reference
        assert all(row.last_ok_unix_s and not row.failures and row.cost_ratio > 0 for row in report.workers)
        for name in ("runs_total", "failures_total", "cost_ratio", "last_ok_timestamp_seconds", "deviation_nat"):
            assert f"baton_canary_{name}{{" in text(cluster)


class OneWrong(FakeRuntime):
    """Engines of these workers compute wrongly from the start, the first time."""

    def __init__(self, *worker_ids: str) -> None:
        super().__init__()
        self.wrong = list(worker_ids)

    def create(self, plan, *arguments, **more):  # type: ignore[no-untyped-def]
        handle = super().create(plan, *arguments, **more)
        if plan.worker_id in self.wrong:
            self.wrong.remove(plan.worker_id)
            self.engines[plan.worker_id]._rule = wrong
        return handle


async def test_a_worker_that_is_wrong_from_the_start_never_serves_and_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.runtime.FakeRuntime", lambda **_: OneWrong("decode-0"))
    async with controlled(tmp_path, prefill=2, decode=2, more=FAST.replace("0.2", "60")) as cluster:
        assert cluster.runtime.started.count("decode-0") == 2
        said = [(subject, stage) for subject, stage, _ in cluster.said if stage in ("faulty", "ready")]
        assert said[-1] == ("decode-0", "ready")
        assert ("decode-0", "faulty") in said


async def test_where_all_differ_and_nothing_reports_who_is_right_the_cluster_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.runtime.FakeRuntime", lambda **_: OneWrong("decode-0"))
    with pytest.raises(EngineFailed, match="nothing shows which is right: `baton model check` writes a reference"):
        async with controlled(tmp_path, prefill=1, decode=1, more=FAST):
            pass


async def test_the_doctor_asks_every_worker_and_every_pair(tmp_path: Path) -> None:
    async with controlled(tmp_path, prefill=2, decode=2, more=FAST.replace("0.2", "3600")) as cluster:
        rows = await answers_check._ask(cluster.registry, None)
        assert sorted(answers_check.name(row) for row in rows) == [
            "decode-0", "decode-1", "prefill-0", "prefill-0 -> decode-0", "prefill-0 -> decode-1", "prefill-1",
            "prefill-1 -> decode-0", "prefill-1 -> decode-1",
        ]  # fmt: skip
        assert all(row.right for row in rows)
        assert answers_check.problems(rows) == []
        cluster.runtime.engines["decode-0"]._rule = wrong
        rows = await answers_check._ask(cluster.registry, None)
        assert any(problem.startswith("decode-0: off by ") for problem in answers_check.problems(rows))


async def test_the_canary_can_be_turned_off(tmp_path: Path) -> None:
    off = "health: {interval_s: 0.05, canary: {enabled: false}}\n"
    async with controlled(tmp_path, prefill=1, decode=1, more=off) as cluster:
        assert not cluster.gateway.status().HasField("canary")
        assert not any(leg.cache_salt for engine in cluster.runtime.engines.values() for leg in engine.started)


async def test_canaries_read_nothing_that_an_earlier_one_left_in_a_cache(tmp_path: Path) -> None:
    async with controlled(tmp_path, prefill=1, decode=1, more=FAST) as cluster:
        engine: FakeEngine = cluster.runtime.engines["decode-0"]
        await eventually(lambda: cluster.model.canary.core.workers["decode-0"].runs > 6)
        salts: dict[tuple[int, ...], list[str]] = {}
        for leg in engine.started:
            if leg.cache_salt:
                salts.setdefault(tuple(leg.token_ids), []).append(leg.cache_salt)
        assert len(salts) > 10
        for used in salts.values():
            assert len(set(used)) == len(used)


async def test_where_a_model_is_too_large_for_a_forward_pass_its_reference_is_what_workers_agree_on(
    tmp_path: Path,
) -> None:
    off = "health: {interval_s: 0.05, canary: {enabled: false}}\n"
    async with controlled(tmp_path, prefill=1, decode=2, more=off) as cluster:
        answers, voters = await agreement(cluster.gateway.spec, cluster.registry)
        assert voters == 3
        asked = {prompt.name: prompt for prompt in prompts(256, 32, 2048)}
        assert answers.keys() == asked.keys()
        for name, answer in answers.items():
            prompt = asked[name]
            assert [at.chosen for at in answer] == continuation(prompt.token_ids, prompt.max_tokens)
        cluster.runtime.engines["decode-0"]._rule = wrong
        with pytest.raises(EngineFailed, match="do not agree: decode-0"):
            await agreement(cluster.gateway.spec, cluster.registry)


def test_a_reference_is_of_exactly_these_weights_and_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "a.safetensors").write_bytes(os.urandom(3 << 20))
    asked = prompts(181, 32, 2048)
    answers = {
        prompt.name: tuple(Position(token, ((token, -0.5),)) for token in continuation(prompt.token_ids, 2))
        for prompt in asked
    }
    assert reference_file.find(str(model), asked) is None
    assert reference_file.write(str(model), asked, answers, method="test") == model / reference_file.FILE
    assert reference_file.find(str(model), asked) == answers
    assert reference_file.find(str(model), prompts(181, 64, 2048)) is None  # other prompts, other answers
    assert reference_file.find(str(model), prompts(200, 32, 2048)) is None
    more = prompts(181, 64, 2048)
    given = {prompt.name: answers["31"] for prompt in more}
    reference_file.write(str(model), more, given, method="test")
    assert reference_file.find(str(model), asked[:2]) == {each.name: answers[each.name] for each in asked[:2]}
    before = fingerprint(model)
    weights = bytearray((model / "a.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "a.safetensors").write_bytes(weights)
    assert fingerprint(model) != before
    assert reference_file.find(str(model), more) is None
