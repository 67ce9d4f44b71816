import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from cluster.spec.config import load as load_cluster
from planner.capacity.calibrate_command import calibrate
from planner.capacity.commands import plan_app
from planner.capacity.live_points import measure
from planner.capacity.whatif_command import whatif

from .plans import tree, workload

app = typer.Typer()
app.add_typer(plan_app, name="plan")
app.command("whatif")(whatif)
app.command("calibrate")(calibrate)
run = CliRunner()

SMALL = {"hardware": {"gpus": ["H200-SXM"], "tensor_parallel": [1, 2]}, "simulate": {"requests": 100, "finalists": 1}}
SHORT = workload(rate_per_s=4.0, reasoning_tokens=0, answer_tokens={"mean": 200, "cv": 0.5})


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(tree(**SMALL, workload=SHORT)))
    return path


def test_plan_answers_in_its_first_line(plan_file: Path, tmp_path: Path) -> None:
    lock = tmp_path / "plan.lock.json"
    result = run.invoke(app, ["plan", "-f", str(plan_file), "--lock", str(lock)])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("Deploy ")
    again = run.invoke(app, ["plan", "-f", str(lock), "--no-simulate", "--json"])
    assert again.exit_code == 0 and "not as locked" not in again.output
    assert json.loads(again.stdout)["chosen"] == json.loads(lock.read_text())["chosen"]


def test_json_is_json_alone(plan_file: Path) -> None:
    result = run.invoke(app, ["plan", "-f", str(plan_file), "--json"])
    found = json.loads(result.stdout)
    assert found["answer"].startswith("Deploy ") and found["simulated"][0]["broken"] == []
    assert {"ttft", "itl", "usd_month", "error_band", "tag", "limit"} <= found["chosen"].keys()


def test_emit_writes_a_spec_that_loads(plan_file: Path, tmp_path: Path) -> None:
    spec, values = tmp_path / "cluster.yaml", tmp_path / "values.yaml"
    result = run.invoke(app, ["plan", "emit", "-f", str(plan_file), "--spec", str(spec), "--values", str(values)])
    assert result.exit_code == 0, result.output
    assert load_cluster(spec).name == "plan"
    config = yaml.safe_load(values.read_text())["config"]
    assert {name: pool.pop("node_resource") for name, pool in config["pools"].items()} == {"colocated": "colocated"}
    assert config == yaml.safe_load(spec.read_text())
    printed = run.invoke(app, ["plan", "emit", "-f", str(plan_file)])
    assert yaml.safe_load(printed.stdout)["config"]["name"] == "plan"


def test_explain_and_whatif_print_terms_and_limits(plan_file: Path) -> None:
    explained = run.invoke(app, ["plan", "explain", "-f", str(plan_file), "--json"])
    assert {"decode step", "dollars a month"} <= json.loads(explained.stdout).keys()
    assert "decode attention" in run.invoke(app, ["plan", "explain", "-f", str(plan_file)]).stdout
    changed = run.invoke(app, ["whatif", "-f", str(plan_file), "--vary", "rate", "--factors", "1,2", "--json"])
    found = json.loads(changed.stdout)
    assert [row["factor"] for row in found["resized"]] == [1.0, 2.0]
    assert {row["lever"] for row in found["held"]} == {"trace_length", "spread", "rate"}
    assert "fleet held" in run.invoke(app, ["whatif", "-f", str(plan_file)]).stdout


def test_whatif_sizes_again_on_each_kind_of_gpu(plan_file: Path) -> None:
    asked = ["whatif", "-f", str(plan_file), "--vary", "gpu", "--factors", "H200-SXM, L40S"]
    rows = json.loads(run.invoke(app, [*asked, "--json"]).stdout)["resized"]
    assert [row["factor"] for row in rows] == ["H200-SXM", "L40S"]
    assert "H200-SXM" in rows[0]["fleet"] and "H200" not in (rows[1]["fleet"] or "")
    assert rows[1]["fleet"] or rows[1]["reason"]
    assert "L40S" in run.invoke(app, asked).stdout
    assert run.invoke(app, [*asked[:-1], "H9000"]).exit_code == 2


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"modle": 1}, 2, "modle: unknown key"),
        ({"model": {"name": "Qwen9"}}, 2, "Qwen9"),
        ({"slo": {"ttft_s": "fast"}}, 2, "slo.ttft_s"),
        ({"slo": {"itl_s": 0.0001}}, 3, "binding limit: itl"),
        ({"hardware": {"gpus": ["A10G"], "tensor_parallel": [1]}}, 3, "binding limit: memory"),
        ({"hardware": {"gpus": ["H200-SXM"], "max_gpus": 1}, "workload": workload(rate_per_s=500.0)}, 3, "max_gpus"),
    ],
)
def test_exit_codes(tmp_path: Path, change: dict[str, Any], code: int, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(tree(**change)))
    result = run.invoke(app, ["plan", "-f", str(path), "--no-simulate"])
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_no_file_and_bad_options_exit_2(plan_file: Path) -> None:
    assert run.invoke(app, ["plan"]).exit_code == 2
    assert run.invoke(app, ["plan", "-f", "none.yaml"]).exit_code == 2
    assert run.invoke(app, ["whatif", "-f", str(plan_file), "--factors", "a,b"]).exit_code == 2
    assert run.invoke(app, ["calibrate", "-f", str(plan_file)]).exit_code == 2


class _Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self.wfile.write(b'data: {"choices": [{"text": "x"}]}\n\n')
        usage = {"prompt_tokens": len(body["prompt"].split()), "completion_tokens": body["max_tokens"]}
        self.wfile.write(f'data: {{"choices": [], "usage": {json.dumps(usage)}}}\n\ndata: [DONE]\n\n'.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_a_live_endpoint_is_measured(server: str) -> None:
    point = measure(server, "m", clients=2, isl_tokens=20, osl_tokens=5, rounds=2)
    assert (point.clients, point.isl_tokens, point.osl_tokens) == (2, 10, 5)
    assert point.ttft_s > 0 and point.tpot_s > 0


def test_calibrate_writes_the_factors_into_the_plan(plan_file: Path, tmp_path: Path) -> None:
    points, out = tmp_path / "points.csv", tmp_path / "calibrated.yaml"
    rows = ["clients,isl_tokens,osl_tokens,ttft_s,tpot_s"]
    rows += [f"{c},{i},{o},{0.05 + i * 1e-4},{0.012 + c * 1e-4}" for c, i, o in ((1, 500, 100), (4, 500, 200), (8, 1000, 200), (2, 2000, 100), (16, 500, 300), (1, 4000, 100))]  # fmt: skip  # noqa: E501
    points.write_text("\n".join(rows))
    result = run.invoke(app, ["calibrate", "-f", str(plan_file), str(points), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "held back" in result.stdout
    planned = run.invoke(app, ["plan", "-f", str(out), "--no-simulate", "--json"])
    assert json.loads(planned.stdout)["chosen"]["tag"] == "measured"
