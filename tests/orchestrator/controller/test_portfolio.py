"""One controller and two models over fake engines: each model's workers by themselves, orders by any worker's name."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from baton.internal.v1 import registry_pb2
from baton.v1 import cluster_pb2
from cluster.errors import ConfigError
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import Role
from cluster.spec.portfolio import parse
from orchestrator.controller import worker_replacement
from orchestrator.controller.controller import Controller
from orchestrator.controller.role_change import change_role
from orchestrator.controller.worker_drain import drain_workers
from orchestrator.gateway.gateway import Gateway
from orchestrator.registry import together, watch
from tests.fakes.live_cluster import Cluster, ask, eventually, expected, run
from tests.fakes.runtime import MODEL, ControlledCluster, FakeRuntime
from tests.fakes.tokenizer import front

SPEC = f"""
models:
  a:
    path: {MODEL}
    max_model_len_tokens: 1024
    pools: {{prefill: {{replicas: 1, max_replicas: 4}}, decode: {{replicas: 2, max_replicas: 4}}}}
    autoscaling: {{enabled: true, interval_s: 1000}}
  b:
    path: {MODEL}
    max_model_len_tokens: 1024
    pools: {{colocated: {{replicas: 2}}}}
autoscaling: {{max_gpus: 4}}
health: {{interval_s: 0.05, canary: {{interval_s: 3600}}}}
"""
PROMPT = list(b"A prompt that both of the models have to answer.")
OF_A = {"a-prefill-0", "a-decode-0", "a-decode-1"}
OF_B = {"b-colocated-0", "b-colocated-1"}


@contextlib.asynccontextmanager
async def two_models(folder: Path) -> AsyncIterator[ControlledCluster]:
    portfolio, runtime = parse(SPEC), FakeRuntime()
    controller = Controller(portfolio, cast(RayRuntime, runtime), on_progress=lambda *_: None, log_folder=folder)
    registry = await controller.serve_registry("127.0.0.1")
    gateway = Gateway(portfolio, {name: replace(front(), name=name) for name in portfolio.models})
    tasks = [
        asyncio.create_task(watch(registry, gateway.update_members)),
        asyncio.create_task(gateway.report_to(registry)),
    ]
    cluster = ControlledCluster(controller, runtime, gateway, registry, [])
    try:
        await controller.start()
        await eventually(lambda: accepting(cluster) == {"a": OF_A, "b": OF_B}, "all workers accept")
        yield cluster
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await gateway.close()
        await controller.stop()


def accepting(cluster: ControlledCluster) -> dict[str, set[str]]:
    return {
        name: {view.worker_id for view in model.fleet.views() if view.accepting}
        for name, model in cluster.gateway.models_served.items()
    }


async def answers(cluster: ControlledCluster) -> None:
    for name in ("a", "b"):
        reply = await run(cast(Cluster, cluster), ask(PROMPT, 6, model=name))
        assert reply.token_ids[0] == expected(PROMPT, 6)
        assert reply.summary.workers.decode.startswith(name)


async def test_workers_carry_their_model_and_pair_within_it(tmp_path: Path) -> None:
    async with two_models(tmp_path) as cluster:
        await answers(cluster)
        status = cluster.gateway.status()
        assert {row.worker_id: row.model for row in status.workers} == dict.fromkeys(OF_A, "a") | dict.fromkeys(
            OF_B, "b"
        )
        assert {(row.prefill, row.decode) for row in status.pairs} == {
            ("a-prefill-0", "a-decode-0"), ("a-prefill-0", "a-decode-1"),
        }  # fmt: skip
        await eventually(
            lambda: cluster.gateway.models_served["a"].journal.scaling is not None, "a's scaling is reported"
        )
        by_name = {row.name: row for row in cluster.gateway.status().models}
        assert by_name["a"].HasField("scaling")
        assert not by_name["b"].HasField("scaling")


async def test_one_drain_takes_workers_of_several_models_or_none(tmp_path: Path) -> None:
    async with two_models(tmp_path) as cluster:

        async def drained(*workers: str) -> dict[str, int]:
            settings = {"timeout_s": 10.0, "replace": False, "node_leaves": False}
            progress = drain_workers(cluster.registry, lambda _: workers, **settings)  # type: ignore[arg-type]
            last = [each async for each in progress][-1]
            return {row.worker_id: row.stage for row in last.workers}

        with pytest.raises(ConfigError, match="b-colocated-9 is unknown"):
            await drained("b-colocated-9")
        with pytest.raises(ConfigError, match="unknown"):
            await drained("b-colocated-0", "a-decode-9")
        assert accepting(cluster) == {"a": OF_A, "b": OF_B}
        stages = await drained("a-decode-1", "b-colocated-0")
        assert stages == dict.fromkeys(("a-decode-1", "b-colocated-0"), registry_pb2.DRAIN_STAGE_DRAINED)
        await eventually(lambda: accepting(cluster) == {"a": OF_A - {"a-decode-1"}, "b": {"b-colocated-1"}})
        await answers(cluster)


async def test_a_dead_worker_comes_back_to_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_replacement, "RESTART_BACKOFF_S", (0.05,))
    async with two_models(tmp_path) as cluster:
        for worker_id in ("a-decode-0", "b-colocated-1"):
            old = cluster.runtime.engines[worker_id]
            old.die()
            await eventually(lambda w=worker_id, o=old: cluster.runtime.engines.get(w) not in (None, o), worker_id)
        await eventually(lambda: accepting(cluster) == {"a": OF_A, "b": OF_B})
        await answers(cluster)


async def test_roles_change_by_name_within_a_model(tmp_path: Path) -> None:
    async with two_models(tmp_path) as cluster:
        with pytest.raises(ConfigError, match="colocated"):
            await change_role(cluster.registry, "b-colocated-0", Role.PREFILL)
        with pytest.raises(ConfigError, match="c-decode-0 is not ready, or unknown"):
            await change_role(cluster.registry, "c-decode-0", Role.PREFILL)
        await change_role(cluster.registry, "a-decode-1", Role.PREFILL)
        roles = {worker.worker_id: worker.role for worker in cluster.controller.models["a"].pool.workers()}
        assert roles["a-decode-1"] is Role.PREFILL
        await answers(cluster)


async def test_models_share_the_gpus_that_the_spec_bounds(tmp_path: Path) -> None:
    async with two_models(tmp_path) as cluster:
        may_take = cluster.controller._may_take
        assert may_take(1)  # three workers of a are scaled; those of b are not, and do not count
        assert not may_take(2)
        assert cluster.controller.models["a"].growth.grow(Role.DECODE) == "a-decode-2"
        assert not may_take(1)


def test_a_membership_of_several_models_is_the_sum_of_theirs() -> None:
    def part(name: str, starting: int, tolerance_nat: float, has_reference: bool) -> registry_pb2.WatchMembersResponse:
        return registry_pb2.WatchMembersResponse(
            members=[registry_pb2.Member(worker_id=f"{name}-decode-0", model=name)],
            starting_decode_workers=starting,
            starting_by_model={name: starting},
            canary=cluster_pb2.CanaryReport(
                workers=[cluster_pb2.CanaryStatus(worker_id=f"{name}-decode-0")],
                tolerance_nat=tolerance_nat,
                has_reference=has_reference,
            ),
        )

    whole = together([part("a", 2, 1.0, True), part("b", 0, 0.5, False)])
    assert [member.model for member in whole.members] == ["a", "b"]
    assert (whole.starting_decode_workers, dict(whole.starting_by_model)) == (2, {"a": 2, "b": 0})
    assert [row.worker_id for row in whole.canary.workers] == ["a-decode-0", "b-decode-0"]
    assert (whole.canary.tolerance_nat, whole.canary.has_reference) == (1.0, False)
