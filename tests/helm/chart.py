"""The chart, rendered by the real helm."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

# It would read megabytes of definitions again for each object.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
GPU = "nvidia.com/gpu"

VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
OWN_DEFINITIONS = ("ray.io", "monitoring.coreos.com", "gateway.networking.k8s.io")
"""Groups that Kubernetes' own schemas do not have."""

FITTING: set[tuple[str, str]] = set()
"""Versions and objects that were found to fit: most objects of a rendering are those of the one before."""

Manifest = dict[str, Any]


def merged(values: Manifest, changes: dict[str, Any]) -> Manifest:
    """Values with dotted keys replaced."""
    result = copy.deepcopy(values)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return result


class RenderFailed(Exception):
    """helm refused the values; the text is what it said."""


@dataclass(frozen=True)
class Rendered:
    """All objects of one rendering, NOTES and hooks aside."""

    objects: list[Manifest]

    def of(self, kind: str) -> dict[str, Manifest]:
        """Objects of a kind by name."""
        return {item["metadata"]["name"]: item for item in self.objects if item["kind"] == kind}

    @cached_property
    def kinds(self) -> set[str]:
        return {item["kind"] for item in self.objects}

    @property
    def ray_clusters(self) -> list[Manifest]:
        return list(self.of("RayCluster").values())

    @property
    def groups(self) -> dict[str, Manifest]:
        """Worker groups of the first RayCluster by name."""
        return {group["groupName"]: group for group in self.ray_clusters[0]["spec"]["workerGroupSpecs"]}

    @property
    def head(self) -> Manifest:
        """Pod of the head."""
        return as_pod("head", self.ray_clusters[0]["spec"]["headGroupSpec"]["template"])

    def worker(self, group: str) -> Manifest:
        """Pod of a worker group."""
        return as_pod(group, self.groups[group]["template"])

    @property
    def gateway(self) -> Manifest:
        """Pod of the gateway."""
        (deployment,) = self.of("Deployment").values()
        return as_pod("gateway", deployment["spec"]["template"])

    @property
    def pods(self) -> list[Manifest]:
        """Every pod that the release makes."""
        found = [self.gateway]
        for cluster in self.ray_clusters:
            spec = cluster["spec"]
            found.append(as_pod(f"{cluster['metadata']['name']}-head", spec["headGroupSpec"]["template"]))
            found += [as_pod(f"group-{group['groupName']}", group["template"]) for group in spec["workerGroupSpecs"]]
        return found

    def fits(self, version: str) -> None:
        """All objects and pods are what a version of Kubernetes knows, with no field that it would drop."""
        objects = [item for item in self.objects if item["apiVersion"].split("/")[0] not in OWN_DEFINITIONS]
        for item in [*objects, *self.pods]:
            if (known := (version, json.dumps(item, sort_keys=True))) not in FITTING:
                kubernetes_validate.validate(item, version, strict=True)
                FITTING.add(known)

    @property
    def gpus(self) -> int:
        """GPUs that all worker pods of the first RayCluster ask for."""
        return sum(
            group["replicas"]
            * group["numOfHosts"]
            * int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get(GPU, 0))
            for group in self.groups.values()
        )


def as_pod(name: str, template: Manifest) -> Manifest:
    """A pod template as a Pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": name, "namespace": "serving"},
        "spec": template["spec"],
    }


@dataclass(frozen=True)
class Chart:
    """Renders the chart with values."""

    helm: Path
    folder: Path
    _texts: dict[tuple[str, ...], str] = field(default_factory=dict, compare=False)
    """Renderings by what was asked: helm takes a fifth of a second for each, and many tests ask for the same."""

    def render(self, values: Manifest | Path, *arguments: str, release: str = "trial") -> Rendered:
        """Render.

        Raises:
            RenderFailed: helm said no.
        """
        text = self.text(values, *arguments, release=release)
        # The C loader: renderings are most of what these tests read.
        return Rendered([item for item in yaml.load_all(text, yaml.CSafeLoader) if item])

    def text(self, values: Manifest | Path, *arguments: str, release: str = "trial") -> str:
        """The rendering as it is sent.

        Raises:
            RenderFailed: helm said no.
        """
        given = values.read_text() if isinstance(values, Path) else json.dumps(values, sort_keys=True)
        if (asked := (given, release, *arguments)) not in self._texts:
            self._texts[asked] = self._run(
                "template", release, str(CHART), "-n", "serving", "-f", self._file(values), *arguments
            )
        return self._texts[asked]

    def refusal(self, values: Manifest, *arguments: str, release: str = "trial") -> str:
        """The sentence with which values are refused; a trace or a list of guesses is none."""
        with pytest.raises(RenderFailed) as caught:
            self.render(values, *arguments, release=release)
        text = str(caught.value)
        if said := re.search(r"execution error at \(baton/[^)]+\): (.+)\n", text):
            assert "error calling" not in said[1], text
            return said[1]
        found = re.findall(r"^ *- at '.*$", text, flags=re.MULTILINE)
        assert len(found) == 1, text
        return str(found[0])

    def notes(self, values: Manifest | Path) -> str:
        """NOTES.txt of an installation."""
        text = self._run("install", "trial", str(CHART), "-n", "serving", "--dry-run=client", "-f", self._file(values))
        return text.split("NOTES:\n", 1)[1]

    def lint(self, values: Path) -> str:
        """`helm lint --strict`."""
        return self._run("lint", "--strict", str(CHART), "-f", str(values))

    def _file(self, values: Manifest | Path) -> str:
        if isinstance(values, Path):
            return str(values)
        path = self.folder / "values.json"
        path.write_text(json.dumps(values))
        return str(path)

    def _run(self, *arguments: str) -> str:
        # A fifth of helm's time is its garbage collector's, and it ends in a moment anyway; more threads add another.
        env = os.environ | {"GOGC": "800", "GOMAXPROCS": "1"}
        result = subprocess.run([str(self.helm), *arguments], capture_output=True, text=True, check=False, env=env)
        if result.returncode != 0:
            raise RenderFailed(result.stdout + result.stderr)
        # Helm warns where a value has another form than its default, a list for a map.
        assert "warning" not in result.stderr, result.stderr
        return result.stdout
