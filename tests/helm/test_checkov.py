"""No finding of checkov on the rendered chart is left unexplained (helm/checkov.yaml has the explanations)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helm.chart import CHART, CI_VALUES, ROOT, Chart

LOCK = ROOT / "requirements" / "checkov.txt"


@pytest.fixture(scope="session")
def checkov() -> Path:
    """checkov in an environment of its own, made once in the cache folder."""
    folder = Path(os.environ.get("BATON_CACHE") or Path.home() / ".cache" / "baton") / "tools" / "checkov"
    program = folder / "bin" / "checkov"
    stamp = folder / "installed"
    if not stamp.is_file() or stamp.read_text() != LOCK.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps", "--no-compile"]
        result = subprocess.run([*install, "-r", str(LOCK)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"checkov could not be installed; is a package index reachable?\n{result.stderr}"
        stamp.write_text(LOCK.read_text())
    return program


@pytest.mark.timeout(1200)  # the first run downloads 60 MB and unpacks 290
def test_no_finding_is_unexplained(chart: Chart, checkov: Path, tmp_path: Path) -> None:
    files: list[str] = []
    for path in (path for path in CI_VALUES if path.stem.startswith(("cpu-trial", "h100"))):
        rendered = chart.render(path, "--set", "network.enabled=true")
        objects = [item | {"metadata": {"namespace": "serving", **item["metadata"]}} for item in rendered.objects]
        text = yaml.safe_dump_all([*objects, *rendered.pods])
        (tmp_path / path.name).write_text(text)
        files += ["-f", str(tmp_path / path.name)]
    # It asks its maker's servers for guidelines, and waits minutes where they cannot be reached.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    result = subprocess.run(
        [str(checkov), *files, "--config-file", str(CHART / "checkov.yaml"), "--skip-download",
         "--quiet", "-o", "json"],
        capture_output=True, text=True, check=False, env=os.environ | nowhere | {"BC_SKIP_MAPPING": "TRUE"},
    )  # fmt: skip
    assert result.returncode in (0, 1), result.stderr
    report = json.loads(result.stdout)
    assert report["summary"]["passed"] > 100
    failed = [(item["check_id"], item["check_name"], item["resource"]) for item in report["results"]["failed_checks"]]
    assert not failed
