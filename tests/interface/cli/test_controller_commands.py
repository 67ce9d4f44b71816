"""`baton drain`, `baton role` and `baton model check`, each against a registry on loopback that plays a controller."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from baton.internal.v1 import registry_pb2 as pb
from baton.internal.v1 import registry_pb2_grpc
from cluster.errors import ConfigError, EngineFailed, WorkerDraining
from cluster.internal_rpc import InternalRpc
from interface.cli import main as cli
from interface.cli import model_command
from orchestrator.policy.canary_probe import Position, Prompt

SPEC = """
name: here
model: {{path: {model}, served_name: m, max_model_len_tokens: 1024}}
pools: {{prefill: {{replicas: 1}}, decode: {{replicas: 1}}}}
"""


@dataclass
class Controller(registry_pb2_grpc.RegistryServicer):
    """Answers as scripted and keeps what it was asked."""

    stages: list[pb.DrainResponse] = field(default_factory=list)
    refusal: str = ""
    members: list[pb.Member] = field(default_factory=list)
    models: list[pb.ModelEntry] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    address: str = ""

    async def Drain(self, request: pb.DrainRequest, context: Any) -> AsyncIterator[pb.DrainResponse]:  # noqa: N802
        self.asked.append(request)
        if self.refusal:
            raise ConfigError(self.refusal)
        for stage in self.stages:
            yield stage

    async def ChangeRole(self, request: pb.ChangeRoleRequest, context: Any) -> pb.ChangeRoleResponse:  # noqa: N802
        self.asked.append(request)
        if self.refusal:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refusal)
        return pb.ChangeRoleResponse(elapsed_s=0.25, pid=41)

    async def WatchMembers(  # noqa: N802
        self, request: pb.WatchMembersRequest, context: Any
    ) -> AsyncIterator[pb.WatchMembersResponse]:
        yield pb.WatchMembersResponse(members=self.members, models=self.models)

    async def AddModel(self, request: pb.AddModelRequest, context: Any) -> pb.AddModelResponse:  # noqa: N802
        self.asked.append(request)
        if self.refusal:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        return pb.AddModelResponse(elapsed_s=12.4, served_name="big", worker_ids=["new-colocated-0"])

    async def RemoveModel(  # noqa: N802
        self, request: pb.RemoveModelRequest, context: Any
    ) -> AsyncIterator[pb.DrainResponse]:
        self.asked.append(request)
        if self.refusal:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        for stage in self.stages:
            yield stage


@pytest.fixture(scope="module")
def running() -> Iterator[Controller]:
    loop = asyncio.new_event_loop()
    controller = Controller()

    async def start() -> Any:
        rpc = InternalRpc(None)
        server = rpc.server()
        registry_pb2_grpc.add_RegistryServicer_to_server(controller, server)
        controller.address = f"127.0.0.1:{rpc.bind(server, '127.0.0.1:0')}"
        await server.start()
        return server

    server = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield controller
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def controller(running: Controller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Controller:
    monkeypatch.setenv("BATON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("BATON_CONTROLLER", running.address)
    running.stages, running.refusal, running.members, running.models = [], "", [], []
    running.asked.clear()
    return running


def baton(*arguments: str) -> None:
    cli.app(list(arguments), standalone_mode=False)


def progress(stage: int, requests: int = 0, elapsed_s: float = 1.0, worker: str = "decode-0") -> pb.DrainResponse:
    row = pb.WorkerDrain(worker_id=worker, stage=stage, requests=requests, requests_at_start=4)  # type: ignore[arg-type]
    return pb.DrainResponse(workers=[row], elapsed_s=elapsed_s, timeout_s=60)


# --- drain ----------------------------------------------------------------------------------------------------------


def test_a_drain_writes_a_line_for_each_change(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    draining, drained = pb.DRAIN_STAGE_DRAINING, pb.DRAIN_STAGE_DRAINED
    controller.stages = [progress(draining, 4), progress(draining, 4, 1.2), progress(draining, 1, 2), progress(drained)]
    baton("drain", "decode-0")
    lines = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["decode-0 draining 4 requests", "decode-0 draining 1 requests", "decode-0 drained 0 requests"]


@pytest.mark.parametrize(
    ("arguments", "timeout_s", "replace"),
    [((), 0, False), (("--timeout-s", "45.5"), 45.5, False), (("--replace",), 0, True)],
)
def test_what_is_asked_of_the_controller(
    controller: Controller, arguments: tuple[str, ...], timeout_s: float, replace: bool
) -> None:
    controller.stages = [progress(pb.DRAIN_STAGE_DRAINED)]
    baton("drain", "decode-0", "decode-1", *arguments)
    (request,) = controller.asked
    assert list(request.worker_ids) == ["decode-0", "decode-1"]
    assert (request.timeout_s, request.replace, request.node_leaves) == (timeout_s, replace, False)


@pytest.mark.parametrize(("stage", "name"), [(pb.DRAIN_STAGE_TIMED_OUT, "timed_out"), (pb.DRAIN_STAGE_LOST, "lost")])
def test_a_worker_that_was_not_empty_is_a_failure(
    controller: Controller, capsys: pytest.CaptureFixture[str], stage: int, name: str
) -> None:
    controller.stages = [progress(stage, 3)]
    with pytest.raises(WorkerDraining, match=f"not empty when stopped: decode-0 {name} with 3 requests"):
        baton("drain", "decode-0", "--json")
    assert json.loads(capsys.readouterr().out)["workers"][0]["requests"] == 3


def test_local_takes_the_workers_of_this_machine_alone(
    controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    controller.members = [
        pb.Member(worker_id="decode-0", address="127.0.0.1:4000", state="ready"),
        pb.Member(worker_id="decode-1", address="203.0.113.9:4000", state="ready"),
        pb.Member(worker_id="decode-2", address="[::1]:4000", state="starting"),
    ]
    controller.stages = [progress(pb.DRAIN_STAGE_DRAINED)]
    baton("drain", "--local")
    (request,) = controller.asked
    assert list(request.worker_ids) == ["decode-0"]
    assert request.node_leaves
    assert request.replace


def test_a_machine_without_workers_has_nothing_to_drain(
    controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    controller.members = [pb.Member(worker_id="decode-1", address="203.0.113.9:4000", state="ready")]
    baton("drain", "--local")
    assert "no worker of the cluster runs on this machine" in capsys.readouterr().out
    assert not controller.asked


# --- role -----------------------------------------------------------------------------------------------------------


def test_a_role_is_changed(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    baton("role", "decode-0", "prefill", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "worker": "decode-0", "role": "prefill", "elapsed_s": 0.25, "pid": 41
    }  # fmt: skip
    baton("role", "decode-0", "prefill")
    assert "decode-0 is a prefill worker after 0.25 s, in process 41 as before" in capsys.readouterr().out
    assert [(each.worker_id, each.role) for each in controller.asked] == [("decode-0", "prefill")] * 2


@pytest.mark.parametrize("wanted", ["colocated", "cook", "", "DECODE"])
def test_a_role_that_cannot_be_taken_is_refused_here(controller: Controller, wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"role '{wanted}': expected prefill or decode"):
        baton("role", "decode-0", wanted)
    assert not controller.asked


def test_the_controllers_refusal_is_shown(controller: Controller) -> None:
    controller.refusal = "decode-0 is the last of its pool"
    with pytest.raises(ConfigError, match=f"{controller.address} changed no role: decode-0 is the last"):
        baton("role", "decode-0", "prefill")


# --- model check ----------------------------------------------------------------------------------------------------


def a_model(folder: Path, *, config: dict[str, Any] | None = None, bytes_: int = 64) -> Path:
    """A model whose weights are of this size by their header alone."""
    model = folder / "model"
    model.mkdir()
    tree = {"vocab_size": 512, "dtype": "float32", **(config or {})}
    (model / "config.json").write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, bytes_]}, "__metadata__": {}}).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    path = folder / "spec.yaml"
    path.write_text(SPEC.format(model=model))
    return path


def answers(_: Path, questions: tuple[Prompt, ...], **__: object) -> dict[str, tuple[Position, ...]]:
    return {prompt.name: (Position(7, ((7, -0.5), (8, -1.5))),) for prompt in questions}


def test_a_small_model_is_computed_here_and_its_answers_lie_beside_it(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_command, "forward", answers)
    baton("model", "check", "-f", str(a_model(tmp_path)), "--json")
    shown = json.loads(capsys.readouterr().out)
    path = Path(shown["path"])
    assert path.parent == tmp_path / "model"
    assert shown["method"] == model_command.FORWARD
    kept = json.loads(path.read_text())
    assert set(kept["answers"]) == set(shown["prompts"])
    assert all(row["answer"] == [[7, [[7, -0.5], [8, -1.5]]]] for row in kept["answers"].values())


@pytest.mark.parametrize(
    ("config", "bytes_"),
    [
        pytest.param({}, model_command.MAX_FORWARD_BYTES + 1, id="float32 weights over the limit"),
        pytest.param({"dtype": "bfloat16"}, model_command.MAX_FORWARD_BYTES // 2 + 1, id="bfloat16, twice as large"),
        pytest.param({"dtype": None, "torch_dtype": "float32"}, model_command.MAX_FORWARD_BYTES + 1, id="older name"),
        pytest.param({"quantization_config": {"bits": 4}}, 64, id="quantised"),
        pytest.param({}, 0, id="no safetensors"),
    ],
)
def test_any_other_model_needs_three_workers_that_agree(
    controller: Controller,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    bytes_: int,
) -> None:
    monkeypatch.setattr(model_command, "forward", answers)
    controller.members = [
        pb.Member(worker_id=f"decode-{i}", state=state) for i, state in enumerate(("ready", "standby", "starting"))
    ]
    with pytest.raises(EngineFailed, match="2 workers have no majority: start at least 3"):
        baton("model", "check", "-f", str(a_model(tmp_path, config=config, bytes_=bytes_)))


def test_memory_that_is_short_counts_too(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_command, "forward", answers)
    monkeypatch.setattr(model_command.psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    with pytest.raises(EngineFailed, match="0 workers"):
        baton("model", "check", "-f", str(a_model(tmp_path, bytes_=64)))


def test_a_config_without_a_vocabulary_is_named(controller: Controller, tmp_path: Path) -> None:
    path = a_model(tmp_path, config={"vocab_size": None})
    with pytest.raises(ConfigError, match=r"config\.json has no vocab_size"):
        baton("model", "check", "-f", str(path))


def test_the_vocabulary_of_a_model_with_text_inside_is_found(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Prompt, ...]] = []

    def forward(folder: Path, questions: tuple[Prompt, ...], **_: object) -> dict[str, tuple[Position, ...]]:
        asked.append(questions)
        return answers(folder, questions)

    monkeypatch.setattr(model_command, "forward", forward)
    path = a_model(tmp_path, config={"vocab_size": None, "text_config": {"vocab_size": 99}})
    baton("model", "check", "-f", str(path))
    assert max(max(prompt.token_ids) for prompt in asked[0]) < 99


# --- models ---------------------------------------------------------------------------------------------------------


def test_a_model_is_added_from_a_file(
    controller: Controller, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    entry = tmp_path / "entry.yaml"
    entry.write_text("path: x")
    baton("model", "add", "new", str(entry))
    assert capsys.readouterr().out == "✓ big is served after 12 s by new-colocated-0\n"
    assert controller.asked == [pb.AddModelRequest(name="new", entry_yaml="path: x")]
    baton("model", "add", "new", str(entry), "--json")
    assert json.loads(capsys.readouterr().out)["workers"] == ["new-colocated-0"]
    controller.refusal = "the new model: models.new.pools: missing"
    with pytest.raises(ConfigError, match=r"models\.new\.pools: missing"):
        baton("model", "add", "new", str(entry))
    with pytest.raises(ConfigError, match="cannot read the entry"):
        baton("model", "add", "new", str(tmp_path / "none.yaml"))


def test_a_removal_is_followed_to_its_end(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    draining, drained, timed_out = pb.DRAIN_STAGE_DRAINING, pb.DRAIN_STAGE_DRAINED, pb.DRAIN_STAGE_TIMED_OUT
    controller.stages = [progress(draining, 2), progress(drained)]
    baton("model", "remove", "big", "--timeout-s", "9")
    lines = [line.partition("] ")[2] or line for line in capsys.readouterr().out.splitlines()]
    assert lines == ["decode-0 draining 2 requests", "decode-0 drained 0 requests", "✓ big is removed after 1 s"]
    assert controller.asked == [pb.RemoveModelRequest(served_name="big", timeout_s=9)]
    controller.stages = [progress(timed_out, 2)]
    with pytest.raises(WorkerDraining, match="big is removed; not empty when stopped: decode-0"):
        baton("model", "remove", "big", "--json")
    controller.refusal = "'big' is the only model"
    with pytest.raises(ConfigError, match="'big' is the only model"):
        baton("model", "remove", "big")


def test_models_are_listed_with_their_workers(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    controller.models = [pb.ModelEntry(served_name="a"), pb.ModelEntry(served_name="b", leaving=True)]
    controller.members = [
        pb.Member(worker_id=f"a-decode-{index}", model="a", role="decode", state=state)
        for index, state in enumerate(("ready", "ready", "lost"))
    ]
    baton("model", "list")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["a", "served", "2", "decode"], ["b", "leaving", "none"]]
    baton("model", "list", "--json")
    assert json.loads(capsys.readouterr().out) == [
        {"model": "a", "state": "served", "ready": {"decode": 2}}, {"model": "b", "state": "leaving", "ready": {}},
    ]  # fmt: skip
