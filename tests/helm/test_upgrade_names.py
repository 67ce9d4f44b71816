"""An upgrade finds what it left: names, selectors and other fields that the API server lets nobody change.

`golden/` holds what the chart before this rendered. If a change of it is meant,
`python -m tests.helm.test_upgrade_names` writes it again, and CHANGELOG.md says what an upgrade takes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.fetch_helm import fetch
from tests.helm.chart import CHART, CI_VALUES, Chart, Manifest, Rendered, merged

GOLDEN = Path(__file__).parent / "golden"
NAMES = GOLDEN / "names.json"
DEFAULTS = GOLDEN / "defaults.yaml"


def fixed(rendered: Rendered) -> dict[str, Any]:
    """What must not change from one version of the chart to the next, by kind and name."""
    found: dict[str, Any] = {}
    for item in rendered.objects:
        spec = item.get("spec", {})
        kind = item["kind"]
        if kind in ("Deployment", "PodDisruptionBudget", "Service", "ServiceMonitor", "PodMonitor"):
            kept = {"selector": spec["selector"]} | ({"clusterIP": spec["clusterIP"]} if "clusterIP" in spec else {})
        elif kind == "NetworkPolicy":
            kept = {"podSelector": spec["podSelector"]}
        elif kind in ("RoleBinding", "ClusterRoleBinding"):
            kept = {"roleRef": item["roleRef"], "subjects": item["subjects"]}
        elif kind == "RayCluster":
            kept = {"groups": [group["groupName"] for group in spec["workerGroupSpecs"]]}
        else:
            kept = {}
        found[f"{kind} {item['metadata']['name']}"] = kept
    return found


def wanted(chart: Chart) -> dict[str, Any]:
    """The same of every file in helm/ci."""
    return {path.stem: fixed(chart.render(path)) for path in CI_VALUES}


def bare() -> Manifest:
    """Values without which there is no cluster, and no others."""
    trial = yaml.safe_load((CHART / "ci" / "cpu-trial-values.yaml").read_text())
    return {key: trial[key] for key in ("config", "model")}


def test_names_and_selectors_are_those_of_the_chart_before(chart: Chart) -> None:
    assert wanted(chart) == json.loads(NAMES.read_text())


def test_defaults_are_those_of_the_chart_before(chart: Chart) -> None:
    assert chart.text(bare()) == DEFAULTS.read_text()


CHANGES: list[Manifest] = [
    {"commonLabels": {"team": "ml"}, "commonAnnotations": {"a": "b"}},
    {"podLabels": {"team": "ml"}, "gateway.podLabels": {"tier": "edge"}, "gateway.serviceLabels": {"x": "y"}},
    {"gateway.replicas": 5, "image.tag": "9"},
    {"tolerations": [{"operator": "Exists"}], "sidecars": [{"name": "log", "image": "log:1"}]},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: " ".join(changes))
def test_values_leave_them_alone(chart: Chart, trial: Manifest, changes: Manifest) -> None:
    values = merged(trial, {"network": {"enabled": True}, "disruption": {"enabled": True}})
    assert fixed(chart.render(merged(values, changes))) == fixed(chart.render(values))


def test_selectors_find_their_pods(chart: Chart, trial: Manifest) -> None:
    """Labels of values stand beside those by which Services, budgets and policies select."""
    labels = {"podLabels": {"team": "ml"}, "commonLabels": {"cost": "1"}}
    on = {"network": {"enabled": True}, "disruption": {"enabled": True}, "monitoring": {"serviceMonitor": True}}
    rendered = chart.render(merged(trial, {**on, **labels}))
    pods = [pod["metadata"]["labels"] for pod in rendered.pods]
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "PodMonitor"):
        for item in rendered.of(kind).values():
            selector = item["spec"].get("selector", item["spec"].get("podSelector"))
            chosen = selector.get("matchLabels", selector)
            assert any(chosen.items() <= labels.items() for labels in pods), item["metadata"]["name"]


@pytest.mark.parametrize(
    ("changes", "release"),
    [
        ({"fullnameOverride": "a" * 60}, "trial"),
        ({"nameOverride": "n" * 63}, "trial"),
        ({"revision": "r" * 12}, "r" * 53),
        ({"nameOverride": "x-" * 10 + "x"}, "a-" * 20 + "a"),
    ],
)
def test_long_names_are_cut_and_stay_the_same(chart: Chart, trial: Manifest, changes: Manifest, release: str) -> None:
    values = merged(trial, {"disruption": {"enabled": True}, "network": {"enabled": True}, **changes})
    rendered = chart.render(values, release=release)
    rendered.fits("1.37")
    for item in rendered.objects:
        name = item["metadata"]["name"]
        assert len(name) <= 63
        assert not name.endswith("-")
        assert all(len(value) <= 63 for value in item["metadata"]["labels"].values())
    assert len(rendered.ray_clusters[0]["metadata"]["name"]) <= 50
    renamed = {key.split()[0] for key in fixed(rendered)}
    assert renamed == {key.split()[0] for key in fixed(chart.render(trial | {"disruption": {}, "network": {}}))}


def test_a_name_of_ones_own(chart: Chart, trial: Manifest) -> None:
    rendered = chart.render(merged(trial, {"fullnameOverride": "serve"}))
    assert {item["metadata"]["name"].split("-")[0] for item in rendered.objects} == {"serve"}
    rendered = chart.render(merged(trial, {"nameOverride": "llm"}))
    assert "trial-llm-gateway" in rendered.of("Deployment")
    assert rendered.gateway["metadata"]["labels"]["app.kubernetes.io/name"] == "llm"


def main() -> None:
    """Write the golden files again."""
    with tempfile.TemporaryDirectory() as folder:
        chart = Chart(fetch(), Path(folder))
        NAMES.write_text(json.dumps(wanted(chart), indent=1) + "\n")
        DEFAULTS.write_text(chart.text(bare()))


if __name__ == "__main__":
    main()
