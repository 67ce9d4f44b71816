"""Node labels and drained pods: what the head has to do, and the rights that it gets for it."""

from __future__ import annotations

import pytest

from tests.helm.chart import Chart, Manifest, Rendered, merged


def head_command(rendered: Rendered) -> str:
    (container,) = rendered.head["spec"]["containers"]
    return str(container["args"][0])


def rights(rendered: Rendered, kind: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for role in rendered.of(kind).values():
        for rule in role["rules"]:
            for resource in rule["resources"]:
                found.setdefault(resource, set()).update(rule["verbs"])
    return found


def test_head_reads_the_label_that_the_affinity_uses(chart: Chart, h100: Manifest) -> None:
    rendered = chart.render(merged(h100, {"topology": {"togetherKey": "example.org/rack", "readNodeLabels": True}}))
    assert "--node-labels --domain-label example.org/rack --spec" in head_command(rendered)
    affinity = rendered.worker("decode")["spec"]["affinity"]["podAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "example.org/rack"
    assert rights(rendered, "ClusterRole") == {"nodes": {"list"}}
    (binding,) = rendered.of("ClusterRoleBinding").values()
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "trial-baton-head", "namespace": "serving"}]


def test_without_the_switch_there_is_no_cluster_wide_right(chart: Chart, trial: Manifest) -> None:
    rendered = chart.render(trial)
    assert "--node-labels" not in head_command(rendered)
    assert not {"ClusterRole", "ClusterRoleBinding"} & rendered.kinds


@pytest.mark.parametrize("on", [True, False])
def test_drained_pods_are_removed_where_ray_scales(chart: Chart, h100: Manifest, on: bool) -> None:
    rendered = chart.render(merged(h100, {"autoscaling.enabled": on, "topology": {}}))
    assert ("--remove-drained-pods" in head_command(rendered)) is on
    needed = {"rayclusters": {"get", "patch"}, "pods": {"get", "list", "watch"}} if on else {}
    found = rights(rendered, "Role")
    found.pop("leases")
    assert found == needed


@pytest.mark.parametrize(("scales", "least"), [(True, 2), (False, 4)])
def test_ray_scales_within_the_autoscalers_bounds(chart: Chart, h100: Manifest, scales: bool, least: int) -> None:
    changes = {"config.pools.decode.min_replicas": 2, "decodeWorkers.standbyReplicas": 0}
    rendered = chart.render(merged(h100, {**changes, "config.autoscaling": {"enabled": scales}}))
    group = rendered.groups["decode"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (least, 4, 8)


def test_head_command_is_one_that_baton_node_knows(chart: Chart, h100: Manifest) -> None:
    """Every option of the rendered command is one of `baton node`."""
    import re

    from typer.main import get_command

    from interface.cli.main import app

    node = get_command(app).commands["node"]  # type: ignore[attr-defined]
    known = {name for parameter in node.params for name in parameter.opts}
    rendered = chart.render(h100)
    for pod in (rendered.head, rendered.worker("prefill")):
        before_ray = pod["spec"]["containers"][0]["args"][0].split(" -- ray start")[0]
        used = set(re.findall(r"(?<!\S)--[a-z-]+", before_ray))
        assert used
        assert used <= known
