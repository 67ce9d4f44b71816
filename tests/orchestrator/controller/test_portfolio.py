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
from cluster.errors import ConfigError, EngineFailed, InvalidRequest, ModelNotFound, ServingError
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import ClusterSpec, Role
from cluster.spec.portfolio import parse
from orchestrator.controller import worker_replacement
from orchestrator.controller.controller import Controller
from orchestrator.controller.role_change import change_role
from orchestrator.controller.worker_drain import drain_workers
from orchestrator.gateway.gateway import Gateway
from orchestrator.registry import together, watch
from orchestrator.request.model_front import ModelFront
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


def loaded(spec: ClusterSpec) -> tuple[ClusterSpec, ModelFront]:
    model = spec.model
    return spec, replace(front(max_model_len_tokens=model.max_model_len_tokens), name=model.served_name)


@contextlib.asynccontextmanager
async def two_models(folder: Path) -> AsyncIterator[ControlledCluster]:
    portfolio, runtime = parse(SPEC), FakeRuntime()
    controller = Controller(portfolio, cast(RayRuntime, runtime), on_progress=lambda *_: None, log_folder=folder)
    registry = await controller.serve_registry("127.0.0.1")
    fronts = {name: replace(front(), name=name) for name in portfolio.models}
    gateway = Gateway(portfolio, fronts, load=loaded)
    watcher = asyncio.create_task(watch(registry, gateway.update_members))
    gateway.report_to(registry)
    cluster = ControlledCluster(controller, runtime, gateway, registry, [])
    try:
        await controller.start()
        await eventually(lambda: accepting(cluster) == {"a": OF_A, "b": OF_B}, "all workers accept")
        yield cluster
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
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


# --- models that come and go ----------------------------------------------------------------------------------------

ENTRY = f"""
path: {MODEL}
max_model_len_tokens: 512
pools: {{prefill: {{replicas: 1}}, decode: {{replicas: 1}}}}
"""


async def steady(cluster: ControlledCluster, model: str, stop: asyncio.Event) -> int:
    """Requests to a model, one after another; all are answered exactly."""
    answered = 0
    while not stop.is_set():
        reply = await run(cast(Cluster, cluster), ask([65 + answered % 26, *PROMPT], 20, model=model))
        assert reply.token_ids[0] == expected([65 + answered % 26, *PROMPT], 20)
        answered += 1
    return answered


async def test_a_model_is_added_and_removed_under_the_load_of_others(tmp_path: Path) -> None:
    async with two_models(tmp_path) as cluster:
        stop = asyncio.Event()
        load = [asyncio.create_task(steady(cluster, name, stop)) for name in ("a", "b")]
        assert await cluster.controller.add_model("c", ENTRY) == "c"
        await eventually(lambda: accepting(cluster).get("c") == {"c-prefill-0", "c-decode-0"}, "c is served")
        assert (await run(cast(Cluster, cluster), ask(PROMPT, 6, model="c"))).token_ids[0] == expected(PROMPT, 6)
        with pytest.raises(InvalidRequest):
            await run(cast(Cluster, cluster), ask(PROMPT * 12, 6, model="c"))
        assert [model.name for model in cluster.gateway.models()] == ["a", "b", "c"]
        engines = dict(cluster.runtime.engines)
        hold = engines["c-decode-0"].hold(10)
        last = asyncio.create_task(run(cast(Cluster, cluster), ask(PROMPT, 40, model="c")))
        await asyncio.wait_for(hold.reached.wait(), 20)
        removing = asyncio.create_task(drained(cluster, "c"))
        await eventually(lambda: [model.name for model in cluster.gateway.models()] == ["a", "b"], "c leaves")
        with pytest.raises(ModelNotFound, match="the model 'c' is being removed"):
            await run(cast(Cluster, cluster), ask(PROMPT, 6, model="c"))
        assert not removing.done()
        hold.open()
        assert (await last).token_ids[0] == expected(PROMPT, 40)
        assert {row.stage for row in await removing} == {registry_pb2.DRAIN_STAGE_DRAINED}
        await eventually(lambda: list(cluster.gateway.models_served) == ["a", "b"], "c is gone")
        assert not {"c-prefill-0", "c-decode-0"} & set(cluster.runtime.engines)
        with pytest.raises(ModelNotFound, match="no model 'c' here"):
            await run(cast(Cluster, cluster), ask(PROMPT, 6, model="c"))
        stop.set()
        assert all(count > 0 for count in await asyncio.gather(*load))
        assert (
            cluster.gateway.status().requests.failed == 2
        )  # for a model that is not there; what c refused went with it


async def drained(cluster: ControlledCluster, model: str) -> list[registry_pb2.WorkerDrain]:
    rows: list[registry_pb2.WorkerDrain] = []
    async for progress in cluster.controller.remove_model(model, 20.0):
        rows = progress
    return rows


async def test_a_request_that_never_ends_does_not_keep_its_model(tmp_path: Path) -> None:
    async with two_models(tmp_path) as cluster:
        hold = cluster.runtime.engines["b-colocated-0"].hold(5)
        other = cluster.runtime.engines["b-colocated-1"].hold(5)
        prompts = [[first, *PROMPT] for first in (66, 67)]
        held = [asyncio.create_task(run(cast(Cluster, cluster), ask(each, 30, model="b"))) for each in prompts]
        async with asyncio.timeout(20):
            await asyncio.gather(hold.reached.wait(), other.reached.wait())
        async for _ in cluster.controller.remove_model("b", 0.5):
            pass
        results = await asyncio.gather(*held, return_exceptions=True)
        assert all(isinstance(result, ServingError) for result in results), results
        assert list(cluster.controller.models) == ["a"]


async def test_a_model_that_cannot_start_leaves_all_as_it_was(tmp_path: Path) -> None:
    async with two_models(tmp_path) as cluster:
        cluster.runtime.fail_start = EngineFailed("no such weights")
        with pytest.raises(EngineFailed, match="no such weights"):
            await cluster.controller.add_model("c", ENTRY)
        assert list(cluster.controller.models) == ["a", "b"]
        assert not [name for name in cluster.runtime.engines if name.startswith("c-")]
        assert await cluster.controller.add_model("c", ENTRY) == "c"


@pytest.mark.parametrize(
    ("name", "entry", "why"),
    [
        ("a", ENTRY, "the cluster has a model or a route named 'a'"),
        ("c", ENTRY + "served_name: b", "the cluster has a model or a route named 'b'"),
        ("C", ENTRY, "the new model: models.C"),
        ("c", "path: x", "the new model: models.c.max_model_len_tokens: missing"),
        ("c", ENTRY.replace("replicas: 1", "replicas: x"), "the new model: models.c.pools.prefill.replicas"),
        ("c", ENTRY.replace(str(MODEL), "/nowhere"), "no config.json in /nowhere"),
    ],
)
async def test_a_wrong_entry_costs_nothing(tmp_path: Path, name: str, entry: str, why: str) -> None:
    async with two_models(tmp_path) as cluster:
        with pytest.raises(ConfigError, match=why):
            await cluster.controller.add_model(name, entry)
        assert accepting(cluster) == {"a": OF_A, "b": OF_B}


async def test_what_is_needed_stays(tmp_path: Path) -> None:
    async with two_models(tmp_path) as cluster:
        with pytest.raises(ConfigError, match="no model 'c'; there are a, b"):
            await drained(cluster, "c")
        await drained(cluster, "b")
        with pytest.raises(ConfigError, match="'a' is the only model"):
            await drained(cluster, "a")
        await eventually(lambda: accepting(cluster) == {"a": OF_A}, "b is gone")
